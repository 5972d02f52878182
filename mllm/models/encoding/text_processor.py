"""A tokenizer that answers like a processor, so that text is encoded by the same code as text with images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase, ProcessorMixin

from mllm.errors import ConfigError, DataError
from mllm.models.backbone.loading import explained


class TextProcessor:
    """The part of a processor of transformers that `ChatEncoder` uses, without images.

    Chat templates of models for text want a turn's content as one string, those of models that see want a list of
    parts; either is given what it wants.
    """

    image_token_ids: tuple[int, ...] = ()

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer

    @property
    def chat_template(self) -> Any:
        """The tokenizer's template, or None."""
        return self.tokenizer.chat_template

    @chat_template.setter
    def chat_template(self, template: str) -> None:
        self.tokenizer.chat_template = template

    def apply_chat_template(self, messages: list[dict[str, Any]], **options: Any) -> str:
        """The rendered conversation."""
        plain = [{**message, "content": _joined(message["content"])} for message in messages]
        rendered = self.tokenizer.apply_chat_template(plain, **options)
        assert isinstance(rendered, str), "called with tokenize=False"
        return rendered

    def __call__(
        self, text: list[str], images: Any = None, return_text_replacement_offsets: bool = False, **options: Any
    ) -> dict[str, Any]:
        """Token ids and what belongs to them, as tensors; raises `DataError` for images."""
        if images:
            raise DataError("the sample has images, and this model reads text alone; use a type that reads images")
        return dict(self.tokenizer(text, **options))

    def to_dict(self) -> dict[str, Any]:
        """Return the settings of the tokenizer."""
        return dict(self.tokenizer.init_kwargs)

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes the tokenizer with its template."""
        self.tokenizer.save_pretrained(folder)


def _joined(content: str | list[dict[str, str]]) -> str:
    """The text of a turn's parts."""
    if isinstance(content, str):
        return content
    if any(part["type"] != "text" for part in content):
        raise DataError("the sample has images, and this model reads text alone; use a type that reads images")
    return "\n".join(part["text"] for part in content)


def load_text_processor(name: str, *, trust_remote_code: bool = False) -> TextProcessor:
    """The tokenizer of a checkpoint, fast enough to say which characters a token stands for."""
    with explained(name):
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code)
    if not tokenizer.is_fast:
        raise ConfigError(
            f"the tokenizer of '{name}' has no fast version, which says where each token stands in the text; "
            "labels cannot be placed exactly without it"
        )
    return TextProcessor(tokenizer)


def mean_color(processor: ProcessorMixin | TextProcessor) -> tuple[int, int, int]:
    """The color that the model sees as nearly zero, as LLaVA and Shikra take it; black for a model without images."""
    if isinstance(processor, TextProcessor):
        return (0, 0, 0)
    means = [int(255 * share) for share in processor.image_processor.to_dict().get("image_mean") or (0, 0, 0)]
    return means[0], means[len(means) // 2], means[-1]
