"""Writes a model, what it sees with, or a LoRA as GGUF files for llama.cpp and Ollama.

python mllm/pipeline/export.py --model exp/X/latest/adapter --format gguf --out answers.gguf --type q8_0
"""

from __future__ import annotations

import argparse
import importlib.util
import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

if not __package__:  # started as a file: the checkout is not on the path yet
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from mllm.errors import ConfigError, hint
from mllm.pipeline import matformer
from mllm.pipeline.command import command_parser, quiet_progress, run_command

logger = logging.getLogger("mllm.pipeline.export")

FORMATS = ("gguf", "gguf-lora")


def main(argv: Sequence[str]) -> int:
    """Exports as the command line says and prints what was written, its size, and how to start it."""
    arguments = parse(argv)
    if is_slice(arguments):
        return cut(arguments)
    if importlib.util.find_spec("gguf") is None:
        raise ConfigError("GGUF files are written with the package gguf, which is missing: pip install -e '.[gguf]'")
    quiet_progress()
    from mllm.config.hardware import check_packages

    check_packages()
    out, mmproj = Path(arguments.out), Path(arguments.mmproj) if arguments.mmproj else None
    for option, path in (("--out", out), ("--mmproj", mmproj)):
        if path is not None and path.exists():
            raise ConfigError(f"{option} {path} is there already; choose another name")
    if arguments.format == "gguf-lora":
        written = [export_lora(arguments.model, out, arguments.type or "f16", base=arguments.base)]
    else:
        kind = arguments.type or "q8_0"
        base, precision = arguments.base, arguments.precision
        written = export_gguf(arguments.model, out, kind, mmproj=mmproj, base=base, precision=precision)
    for path in written:
        print(f"{path}  {path.stat().st_size / 1e6:,.1f} MB")
    print(f"start it with: {start_line(arguments.format, written)}")
    return 0


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = command_parser("export", "Write a model or an adapter as GGUF files, which llama.cpp and Ollama run.")
    parser.add_argument("--model", required=True, help="a model's folder, or an adapter's: that is merged on the way")
    parser.add_argument(
        "--format",
        choices=FORMATS,
        default="gguf",
        help="gguf (default): the whole language model; gguf-lora: the adapter alone, to be put on its base's GGUF",
    )
    parser.add_argument("--out", required=True, help="the file to write; it must not be there yet")
    parser.add_argument(
        "--type",
        help="how matrices are stored: f32, f16, bf16, q8_0 (default), q5_1, q5_0, q4_1, q4_0, or, where llama.cpp is "
        "installed, q4_k_m and other K-quants; an adapter: f32, f16 (default), bf16",
    )
    parser.add_argument("--mmproj", help="for Gemma 3 with images: a second file, with the part that sees")
    parser.add_argument("--base", help="the base model, where it is not the one that the adapter names")
    parser.add_argument(
        "--precision",
        choices=("fp32", "bf16"),
        default="fp32",
        help="what an adapter is merged in: fp32 is exact, bf16 takes half the memory and rounds",
    )
    matformer.add_arguments(parser.add_argument_group("a slice of a Gemma 3n, as a model's folder instead of GGUF"))
    return parser.parse_args(argv)


def is_slice(arguments: argparse.Namespace) -> bool:
    """Whether a smaller model is to be cut out of the model."""
    return bool(arguments.matformer or arguments.ffn_widths or arguments.drop_layers)


def cut(arguments: argparse.Namespace) -> int:
    """Writes a slice of the model as a folder; raises `ConfigError` where options of GGUF are given too."""
    for option in ("type", "mmproj", "base"):
        if vars(arguments)[option]:
            raise ConfigError(
                f"--{option} is for GGUF files, and a slice is written as a model's folder: leave it out, and export "
                "that folder afterwards"
            )
    return matformer.run(arguments)


def export_gguf(
    model: str,
    out: Path,
    kind: str,
    *,
    mmproj: Path | None = None,
    base: str | None = None,
    precision: str = "fp32",
) -> list[Path]:
    """Writes the language model in the folder `model` to `out` and, if given, its vision tower to `mmproj`.

    An adapter is merged into its base first, in a temporary folder beside `out`. Raises `ConfigError` with the reason
    where llama.cpp cannot run the model, before anything is merged.
    """
    from mllm.export.gguf.k_quants import K_QUANTS, check_k_quant, export_k_quant
    from mllm.export.gguf.mmproj import check_mmproj, export_mmproj
    from mllm.export.gguf.model import export_model, open_family
    from mllm.export.gguf.writer import TYPES

    if kind not in (*TYPES, *K_QUANTS):
        known = ", ".join([*TYPES, *K_QUANTS])
        raise ConfigError(f"--type {kind} is unknown{hint(kind, [*TYPES, *K_QUANTS])}; known are {known}")
    source = find_source(model, base)
    family, _ = open_family(source.base)
    if kind in K_QUANTS:
        check_k_quant(family, kind)
    if mmproj is not None:
        check_mmproj(source.base)
    with _whole(source, out, precision) as folder:
        export = export_k_quant if kind in K_QUANTS else export_model
        written = [export(folder, out, kind, name=out.stem if source.adapter else None)]
        if mmproj is not None:
            written.append(export_mmproj(folder, mmproj, kind, name=mmproj.stem if source.adapter else None))
    return written


def export_lora(model: str, out: Path, kind: str, *, base: str | None = None) -> Path:
    """Writes the adapter in the folder `model` alone to `out`; `base` as for `find_source`.

    Raises `ConfigError` with the reason where llama.cpp cannot put it on the base.
    """
    from mllm.export.gguf.lora import export_adapter

    source = find_source(model, base)
    if source.adapter is None:
        raise ConfigError(f"--model '{model}' is a whole model, and --format gguf-lora writes adapters; use gguf")
    return export_adapter(source.adapter, source.base, out, kind)


@dataclass(frozen=True)
class Source:
    """What is exported: a model, or an adapter with its base."""

    base: str
    """The folder of the model; an adapter's base may be a name on the Hugging Face Hub."""
    adapter: Path | None = None


def find_source(model: str, base: str | None = None) -> Source:
    """The model or adapter in the folder `model`, which may be the run folder around an adapter.

    `base` is the base of an adapter that names another one. Raises `ConfigError` where there is neither, and for
    adapters that fit no GGUF.
    """
    from mllm.export.gguf.model import refuse_settings
    from mllm.export.settings import read_settings
    from mllm.models.backbone.loading import find_checkpoint
    from mllm.predict.load import adapter_args, located

    folder = Path(located(model))
    if not folder.is_dir():
        raise ConfigError(f"--model '{model}' is no folder; download it first: hf download ORG/NAME --local-dir DIR")
    if (folder / "config.json").is_file():
        refuse_settings(model, read_settings(folder))
        return Source(find_checkpoint(str(folder)))
    arguments = adapter_args(str(folder), base)
    assert arguments.adapter_path is not None
    adapter = Path(arguments.adapter_path)
    refuse_settings(model, read_settings(adapter))
    return Source(find_checkpoint(arguments.model_name_or_path), adapter)


@contextmanager
def _whole(source: Source, out: Path, precision: str) -> Iterator[Path]:
    """The folder of the whole model; an adapter's is made for the time of the block."""
    from mllm.pipeline.merge import merge

    if source.adapter is None:
        yield Path(source.base)
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as temporary:
        yield merge(str(source.adapter), Path(temporary, "merged"), base=source.base, precision=precision)


def start_line(form: str, written: Sequence[Path]) -> str:
    """The command by which llama.cpp runs what was written."""
    if form == "gguf-lora":
        return f"llama-cli -m BASE.gguf --lora {written[0]}"
    if len(written) > 1:
        return f"llama-mtmd-cli -m {written[0]} --mmproj {written[1]} --image IMAGE -p QUESTION"
    return f"llama-cli -m {written[0]}"


if __name__ == "__main__":
    sys.exit(run_command(main))
