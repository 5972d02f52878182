"""Export of a model or an adapter as GGUF files; an adapter is merged into its base before."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from mllm.errors import ConfigError, nearest_names
from mllm.export.gguf.k_quants import K_QUANTS, check_k_quant, export_k_quant
from mllm.export.gguf.lora import export_adapter
from mllm.export.gguf.mmproj import check_mmproj, export_mmproj
from mllm.export.gguf.model import export_model, open_family, refuse_settings
from mllm.export.gguf.writer import TYPES
from mllm.export.merge import merge
from mllm.export.saved_model import adapter_args, local_name
from mllm.export.settings import read_settings
from mllm.models.backbone.checkpoint_folder import find_checkpoint
from mllm.models.builder.build_options import checkpoint_of
from mllm.run_files import MODEL_CONFIG


@dataclass(frozen=True)
class Source:
    """A model, or an adapter with its base."""

    base: str
    """The folder of the model; the base of an adapter can be a name on the Hugging Face Hub."""
    adapter: Path | None = None


def export_gguf(
    model: str,
    out: Path,
    kind: str,
    *,
    mmproj: Path | None = None,
    base: str | None = None,
    precision: str = "fp32",
) -> list[Path]:
    """Write the language model in the folder `model` to `out`, and its vision tower to `mmproj` if a path is passed.

    `kind` is the type of the matrices. `base` and `precision` are options of the merge of an adapter, which is written
    to a temporary folder beside `out`. Raises `ConfigError` if llama.cpp cannot run the model, before any merge.
    """
    if kind not in (*TYPES, *K_QUANTS):
        known = [*TYPES, *K_QUANTS]
        similar = "".join(f": did you mean '{name}'?" for name in nearest_names(kind, known, count=1))
        raise ConfigError(f"--type {kind} is unknown{similar}; known are {', '.join(known)}")
    source = find_source(model, base)
    family, _ = open_family(source.base)
    if kind in K_QUANTS:
        check_k_quant(family, kind)
    if mmproj is not None:
        check_mmproj(source.base)
    with _whole_model(source, out, precision) as folder:
        export = export_k_quant if kind in K_QUANTS else export_model
        written = [export(folder, out, kind, name=out.stem if source.adapter else None)]
        if mmproj is not None:
            written.append(export_mmproj(folder, mmproj, kind, name=mmproj.stem if source.adapter else None))
    return written


def export_lora(model: str, out: Path, kind: str, *, base: str | None = None) -> Path:
    """Write only the adapter in the folder `model` to `out`; for `base` see `find_source`.

    Raises `ConfigError` if llama.cpp cannot apply it to the base.
    """
    source = find_source(model, base)
    if source.adapter is None:
        raise ConfigError(f"--model '{model}' is a whole model, and --format gguf-lora writes adapters; use gguf")
    return export_adapter(source.adapter, source.base, out, kind)


def find_source(model: str, base: str | None = None) -> Source:
    """Return the model or adapter in the folder `model`, which can also be the run folder of an adapter.

    `base` replaces the base that the adapter names. Raises `ConfigError` for other folders, and for models that GGUF
    cannot represent.
    """
    folder = Path(local_name(model))
    if not folder.is_dir():
        raise ConfigError(f"--model '{model}' does not exist; download it first: hf download ORG/NAME --local-dir DIR")
    if (folder / MODEL_CONFIG).is_file():
        refuse_settings(model, read_settings(folder))
        return Source(find_checkpoint(str(folder)))
    args = adapter_args(str(folder), base)
    assert args.adapter_path is not None
    adapter = Path(args.adapter_path)
    refuse_settings(model, read_settings(adapter))
    return Source(checkpoint_of(args), adapter)


@contextmanager
def _whole_model(source: Source, out: Path, precision: str) -> Iterator[Path]:
    """Yield the folder of the whole model; an adapter is merged into a temporary folder, removed after the block."""
    if source.adapter is None:
        yield Path(source.base)
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as temporary:
        yield merge(str(source.adapter), Path(temporary, "merged"), base=source.base, precision=precision)


def start_command(form: str, written: Sequence[Path]) -> str:
    """Return the llama.cpp command that runs the `written` files of the format `form` ('gguf' or 'gguf-lora')."""
    if form == "gguf-lora":
        return f"llama-cli -m BASE.gguf --lora {written[0]}"
    if len(written) > 1:
        return f"llama-mtmd-cli -m {written[0]} --mmproj {written[1]} --image IMAGE -p QUESTION"
    return f"llama-cli -m {written[0]}"
