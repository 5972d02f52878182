#!/usr/bin/env bash
# Installs, trains an adapter on generated images without a GPU, and applies it to a real ultrasound frame.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash scripts/setup.sh
python=.venv/bin/python
run=exp/medgemma_cpu_demo/latest

"$python" mllm/pipeline/finetune.py config/training_configs/medgemma_cpu_demo.py "$@"

frame=$("$python" -c 'from pydicom.data import get_testdata_file as find; print(find("examples_ybr_color.dcm", download=False) or "")')
question="Which imaging modality is this?"
echo
echo "A real echocardiogram (DICOM, from the pydicom package): $frame"
answer=$("$python" mllm/pipeline/predict.py --adapter "$run/adapter" --image "$frame" --question "$question")
echo "Question: $question"
echo "Answer: $answer"

cat <<TEXT

Output files (in $(cd "$run" && pwd -P)):
  adapter/            the trained adapter, with its model card
  config.py           the resolved config, which can be run again
  environment.json    packages, hardware, git commit
  first_batch.md      the first batch with its supervised tokens
  predictions.jsonl   all held-out questions with reference answers and predictions
  training_log.json   logged values; loss.png and tensorboard/ plot them
Next: README.md explains training on your own images.
TEXT
