"""VaultGemma 1B, pretrained with differential privacy, 4-bit, with a LoRA on attention and MLP of every layer."""

model_args = dict(
    type="causal-lm",
    model_name_or_path="google/vaultgemma-1b",
    adapter_path=None,
    load_in_4bit=True,
    load_in_8bit=False,
    lora_r=8,
    lora_alpha=16,
    lora_dropout=0.05,
    lora_target="language",
    max_length=128,
    system="Answer this question truthfully.",
    chat_template=(  # the checkpoint is only pretrained and has no chat template
        "{{ bos_token }}{% for turn in messages %}"
        "{% if turn['role'] == 'system' %}{{ 'Instruction:\n' ~ turn['content'] ~ '\n\n' }}"
        "{% elif turn['role'] == 'user' %}{{ 'Question:\n' ~ turn['content'] ~ '\n\n' }}"
        "{% else %}{{ 'Response:\n' ~ turn['content'] ~ eos_token }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'Response:\n' }}{% endif %}"
    ),
)
objectives = dict(next_token=dict(type="NextToken", weight=1.0))
