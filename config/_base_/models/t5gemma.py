"""T5Gemma, an encoder-decoder for text, with a LoRA on the encoder and the decoder."""

model_args = dict(
    type="seq2seq",
    model_name_or_path="google/t5gemma-b-b-prefixlm-it",
    adapter_path=None,
    lora_r=16,
    lora_alpha=None,  # equal to lora_r
    lora_dropout=0.0,
    lora_target="language",
    max_length=200,  # of the source, and of the target
)
objectives = dict(next_token=dict(type="NextToken", weight=1.0))
