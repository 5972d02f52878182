"""Generated images (phantoms) with questions about lesions, and their boxes and masks. Nothing is downloaded."""

data_args = dict(
    train=dict(type="PhantomBoxDataset", size=24, seed=0, image_size=448),
    validation=dict(type="PhantomBoxDataset", size=8, seed=1, image_size=448),
    test=dict(type="PhantomBoxDataset", size=8, seed=2, image_size=448),
    compute_metric=["rec", "res"],
    gen_kwargs=dict(max_new_tokens=32),
    on_error="raise",
    tokens_per_micro_batch=None,
)
