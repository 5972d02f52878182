#!/usr/bin/env bash
# Tests this machine's GPU: what it supports, correctness, and three steps of the configs of three sizes of cards.
#   bash scripts/check_gpu.sh [--cpu] [--output FOLDER]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup.sh
exec .venv/bin/python scripts/check_gpu.py "$@"
