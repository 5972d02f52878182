#!/usr/bin/env bash
# Trains 3 steps of a config on generated images; without the weights of MedGemma, on a tiny random model of the same make.
#   bash scripts/three_steps.sh config/training_configs/X.py [further arguments of finetune.py]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup.sh
arguments=("$@" --cfg-options training_args.max_steps=3)
if [ ! -e ckpt/medgemma-4b-it/config.json ]; then
    echo "ckpt/medgemma-4b-it is not there (bash scripts/download_medgemma.sh fetches it): using a tiny random model, which tests the code and not the memory"
    arguments+=(--tiny)
fi
exec .venv/bin/python mllm/pipeline/finetune.py "${arguments[@]}"
