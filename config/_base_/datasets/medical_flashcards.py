"""Medical flashcards from the Hugging Face Hub: 33,955 questions and answers in the columns `input` and `output`."""

data_args = dict(
    train=dict(
        type="TextQADataset",
        data_path="medalpaca/medical_meadow_medical_flashcards",
        split="train[:95%]",
        question="input",
        answer="output",
    ),
    validation=dict(
        type="TextQADataset",
        data_path="medalpaca/medical_meadow_medical_flashcards",
        split="train[95%:]",
        question="input",
        answer="output",
    ),
    test=None,
    gen_kwargs=dict(max_new_tokens=128),
    on_error="raise",
    tokens_per_micro_batch=None,
)
