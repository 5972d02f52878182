#!/usr/bin/env bash
# Trains three steps of the config for a GPU with 16 GB on generated images.
set -euo pipefail
exec bash "$(dirname "${BASH_SOURCE[0]}")/three_steps.sh" config/training_configs/medgemma_16gb_medical.py "$@"
