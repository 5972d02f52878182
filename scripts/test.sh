#!/usr/bin/env bash
# Installs and runs the test suite in two processes. Arguments are passed to pytest: bash scripts/test.sh -n 0 -x tests/dataset
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup.sh
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" # two processes share two cores
unset PYTHONDONTWRITEBYTECODE # without bytecode, both processes compile all tests again: 15 s of a core
exec .venv/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --durations=10 "$@"
