#!/usr/bin/env bash
# Makes .venv in the checkout and installs the package with all that runs and tests need. Quick the second time.
#   bash scripts/setup.sh          PYTHON=/path/to/python chooses the interpreter (3.10 or newer)
#   bash scripts/setup.sh --parity compiles llama.cpp too, for the tests that compare with it
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
root=$(pwd -P)
venv=.venv
stamp=$venv/.mllm-stamp
busy=$venv/.mllm-installing # present while an installation runs: what a killed one leaves behind is not trusted
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
# llama-cpp-python has no wheel on PyPI: it wants a C++ compiler and minutes, so it is apart, and setup goes on without it.
# GGML_NATIVE=OFF: for any processor of its kind, so that a cached build runs on the next machine, too.
with_parity() {
    local uv minutes=25 installer=("$venv/bin/python" -m pip install --quiet)
    if [ "$parity" != --parity ] || "$venv/bin/python" -c 'import llama_cpp' >/dev/null 2>&1; then return; fi
    uv=$(command -v uv || command -v "$venv/bin/uv" || true)
    if [ -n "$uv" ]; then installer=("$uv" pip install --quiet --python "$venv/bin/python"); fi
    echo "setup: compiling llama.cpp for the tests that compare with it (minutes; at most $minutes)"
    export CMAKE_ARGS="-DGGML_NATIVE=OFF -DLLAMA_CURL=OFF" CMAKE_BUILD_PARALLEL_LEVEL="${CMAKE_BUILD_PARALLEL_LEVEL:-2}"
    if command -v timeout >/dev/null; then installer=(timeout "$((minutes * 60))" "${installer[@]}"); fi
    if "${installer[@]}" -c scripts/constraints.txt llama-cpp-python >>"$log" 2>&1; then
        echo "setup: llama.cpp is there"
    else
        echo "setup: llama-cpp-python could not be compiled (see $root/$log): the tests that compare with llama.cpp will be skipped"
    fi
}

# Two of these at a time (a demo beside the tests) would write into the same folder: the second waits.
exec 9<setup.py
if command -v flock >/dev/null; then flock 9; fi

if [ -e "$busy" ]; then
    echo "setup: the last installation was cut off; making $venv anew"
    rm -rf "$venv"
elif [ -e "$stamp" ] && [ "$(head -n 1 "$stamp")" != "$root" ]; then
    echo "setup: $venv was made for another folder; making it anew"
    rm -rf "$venv"
elif [ -e "$venv" ] && ! recent "$venv/bin/python"; then
    echo "setup: the Python of $venv is gone or older than 3.10; making it anew"
    rm -rf "$venv"
fi
if [ -e "$stamp" ] && [ "$(cat "$stamp")" = "$(fingerprint)" ]; then
    with_parity
    exit 0
fi

started=$SECONDS
uv=$(command -v uv || true)
if [ ! -e "$venv" ]; then
    python=$(find_python) || fail "no Python 3.10 or newer was found; install one, or name it: PYTHON=/path/to/python bash scripts/setup.sh"
    echo "setup: making $venv with $("$python" -V) and $([ -n "$uv" ] && echo uv || echo pip)"
    mkdir "$venv"
    touch "$busy"
    if [ -n "$uv" ]; then
        "$uv" venv --quiet --allow-existing --python "$python" "$venv" || fail "uv could not make $root/$venv with $python"
    elif ! "$python" -m venv "$venv" >/dev/null 2>&1; then
        # Debian packs venv apart from Python: this interpreter's own pip then works on the bare environment.
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
what=(-c scripts/constraints.txt -e '.[all,dev,notebook]')
echo "setup: installing (about 6 GB; the log is $log)"
# Compiled now, because importing transformers then takes half the time. pip compiles by itself.
if [ -z "$uv" ] || ! logged "$uv" pip install --python "$venv/bin/python" --compile-bytecode "${what[@]}"; then
    if [ -n "$uv" ]; then echo "setup: uv could not do it; trying pip, which may know another package index"; fi
    if ! logged "${pip[@]}" install --progress-bar off "${what[@]}"; then
        rm -f "$busy" # the installer ended by itself: nothing is half written
        fail "the packages could not be installed; the reason is in the last lines of $root/$log; mend it and run this again"
    fi
fi
if ! logged "$venv/bin/python" -c 'import torch, torchvision; torchvision.ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)'; then
    fail "torch and torchvision are not a matching pair of builds; see $root/$log; run this again to make $venv anew"
fi
fingerprint >"$stamp.new"
mv "$stamp.new" "$stamp"
rm -f "$busy"
with_parity
echo "setup: done in $((SECONDS - started)) s; activate with: source $venv/bin/activate"
