"""Tests of the description of the first batch."""

from mllm.engine.first_batch import describe_batch


def test_the_description_of_the_first_batch_has_supervised_text_in_bold(make_trainer):
    trainer = make_trainer()
    batch = trainer.first_batch()
    text = describe_batch(batch, trainer.data_collator.pad.__self__)
    assert "[16 image tokens]" in text
    assert text.count("**") // 2 - 1 == batch.samples
    for draw in next(iter(trainer.train_sampler)):
        answer = trainer.train_dataset.samples.sample(draw.index, draw.epoch).turns[-1].text
        assert f"**{answer}\\<end_of_turn>**" in text
