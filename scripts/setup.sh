#!/usr/bin/env bash
# Creates .venv in the checkout and installs the package with all dependencies of runs and tests. Later calls are fast.
#   bash scripts/setup.sh          PYTHON=/path/to/python selects the interpreter (3.10 or newer)
#   bash scripts/setup.sh --parity also compiles llama.cpp and installs JAX and DeepSpeed, for the tests that compare with them
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
root=$(pwd -P)
venv=.venv
stamp=$venv/.mllm-stamp
busy=$venv/.mllm-installing # exists during an installation; after a killed one .venv is created again
log=$venv/setup.log
parity=${1:-}

fail() {
    echo "setup failed: $*" >&2
    exit 1
}
recent() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1; }
fingerprint() {
    "$venv/bin/python" -I - "$root" setup.py scripts/constraints.txt scripts/setup.sh <<'PY'
import hashlib, sys
root, *files = sys.argv[1:]
print(root, sys.version.split()[0], sep="\n")
print(hashlib.sha256(b"".join(open(file, "rb").read() for file in files)).hexdigest())
PY
}
find_python() {
    local candidate
    for candidate in ${PYTHON:+"$PYTHON"} python3.12 python3.11 python3.13 python3.10 python3 python; do
        if recent "$candidate"; then
            command -v "$candidate"
            return
        fi
    done
    return 1
}
logged() { "$@" 2>&1 | tee -a "$log"; }
lacks() { ! "$venv/bin/python" -c "import importlib.util, sys; sys.exit(importlib.util.find_spec('$1') is None)" >/dev/null 2>&1; }
# Packages for the tests that compare with other implementations. They are optional, and their failure is not an error.
with_parity() {
    local uv installer=("$venv/bin/python" -m pip install --quiet)
    if [ "$parity" != --parity ]; then return; fi
    uv=$(command -v uv || command -v "$venv/bin/uv" || true)
    if [ -n "$uv" ]; then installer=("$uv" pip install --quiet --python "$venv/bin/python"); fi
    if lacks llama_cpp; then with_llama_cpp; fi
    if lacks deepspeed; then with_deepspeed; fi
    if lacks gemma || lacks orbax; then with_gemma; fi
}
with_deepspeed() {
    echo "setup: installing DeepSpeed for the tests of ZeRO"
    if "${installer[@]}" -c scripts/constraints.txt deepspeed >>"$log" 2>&1; then
        echo "setup: DeepSpeed is installed"
    else
        echo "setup: DeepSpeed could not be installed (see $root/$log): tests of ZeRO will be skipped"
    fi
}
# llama-cpp-python has no wheel on PyPI. It needs a C++ compiler and minutes.
# GGML_NATIVE=OFF builds for all processors of the architecture, so that a cached build also runs on other machines.
with_llama_cpp() {
    local minutes=25 limited=("${installer[@]}")
    echo "setup: compiling llama.cpp for the tests that compare with it (at most $minutes minutes)"
    export CMAKE_ARGS="-DGGML_NATIVE=OFF -DLLAMA_CURL=OFF" CMAKE_BUILD_PARALLEL_LEVEL="${CMAKE_BUILD_PARALLEL_LEVEL:-2}"
    if command -v timeout >/dev/null; then limited=(timeout "$((minutes * 60))" "${installer[@]}"); fi
    if "${limited[@]}" -c scripts/constraints.txt llama-cpp-python >>"$log" 2>&1; then
        echo "setup: llama.cpp is installed"
    else
        echo "setup: llama-cpp-python could not be compiled (see $root/$log): tests that compare with llama.cpp will be skipped"
    fi
}
# The extras jax and jax-reference. The package gemma needs Python 3.11, JAX and TensorFlow.
with_gemma() {
    echo "setup: installing the package gemma with JAX and TensorFlow for the tests that compare with T5Gemma in Flax (3 GB)"
    if "${installer[@]}" -c scripts/constraints.txt orbax-checkpoint gemma kagglehub >>"$log" 2>&1; then
        echo "setup: gemma is installed"
    else
        echo "setup: gemma could not be installed (see $root/$log): tests that compare with Flax will be skipped"
    fi
}

# Only one setup may write to .venv at a time; a second one waits.
exec 9<setup.py
if command -v flock >/dev/null; then flock 9; fi

if [ -e "$busy" ]; then
    echo "setup: the last installation was interrupted; creating $venv again"
    rm -rf "$venv"
elif [ -e "$stamp" ] && [ "$(head -n 1 "$stamp")" != "$root" ]; then
    echo "setup: $venv was created for another folder; creating it again"
    rm -rf "$venv"
elif [ -e "$venv" ] && ! recent "$venv/bin/python"; then
    echo "setup: the Python of $venv does not exist or is older than 3.10; creating it again"
    rm -rf "$venv"
fi
if [ -e "$stamp" ] && [ "$(cat "$stamp")" = "$(fingerprint)" ]; then
    with_parity
    exit 0
fi

started=$SECONDS
uv=$(command -v uv || true)
if [ ! -e "$venv" ]; then
    python=$(find_python) || fail "no Python 3.10 or newer was found; install one, or set its path: PYTHON=/path/to/python bash scripts/setup.sh"
    echo "setup: creating $venv with $("$python" -V) and $([ -n "$uv" ] && echo uv || echo pip)"
    mkdir "$venv"
    touch "$busy"
    if [ -n "$uv" ]; then
        "$uv" venv --quiet --allow-existing --python "$python" "$venv" || fail "uv could not create $root/$venv with $python"
    elif ! "$python" -m venv "$venv" >/dev/null 2>&1; then
        # On Debian venv is a separate package. The pip of the interpreter can then install into an environment without pip.
        if ! "$python" -m pip --version >/dev/null 2>&1 || ! "$python" -m venv --clear --without-pip "$venv"; then
            fail "$python has neither venv nor pip; install them (on Debian the package python3-venv), or install uv"
        fi
        touch "$busy"
    fi
fi
touch "$busy"
: >"$log"

pip=("$venv/bin/python" -m pip)
if ! "${pip[@]}" --version >/dev/null 2>&1 && ! "$venv/bin/python" -m ensurepip >>"$log" 2>&1; then
    pip=("$(find_python || echo python3)" -m pip --python "$venv/bin/python")
fi
if [ -z "$uv" ] && "${pip[@]}" install --quiet uv >>"$log" 2>&1; then
    uv=$venv/bin/uv
fi
packages=(-c scripts/constraints.txt -e '.[all,dev,notebook,serve]')
echo "setup: installing (about 6 GB; the log is $log)"
# Compiling to bytecode halves the time of the first import of transformers. pip compiles by default.
if [ -z "$uv" ] || ! logged "$uv" pip install --python "$venv/bin/python" --compile-bytecode "${packages[@]}"; then
    if [ -n "$uv" ]; then echo "setup: uv failed; trying pip, which may use another package index"; fi
    if ! logged "${pip[@]}" install --progress-bar off "${packages[@]}"; then
        rm -f "$busy" # the installer was not killed, so the environment is not corrupt
        fail "the packages could not be installed; see the last lines of $root/$log, fix the cause and run this script again"
    fi
fi
if ! logged "$venv/bin/python" -c 'import torch, torchvision; torchvision.ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)'; then
    fail "torch and torchvision are builds of different versions; see $root/$log, and run this script again to create $venv again"
fi
fingerprint >"$stamp.new"
mv "$stamp.new" "$stamp"
rm -f "$busy"
with_parity
echo "setup: done in $((SECONDS - started)) s; activate with: source $venv/bin/activate"
