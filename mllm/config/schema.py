"""What a config may say: one frozen dataclass per top-level dict, one sentence per key.

Paths in a config (checkpoints, data, `output_dir`) are relative to the current directory; the paths of bases are
relative to the file that names them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from mllm.config.hardware import git_state, installed
from mllm.config.origins import Places, shown
from mllm.config.source import source_of

SPLITS = ("train", "validation", "test")
PACKAGES_IN_TEXT = ("torch", "transformers", "tokenizers", "peft", "bitsandbytes")


def _limit(default: Any, minimum: float | None = None, above: float | None = None, below: float | None = None) -> Any:
    """A field with a default (MISSING: a required one) and the bounds that its numbers must respect."""
    return field(default=default, metadata={"minimum": minimum, "above": above, "below": below})


@dataclass(frozen=True)
class ModelArgs:
    """Checkpoint and trainable parameters: the keys that several model types have; `Family.options` adds its own."""

    type: str
    """The entry of the registry MODELS that loads it."""
    model_name_or_path: str
    """A checkpoint's folder, or its name on the Hugging Face Hub."""
    adapter_path: str | None = None
    """A LoRA adapter to start from: a folder or a name on the Hub."""
    merge_lora: bool = False
    """Fold the starting adapter into the weights before training; full-precision weights only."""
    load_in_4bit: bool = False
    """NF4 with double quantization (bitsandbytes)."""
    load_in_8bit: bool = False
    """LLM.int8 (bitsandbytes)."""
    lora_r: int | None = _limit(16, minimum=1)
    """Rank of the LoRA that trains; None: that of `adapter_path`."""
    lora_alpha: float | None = _limit(None, above=0)
    """The update is scaled by lora_alpha / lora_r (/ sqrt(lora_r) with `use_rslora`); None: equal to `lora_r`."""
    lora_dropout: float = _limit(0.0, minimum=0, below=1)
    """Probability in [0, 1) with which an input of the LoRA is dropped in training."""
    lora_target: str = "language"
    """'language', 'vision', 'all', or a regular expression that is matched on full module names."""
    use_rslora: bool = False
    """Rank-stabilized scaling (arXiv:2312.03732)."""
    use_dora: bool = False
    """Weight-decomposed LoRA (arXiv:2402.09353)."""
    image_size: int | None = _limit(None, minimum=1)
    """Pixels of an image's side at the vision tower; None: the checkpoint's own."""
    image_token_len: int | None = _limit(None, minimum=1)
    """Tokens of one image in the language model; None: the checkpoint's own."""
    max_length: int = _limit(1024, minimum=1)
    """Tokens of one sample, those of its images included; what is longer is cut, never inside an image."""
    turn_end: str | None = None
    """The text that ends an assistant's turn where the chat template writes none; None: found in the template."""
    system: str | None = None
    """System text put before every conversation that has none."""
    chat_template: str | None = None
    """How a conversation is written, in Jinja; None: the checkpoint's own, which a merely pretrained one lacks."""
    attn_implementation: str | None = None
    """'eager', 'sdpa' or 'flash_attention_2'; None: transformers chooses."""
    trust_remote_code: bool = False
    """Run Python code that comes with the checkpoint."""
    heads: dict[str, dict[str, Any]] = field(default_factory=dict)
    """What reads objects out of one token: name -> `type`, an entry of HEADS, and its options; box and mask."""
    box_format: dict[str, Any] | None = None
    """How boxes stand in a text: `type`, an entry of BOX_FORMATS, and its options; None: one token where there are
    heads, else normalized_text."""
    pad_to_square: bool | None = None
    """Put images into the middle of a square before the processor resizes them; None: the type decides."""
    fuse_vision_layers: bool | None = None
    """Let the projector read a learned mixture of all vision layers instead of one; None: the type decides."""
    part: Literal["vision"] | None = None
    """'vision': load the vision tower and its projector alone, without the language model; None: the whole model."""
    train_vision: bool = False
    """part='vision': all of the vision tower trains, in fp32, instead of a LoRA in it."""


@dataclass(frozen=True)
class DataArgs:
    """Which datasets are read; a split that is None is absent."""

    train: dict[str, Any] | None = None
    """`type`, an entry of the registry DATASETS, and that class's keyword arguments."""
    validation: dict[str, Any] | None = None
    """The same, measured while training."""
    test: dict[str, Any] | None = None
    """The same, measured at the end."""
    on_error: Literal["raise", "skip"] = "raise"
    """What an unreadable row does: end the run, or be counted and listed in the run folder."""
    tokens_per_micro_batch: int | None = _limit(None, minimum=1)
    """Padded tokens that one forward may hold; None: pieces of per_device_train_batch_size, by length."""
    packing: bool = False
    """Let samples of text share rows of at most `max_length` tokens; exact: none sees another, none has another's
    positions."""
    compute_metric: str | list[str] | None = None
    """The entry of the registry METRICS, or several, that compare the answers to the test split with the true ones."""
    compute_untrained: bool = False
    """Answer the test split before training too, to show what was learned."""
    gen_kwargs: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of `mllm.models.generation.generate` for these answers, such as `max_new_tokens` (tokens)."""

    @property
    def metrics(self) -> list[str]:
        """The names in `compute_metric`."""
        names = self.compute_metric or []
        return [names] if isinstance(names, str) else names


@dataclass(frozen=True)
class StoppingArgs:
    """What `training_args` may say beside the arguments of `transformers.TrainingArguments`."""

    early_stopping_patience: int | None = _limit(None, minimum=1)
    """End the training after so many evaluations in a row without a lower validation loss; None: never."""
    early_stopping_threshold: float = _limit(0.0, minimum=0)
    """By how much the validation loss must be below the lowest before it to count as lower."""


@dataclass(frozen=True)
class ExportArgs:
    """What is written at the end of a training beside the adapter."""

    merged: bool = False
    """The whole model with the adapter folded into its weights."""


@dataclass(frozen=True)
class DistillArgs:
    """Who teaches."""

    teacher: ModelArgs
    """The frozen model that is learned from: the keys of `model_args`, without a LoRA of its own."""
    cache: bool = True
    """Compute what a vision teacher sees of each image once, keep it on the disk, and drop the teacher."""
    cache_folder: str = "exp/teacher_cache"
    """Where it is kept; runs share it, and what another teacher or another setting saw is never mixed up."""


@dataclass(frozen=True)
class PrivacyArgs:
    """What a differentially private training promises, and of whom (arXiv:1607.00133)."""

    target_delta: float = _limit(MISSING, above=0, below=1)
    """The delta of the promise (epsilon, delta); below 1 / N for N units in the training data."""
    target_epsilon: float | None = _limit(None, above=0)
    """The epsilon that is never exceeded; the noise follows from it. None: `noise_multiplier` is given."""
    noise_multiplier: float | None = _limit(None, above=0)
    """Standard deviation of the noise on a sum of clipped gradients, as a multiple of `clip_norm`."""
    clip_norm: float = _limit(1.0, above=0)
    """The L2 norm to which the gradient of one unit is clipped."""
    clipping: Literal["flat", "per_layer"] = "flat"
    """Clip the gradient of a unit as one vector, or every layer's part of it to clip_norm / sqrt(layers)."""
    unit: Literal["sample", "patient"] = "sample"
    """Whose presence in the training data is hidden: one sample, or all samples of one patient together."""
    max_records_per_patient: int | None = _limit(None, minimum=1)
    """unit='patient': how many samples of one patient are used in an update; None: all."""
    physical_batch_size: int = _limit(8, minimum=1)
    """Samples in one forward; changes memory and time and never the update."""
    accountant: Literal["prv", "rdp"] = "prv"
    """What adds up the epsilon: 'prv' (arXiv:2106.02848) is tight, 'rdp' (arXiv:1908.10530) is quick and loose."""
    public_validation: bool = False
    """Whether the validation split holds nothing to protect, so that choices may rest on its loss."""
    checkpoint_below: list[float] = field(default_factory=list)
    """With `public_validation`: save a checkpoint when the validation loss first falls below each of these."""
    secure_mode: bool = False
    """Draw the noise from the system's cryptographic generator; False: from a fast one with a secret seed."""
    test_noise_seed: int | None = None
    """For tests alone: a seed of the noise. Whoever knows it can take the noise away: the promise is void."""


@dataclass(frozen=True)
class RunConfig:
    """A config that was read, checked and found to make sense; two are equal if they ask for the same run."""

    model_args: ModelArgs
    data_args: DataArgs
    training_args: dict[str, Any]
    """Keyword arguments of `transformers.TrainingArguments` and of `StoppingArgs`; `output_dir` may be absent."""
    objectives: dict[str, dict[str, Any]]
    """Name -> `type`, an entry of the registry OBJECTIVES, and that class's keyword arguments."""
    name: str
    """The file's name without its suffix: runs lie in `exp/<name>/`."""
    path: Path = field(compare=False)
    tiny: bool = False
    """Whether checkpoints were replaced by tiny ones."""
    hardware: dict[str, Any] = field(default_factory=dict)
    """`bf16=True`: keep bf16 on a CPU, where it is slow, instead of falling back to fp32."""
    export_args: ExportArgs = field(default_factory=ExportArgs)
    distill_args: DistillArgs | None = None
    privacy_args: PrivacyArgs | None = None
    """None: without differential privacy."""
    custom_imports: dict[str, Any] = field(default_factory=dict)
    """`imports`: modules that register datasets and other parts; `folders`: where they lie."""
    places: Places = field(default_factory=Places, compare=False, repr=False)
    """Who wrote which key, for messages."""

    def place(self, *key: str) -> str:
        """`FILE:LINE` of the file that wrote a key: `config.place('model_args', 'lora_r')`."""
        return self.places.of(*key)

    def is_written(self, *key: str) -> bool:
        """Return True if a file or the command line wrote a key, and False if it has its default."""
        return key in self.places.written

    def replaced(self, **changes: Any) -> RunConfig:
        """The same config with other values: `config.replaced(**{'model_args.lora_r': 8, 'tiny': True})`."""
        config = self
        for dotted, value in changes.items():
            section, *keys = dotted.split(".")
            if keys:
                value = _replaced_in(getattr(config, section), keys, value)
            config = replace(config, **{section: value})
        return config

    def as_dict(self) -> dict[str, Any]:
        """The config's top-level dicts, every default written out."""
        sections = {
            "model_args": asdict(self.model_args),
            "data_args": asdict(self.data_args),
            "training_args": self.training_args,
            "objectives": self.objectives,
            "export_args": asdict(self.export_args),
            "name": self.name,
        }
        optional = {
            "distill_args": self.distill_args and asdict(self.distill_args),
            "privacy_args": self.privacy_args and asdict(self.privacy_args),
            "hardware": self.hardware,
            "custom_imports": self.custom_imports,
            "tiny": self.tiny,
        }
        return sections | {key: value for key, value in optional.items() if value}

    @property
    def text(self) -> str:
        """The resolved config as Python source that `read_config` reads again as an equal config."""
        packages = ", ".join(f"{name} {version}" for name, version in installed(PACKAGES_IN_TEXT).items())
        lines = [
            f"# Resolved from {shown(self.path)}",
            f"# git commit: {git_state()['commit'] or 'none'}",
            f"# versions: {packages}",
            "",
        ]
        lines += [f"{key} = {source_of(value)}" for key, value in self.as_dict().items()]
        return "\n".join(lines) + "\n"


def _replaced_in(section: Any, keys: list[str], value: Any) -> Any:
    """A dataclass or dict with the value below `keys` replaced."""
    if isinstance(section, Mapping):
        inner = _replaced_in(section[keys[0]], keys[1:], value) if keys[1:] else value
        return {**section, keys[0]: inner}
    inner = _replaced_in(getattr(section, keys[0]), keys[1:], value) if keys[1:] else value
    return replace(section, **{keys[0]: inner})
