"""A small model from scratch: the architecture of SmolVLM 256M learns the boxes of blood cells (BCCD) as text.

All weights start from random numbers (`from_scratch`) and train in full. 205 images are few for a
model of this size: use the config to compare with a pretrained model, or with a larger set. The learning rate was not
tuned, and a whole run was not measured. To train parts of pretrained weights instead, remove from_scratch, and set
trainable to a dict such as dict(projector="full") or dict(language=dict(last_layers=4)).

Cost: weights, gradients and AdamW take 4.1 GB (computed: 0.26 B parameters in fp32); a forward has at most 4096 tokens.
Command: python mllm/pipeline/finetune.py config/training_configs/smolvlm_from_scratch.py
"""

_base_ = ["../_base_/models/smolvlm.py", "../_base_/datasets/blood_cells.py", "../_base_/runtime/ampere.py"]

model_args = dict(trainable="full", from_scratch=True)
data_args = dict(tokens_per_micro_batch=4096)
training_args = dict(
    num_train_epochs=30,
    eval_strategy="no",
    per_device_train_batch_size=4,
    learning_rate=3e-4,
    weight_decay=0.1,
)
