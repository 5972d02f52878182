"""Models that share one base in memory: the base with one of several adapters, or without any."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from peft import PeftModel

from mllm.config.defaults import with_defaults
from mllm.config.hardware import Hardware
from mllm.config.schema import ModelArgs
from mllm.errors import ConfigError
from mllm.models.adapters.attach import TRAINED as FIRST
from mllm.models.adapters.files import find_adapter, holds_lora, load_adapter, read_adapter
from mllm.models.builder.builder import load_encoder
from mllm.predict.load import load_for_answers
from mllm.protocols import Bundle, Encoder, Model
from mllm.run_files import TRAINED

logger = logging.getLogger(__name__)
OWN = frozenset({"adapter_path", "lora_r", "lora_alpha", "lora_dropout", "lora_target", "use_rslora", "use_dora"})
"""Keys of `model_args` of the adapter alone."""
ENCODING = frozenset({"max_length", "turn_end", "system", "chat_template", "template_args"})
"""Keys of `model_args` about prompts, in which adapters of one base may differ."""


@dataclass(frozen=True)
class Variant:
    """A model that answers under a name of its own."""

    args: ModelArgs
    encoder: Encoder
    adapter: str | None
    """Name of its adapter in PEFT; None: the loaded model has one adapter or none, which needs no choice."""
    is_base: bool = False
    """It is the base of other variants, without an adapter."""

    @contextmanager
    def chosen(self, model: Model) -> Iterator[Bundle]:
        """Let the loaded model be this variant inside the block, and yield it with its encoder."""
        backbone = model.backbone
        if isinstance(backbone, PeftModel) and self.is_base:
            with backbone.disable_adapter():
                yield Bundle(model, self.encoder)
            return
        if isinstance(backbone, PeftModel) and self.adapter is not None:
            backbone.set_adapter(self.adapter)
        yield Bundle(model, self.encoder)


def load_variants(sources: Mapping[str, ModelArgs], hardware: Hardware) -> tuple[Model, dict[str, Variant]]:
    """Load one base with the adapters of all sources, and return it with the variants by name.

    Args:
        sources: Arguments of the models by name. One without an adapter is the base of the others.
        hardware: Device and precision.

    Raises:
        ConfigError: The models have different bases, or an adapter has more than a LoRA and is not alone.
    """
    refuse_unlike(sources)
    with_adapter = [name for name, args in sources.items() if args.adapter_path is not None]
    first = (with_adapter or list(sources))[0]
    bundle = load_for_answers(sources[first], hardware)
    backbone = bundle.model.backbone
    variants = {}
    for number, (name, args) in enumerate(sources.items()):
        if name == first:
            variants[name] = Variant(args, bundle.encoder, FIRST if len(sources) > 1 else None)
            continue
        encoder = load_encoder(args)
        if args.adapter_path is None:
            variants[name] = Variant(args, encoder, None, is_base=True)
            continue
        assert isinstance(backbone, PeftModel)
        adapter = f"{FIRST}{number}"  # names of users may contain characters that PEFT does not allow
        load_adapter(backbone, read_adapter(args.adapter_path), adapter, {})
        variants[name] = Variant(args, encoder, adapter)
    bundle.model.eval()
    return bundle.model, variants


def refuse_unlike(sources: Mapping[str, ModelArgs]) -> None:
    """Raise `ConfigError` if models cannot share one base in memory."""
    if len(sources) < 2:
        return
    (first, reference), *others = ((name, _of_base(args)) for name, args in sources.items())
    for name, values in others:
        for key in [*reference, *values]:
            if reference.get(key) != values.get(key):
                raise ConfigError(
                    f"the adapters '{first}' and '{name}' cannot share a base: {key} is {reference.get(key)!r} and "
                    f"{values.get(key)!r}; start one server, or load one model, for each of them"
                )
    for name, args in sources.items():
        folder = None if args.adapter_path is None else find_adapter(args.adapter_path)
        if folder is not None and ((folder / TRAINED).is_file() or not holds_lora(folder)):
            raise ConfigError(
                f"the adapter '{name}' has trained heads, tokens or layers besides its LoRA, so it cannot share its "
                "base with others: load it alone"
            )


def _of_base(args: ModelArgs) -> dict[str, Any]:
    """Return the options that determine the loaded model without its adapter."""
    values = asdict(with_defaults(args))
    name = values["model_name_or_path"]
    values["model_name_or_path"] = str(Path(name).resolve()) if Path(name).is_dir() else name
    return {key: value for key, value in values.items() if key not in OWN | ENCODING}
