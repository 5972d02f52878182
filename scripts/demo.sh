#!/usr/bin/env bash
# Sets up, trains an adapter on generated images without a GPU, and asks the result about a real ultrasound frame.
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

Where everything lies (of $(cd "$run" && pwd -P)):
  adapter/            the trained adapter, with its model card
  config.py           the resolved config; it can be run again
  environment.json    packages, hardware, git commit
  first_batch.md      what the model was shown, and which tokens it learned from
  predictions.jsonl   every held-out question with the true answer and the model's
  training_log.json   one row per log; loss.png and tensorboard/ show them
Next: README.md, "Your own dataset".
TEXT
