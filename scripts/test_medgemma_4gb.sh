#!/usr/bin/env bash
# Trains three steps of the config for a GPU with 4 GB on generated images.
set -euo pipefail
exec bash "$(dirname "${BASH_SOURCE[0]}")/three_steps.sh" config/training_configs/medgemma_4gb_test.py "$@"
