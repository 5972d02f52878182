#!/usr/bin/env bash
# Trains three steps of a config on generated images. Without the weights of MedGemma it uses random weights of the same
# shapes on a GPU, and a tiny random model elsewhere or with more arguments.
#   bash scripts/three_steps.sh config/training_configs/X.py [arguments of finetune.py]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup.sh
arguments=("$@" --cfg-options training_args.max_steps=3)
if [ ! -e ckpt/medgemma-4b-it/config.json ]; then
    if [ $# -eq 1 ] && nvidia-smi >/dev/null 2>&1; then
        exec .venv/bin/python scripts/check_gpu.py --only "3 steps of $(basename "$1" .py)"
    fi
    echo "ckpt/medgemma-4b-it does not exist (download it with: bash scripts/download_medgemma.sh): using a tiny random model, which tests the code but not the memory"
    arguments+=(--tiny)
fi
exec .venv/bin/python mllm/pipeline/finetune.py "${arguments[@]}"
