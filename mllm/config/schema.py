"""Schema of a config: one frozen dataclass for each section, with a docstring for each key.

Paths of checkpoints, data and `output_dir` are relative to the current directory; paths of bases are relative to the
file that names them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from mllm.config.hardware import git_state, installed
from mllm.config.origins import Origins, display_path
from mllm.config.source import source_of

SPLITS = ("train", "validation", "test")
PACKAGES_IN_TEXT = ("torch", "transformers", "tokenizers", "peft", "bitsandbytes")


def _limit(default: Any, **bounds: float) -> Any:
    """Return a dataclass field with a default (MISSING: required) and bounds of its value; see `broken_bound`."""
    return field(default=default, metadata=bounds)


@dataclass(frozen=True)
class ModelArgs:
    """Checkpoint and trainable parameters; some model types have further keys."""

    type: str
    """Model type: an entry of the registry MODELS."""
    model_name_or_path: str
    """Folder of a checkpoint, or its name on the Hugging Face Hub."""
    adapter_path: str | None = None
    """A LoRA adapter to start from: a folder or a name on the Hub."""
    merge_lora: bool = False
    """Merge the starting adapter into the weights before training; full-precision weights only."""
    load_in_4bit: bool = False
    """NF4 with double quantization (bitsandbytes)."""
    load_in_8bit: bool = False
    """LLM.int8 (bitsandbytes)."""
    lora_r: int | None = _limit(16, minimum=1)
    """Rank of the trained LoRA; None: the rank of `adapter_path`."""
    lora_alpha: float | None = _limit(None, above=0)
    """The update is scaled by lora_alpha / lora_r (/ sqrt(lora_r) with `use_rslora`); None: equal to `lora_r`."""
    lora_dropout: float = _limit(0.0, minimum=0, below=1)
    """Probability in [0, 1) with which an input of the LoRA is dropped in training."""
    trainable: str | dict[str, Any] = "lora"
    """Trained weights besides heads and added tokens. 'lora': a LoRA (see `lora_target`). 'full': all weights, in fp32.
    A dict trains only the parts that it names: `{'language': 'lora', 'vision': 'full', 'projector': 'full'}`;
    `{'language': {'last_layers': 4}}` trains the last 4 layers in full."""
    lora_target: str = "language"
    """'language', 'vision', 'all', or a regular expression that is matched on full module names."""
    use_rslora: bool = False
    """Rank-stabilized scaling (arXiv:2312.03732)."""
    use_dora: bool = False
    """Weight-decomposed LoRA (arXiv:2402.09353)."""
    from_scratch: bool = False
    """Start from new random weights of the architecture in the checkpoint's config.json; its weights are not read."""
    init_seed: int = _limit(0, minimum=0)
    """Seed of the new weights with `from_scratch`."""
    image_size: int | None = _limit(None, minimum=1)
    """Height and width in pixels of images for the vision tower; None: those of the checkpoint."""
    image_token_len: int | None = _limit(None, minimum=1)
    """Number of tokens of one image in the language model; None: that of the checkpoint."""
    max_length: int = _limit(1024, minimum=1)
    """Maximum number of tokens of a sample with its images; longer samples are cut, never inside an image."""
    turn_end: str | None = None
    """Text at the end of a turn of the assistant, for chat templates without one; None: read from the template."""
    system: str | None = None
    """System text put before every conversation that has none."""
    chat_template: str | None = None
    """Jinja template of a conversation; None: that of the checkpoint, which a pretrained base lacks."""
    template_args: dict[str, Any] = field(default_factory=dict)
    """Variables of the chat template, such as `enable_thinking=False` for Qwen3; written into the exported template."""
    attn_implementation: str | None = None
    """'eager', 'sdpa' or 'flash_attention_2'; None: transformers chooses. With `packing` or `share_images`: 'sdpa' or
    'flex_attention'; None: chosen at the start, with the reason in the log."""
    trust_remote_code: bool = False
    """Run Python code that comes with the checkpoint."""
    heads: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Heads by name (box, mask, measures): `type`, an entry of HEADS, and its options."""
    box_format: dict[str, Any] | None = None
    """Text format of boxes: `type`, an entry of BOX_FORMATS, and its options; None: one token per object with heads,
    else normalized_text."""
    pad_to_square: bool | None = None
    """Pad images to a square before the processor resizes them; None: the type decides."""
    fuse_vision_layers: bool | None = None
    """Feed a learned mixture of all vision layers to the projector instead of one; None: the type decides."""
    part: Literal["vision"] | None = None
    """'vision': load the vision tower and its projector alone, without the language model; None: the whole model."""
    train_vision: bool = False
    """part='vision': train the whole vision tower in fp32 instead of a LoRA in it."""


@dataclass(frozen=True)
class DataArgs:
    """Datasets, batches and evaluation of answers."""

    train: dict[str, Any] | None = None
    """Training split: `type`, an entry of the registry DATASETS, and the keyword arguments of that class."""
    validation: dict[str, Any] | None = None
    """Split whose loss is computed during training; None: no validation."""
    test: dict[str, Any] | None = None
    """Split that is evaluated after training; None: no evaluation."""
    on_error: Literal["raise", "skip"] = "raise"
    """Handling of unreadable rows: 'raise' ends the run, 'skip' counts them and lists them in the run folder."""
    tokens_per_micro_batch: int | Literal["auto"] | None = _limit(None, minimum=1)
    """Maximum number of padded tokens in one forward pass; None: per_device_train_batch_size samples. 'auto': the whole
    update (on a CPU per_device_train_batch_size samples), halved whenever memory runs out; the update is computed again
    and does not change."""
    packing: bool = False
    """Compute the samples of a forward pass as one row without padding, where each attends to itself only. Losses and
    gradients do not change."""
    share_images: bool = False
    """Compute the tokens of an image once for all questions about it in an update. Shuffles images instead of rows, so
    that their questions are in the same update. Losses and gradients of an update do not change."""
    vision_cache: bool = True
    """Compute the features of each image once and store them in `exp/vision_cache`, where the vision tower is frozen
    and images do not change. Results stay equal. Off in private runs unless a config sets it."""
    vision_cache_gb: float = _limit(20.0, above=0)
    """Maximum size of `exp/vision_cache` in gigabytes; features of models that were not used for the longest time are
    removed first."""
    compute_metric: str | list[str] | None = None
    """Metrics of the answers to the test split: one or several entries of the registry METRICS."""
    strata: str | list[str] | None = None
    """Columns by whose values the figures of the test split are divided: `['sex', 'age:18,40,65', 'modality', 'task']`.
    Numbers after a column are the bounds of its bins; without them, many different numbers are divided at their
    quartiles."""
    compute_untrained: bool = False
    """Evaluate the test split before training as well. `metrics.json` then has the paired differences."""
    gen_kwargs: dict[str, Any] = field(default_factory=dict)
    """Options of the answers to the test split; see the next table."""

    @property
    def columns(self) -> list[str]:
        """The columns in `strata`."""
        columns = self.strata or []
        return [columns] if isinstance(columns, str) else columns

    @property
    def metrics(self) -> list[str]:
        """The names in `compute_metric`."""
        names = self.compute_metric or []
        return [names] if isinstance(names, str) else names


@dataclass(frozen=True)
class GenerationArgs:
    """Options of the answers to the test split."""

    max_new_tokens: int = _limit(128, minimum=1)
    """Maximum number of tokens of an answer."""
    batch_size: int = _limit(4, minimum=1)
    """Number of questions that are answered together; models that predict measures: 8."""
    do_sample: bool = False
    """Sample tokens; False: always take the most probable token."""
    temperature: float = _limit(1.0, above=0)
    """do_sample: divisor of the logits."""
    top_p: float = _limit(1.0, above=0, maximum=1)
    """do_sample: sample from the most probable tokens with this total probability."""
    top_k: int = _limit(0, minimum=0)
    """do_sample: sample from this number of most probable tokens; 0: all."""
    repetition_penalty: float = _limit(1.0, above=0)
    """Above 1: tokens that are already in the answer become less probable (arXiv:1909.05858)."""
    seed: int = _limit(0, minimum=0)
    """do_sample: seed of the samples."""
    share_images: bool = True
    """Compute the tokens of an image once for all questions about it, for architectures with which this is exact
    (`config/FAMILIES.md`)."""
    scoring: Literal["generation", "options"] = "generation"
    """'options': generate no text; the answer is the most likely option of the question, with probabilities."""
    choices: list[str] = field(default_factory=list)
    """scoring='options': the options of questions that list none, such as `['yes', 'no']`."""
    scales: list[int] = field(default_factory=list)
    """`mllm evaluate`: answer with images of each of these sizes in pixels (`[448, 896]`) and combine the answers: the
    mean of the probabilities with scoring='options', otherwise a vote. Empty: `image_size` alone."""


@dataclass(frozen=True)
class StoppingArgs:
    """Keys of `training_args` in addition to the arguments of `transformers.TrainingArguments`."""

    early_stopping_patience: int | None = _limit(None, minimum=1)
    """Stop after this many evaluations in a row without a lower validation loss; None: no early stopping."""
    early_stopping_threshold: float = _limit(0.0, minimum=0)
    """Minimum decrease of the validation loss that counts as lower."""


@dataclass(frozen=True)
class ExportArgs:
    """Files written at the end of training in addition to the adapter."""

    merged: bool = False
    """Write the whole model with the adapter merged into its weights."""


@dataclass(frozen=True)
class DistillArgs:
    """Distillation settings."""

    teacher: ModelArgs
    """Frozen teacher model: keys of `model_args`, without LoRA and heads."""
    cache: bool = True
    """Compute the features of a vision teacher once for each image, store them on disk, and unload the teacher."""
    cache_folder: str = "exp/teacher_cache"
    """Folder of the stored features. Runs share it; features of different teachers or settings have different keys."""


@dataclass(frozen=True)
class PrivacyArgs:
    """Settings of private training (DP-SGD, arXiv:1607.00133)."""

    target_delta: float = _limit(MISSING, above=0, below=1)
    """Delta of the guarantee (epsilon, delta); below 1 / N for N units in the training data."""
    target_epsilon: float | None = _limit(None, above=0)
    """Upper bound of epsilon, from which the noise is computed; None: `noise_multiplier` is set instead."""
    noise_multiplier: float | None = _limit(None, above=0)
    """Standard deviation of the noise on the sum of clipped gradients, as a multiple of `clip_norm`."""
    clip_norm: float = _limit(1.0, above=0)
    """L2 norm to which the gradient of one unit is clipped."""
    clipping: Literal["flat", "per_layer"] = "flat"
    """'flat': clip the gradient of a unit as one vector. 'per_layer': clip each layer to clip_norm / sqrt(layers)."""
    unit: Literal["sample", "patient"] = "sample"
    """Unit of privacy: one sample, or all samples of one patient."""
    max_records_per_patient: int | None = _limit(None, minimum=1)
    """unit='patient': maximum number of samples of one patient in an update; None: all."""
    physical_batch_size: int = _limit(8, minimum=1)
    """Samples in one forward pass. It changes memory and time, not the update."""
    accountant: Literal["prv", "rdp"] = "prv"
    """Privacy accountant: 'prv' (arXiv:2106.02848) is tight, 'rdp' (arXiv:1908.10530) is faster and looser."""
    public_validation: bool = False
    """True if the validation split is public, so that its loss may select checkpoints and learning rates."""
    checkpoint_below: list[float] = field(default_factory=list)
    """With `public_validation`: save a checkpoint when the validation loss first falls below each value."""
    secure_mode: bool = False
    """Draw noise from the cryptographic generator of the system; False: from a fast generator with a secret seed."""
    test_noise_seed: int | None = None
    """Seed of the noise, for tests only. The guarantee does not hold if the seed is known."""


@dataclass(frozen=True)
class RunConfig:
    """A checked config with all defaults. Two configs are equal if they describe the same run."""

    model_args: ModelArgs
    data_args: DataArgs
    training_args: dict[str, Any]
    """Arguments of `transformers.TrainingArguments` and of `StoppingArgs`; `output_dir` may be None."""
    objectives: dict[str, dict[str, Any]]
    """Name -> `type`, an entry of the registry OBJECTIVES, and that class's keyword arguments."""
    name: str
    """Name of the config file without its suffix; runs are written to `exp/<name>/`."""
    path: Path = field(compare=False)
    tiny: bool = False
    """True if checkpoints were replaced by tiny ones (`--tiny`)."""
    hardware: dict[str, Any] = field(default_factory=dict)
    """`bf16=True`: use bf16 on a CPU, where it is slow, instead of fp32."""
    export_args: ExportArgs = field(default_factory=ExportArgs)
    distill_args: DistillArgs | None = None
    privacy_args: PrivacyArgs | None = None
    """None: no differential privacy."""
    custom_imports: dict[str, Any] = field(default_factory=dict)
    """`imports`: modules that register datasets and other parts; `folders`: their folders."""
    is_fp16: bool = field(default=False, compare=False)
    """True if fp16=True was replaced in `training_args` by the precision of `Hardware`, for a run."""
    origins: Origins = field(default_factory=Origins, compare=False, repr=False)
    """File and line of every key, for messages."""

    def origin(self, *key: str) -> str:
        """Return the `FILE:LINE` that wrote a key: `config.origin('model_args', 'lora_r')`."""
        return self.origins.of(*key)

    def is_written(self, *key: str) -> bool:
        """Return True if a file or the command line wrote a key, and False if it has its default."""
        return key in self.origins.written

    def replaced(self, **changes: Any) -> RunConfig:
        """Return a copy with other values: `config.replaced(**{'model_args.lora_r': 8, 'tiny': True})`."""
        config = self
        for dotted, value in changes.items():
            section, *keys = dotted.split(".")
            if keys:
                value = _replaced_in(getattr(config, section), keys, value)
            config = replace(config, **{section: value})
        return config

    def as_dict(self) -> dict[str, Any]:
        """Return the sections of the config with all defaults."""
        sections = {
            "model_args": asdict(self.model_args),
            "data_args": asdict(self.data_args),
            "training_args": {**self.training_args, "fp16": True} if self.is_fp16 else self.training_args,
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
        """Python source of the config with all defaults; `read_config` reads it as an equal config."""
        packages = ", ".join(f"{name} {version}" for name, version in installed(PACKAGES_IN_TEXT).items())
        lines = [
            f"# Resolved from {display_path(self.path)}",
            f"# git commit: {git_state()['commit'] or 'none'}",
            f"# versions: {packages}",
            "",
        ]
        lines += [f"{key} = {source_of(value)}" for key, value in self.as_dict().items()]
        return "\n".join(lines) + "\n"


def _replaced_in(section: Any, keys: list[str], value: Any) -> Any:
    """Return a copy of a dataclass or dict with the value at `keys` replaced."""
    if isinstance(section, Mapping):
        inner = _replaced_in(section[keys[0]], keys[1:], value) if keys[1:] else value
        return {**section, keys[0]: inner}
    inner = _replaced_in(getattr(section, keys[0]), keys[1:], value) if keys[1:] else value
    return replace(section, **{keys[0]: inner})
