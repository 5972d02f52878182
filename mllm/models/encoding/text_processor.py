"""Tokenizer with the interface of a processor, so that text is encoded by the same code as text with images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase, ProcessorMixin

from mllm.errors import ConfigError, DataError
from mllm.models.backbone.load_errors import explained, refuse_empty_tokenizer


class TextProcessor:
    """The interface of a transformers processor that the text encoders use, without images.

    Chat templates of text models need the content of a turn as one string. `apply_chat_template` also accepts the list
    of parts that the templates of models with images need.
    """

    image_token_ids: tuple[int, ...] = ()

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer

    @property
    def chat_template(self) -> Any:
        """Return the chat template of the tokenizer, or None."""
        return self.tokenizer.chat_template

    @chat_template.setter
    def chat_template(self, template: str) -> None:
        self.tokenizer.chat_template = template

    def apply_chat_template(self, messages: list[dict[str, Any]], **options: Any) -> str:
        """Return the rendered conversation."""
        plain = [{**message, "content": _joined(message["content"])} for message in messages]
        rendered = self.tokenizer.apply_chat_template(plain, **options)
        assert isinstance(rendered, str), "called with tokenize=False"
        return rendered

    def __call__(self, text: list[str], images: Any = None, **options: Any) -> dict[str, Any]:
        """Return token ids and the other outputs of the tokenizer. Raise `DataError` if there are images."""
        if images:
            raise DataError("the sample has images, but this model reads only text; use a type that reads images")
        return dict(self.tokenizer(text, **options))

    def to_dict(self) -> dict[str, Any]:
        """Return the settings of the tokenizer."""
        return dict(self.tokenizer.init_kwargs)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the tokenizer with its template to a folder."""
        self.tokenizer.save_pretrained(folder)


def _joined(content: str | list[dict[str, str]]) -> str:
    """Return the text of a turn from its parts."""
    if isinstance(content, str):
        return content
    if any(part["type"] != "text" for part in content):
        raise DataError("the sample has images, but this model reads only text; use a type that reads images")
    return "\n".join(part["text"] for part in content)


def load_text_processor(name: str, *, trust_remote_code: bool = False) -> TextProcessor:
    """Load the tokenizer of a checkpoint. Raise `ConfigError` if it has no fast version, which provides offsets."""
    with explained(name):
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code)
        # Values of a damaged tokenizer_config.json are only used when a text is tokenized.
        tokenizer("a")
    refuse_empty_tokenizer(name, tokenizer)
    if not tokenizer.is_fast:
        raise ConfigError(
            f"the tokenizer of '{name}' has no fast version, which is needed for the position of each token in the "
            "text; use a checkpoint with a tokenizer.json"
        )
    return TextProcessor(tokenizer)


def mean_color(processor: ProcessorMixin | TextProcessor) -> tuple[int, int, int]:
    """Return the color whose normalized pixels are about 0, as in LLaVA and Shikra. Black for a text model."""
    if isinstance(processor, TextProcessor):
        return (0, 0, 0)
    means = [int(255 * mean) for mean in processor.image_processor.to_dict().get("image_mean") or (0, 0, 0)]
    return means[0], means[len(means) // 2], means[-1]
