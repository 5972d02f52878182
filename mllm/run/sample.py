"""One sample of a config as its model reads it, without loading weights."""

from __future__ import annotations

from collections.abc import Sequence

from mllm.dataset.builder import build_datasets
from mllm.errors import ConfigError, hint
from mllm.models.builder.builder import load_encoder
from mllm.report.sample import describe_sample
from mllm.run.prepare import prepare_args


def show_sample(
    path: str, overrides: Sequence[str] = (), *, tiny: bool = False, split: str = "train", index: int = 0, color: bool
) -> str:
    """Return the description of one sample of the config at `path`.

    Args:
        path: A config file.
        overrides: `KEY=VALUE` for keys of the config.
        tiny: Replace checkpoints and absent data by tiny ones.
        split: 'train', 'validation' or 'test'.
        index: Index of the sample; negative indices count from the end.
        color: Mark supervised tokens by terminal colors.

    Raises:
        ConfigError: The config has no such split, or the split no such sample.
    """
    config, _ = prepare_args(path, overrides, tiny=tiny, loads_model=True)
    splits = build_datasets(config.data_args, seed=config.training_args["seed"], origin=config.origin)
    if split not in splits:
        raise ConfigError(f"the config has no split '{split}'{hint(split, splits)}")
    dataset = splits[split]
    if not -len(dataset) <= index < len(dataset):
        raise ConfigError(f"--index {index}: the split '{split}' has {len(dataset)} samples")
    encoder = load_encoder(config.model_args)
    return describe_sample(encoder.encode(dataset.sample(index % len(dataset))), encoder, color)
