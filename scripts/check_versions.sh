#!/usr/bin/env bash
# Tests images, texts, heads, resumed runs, merges, evaluations and GGUF files with other versions of the dependencies.
#   bash scripts/check_versions.sh lowest    the lower bounds of setup.py
#   bash scripts/check_versions.sh newest    the newest releases
# Further arguments are passed to pytest in place of these tests: bash scripts/check_versions.sh lowest tests/tiny
# Needs uv and 6 GB, which are freed at the end. PYTHON=3.10 selects another Python than that of the shell.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
case "${1:-}" in
    lowest) versions=(--resolution lowest-direct) ;;
    newest) versions=(--upgrade) ;;
    *)
        echo "usage: check_versions.sh lowest | newest" >&2
        exit 2
        ;;
esac
uv=$(command -v uv || command -v .venv/bin/uv) || {
    echo "check_versions.sh needs uv: run scripts/setup.sh, or see https://docs.astral.sh/uv" >&2
    exit 1
}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"$uv" venv --quiet --python "${PYTHON:-python3}" "$folder/venv"
cp -r setup.py README.md mllm "$folder" # an installation writes its folder build
"$uv" pip install --quiet --python "$folder/venv/bin/python" "${versions[@]}" "$folder[all,dev]"
"$uv" pip list --python "$folder/venv/bin/python" | grep -E '^(torch|transformers|accelerate|peft|bitsandbytes|numpy) '
export PYTHONPATH=. OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
tests=("${@:2}")
if [ "${#tests[@]}" -eq 0 ]; then
    tests=(tests/tiny tests/engine/test_preflight.py tests/engine/test_trainer.py tests/pipeline/test_finetune.py)
    tests+=(tests/pipeline/test_merge.py tests/pipeline/test_text.py tests/predict/test_drawings.py tests/models/heads tests/export/gguf)
fi
"$folder/venv/bin/python" -m pytest -q -n 2 --dist loadfile "${tests[@]}"
