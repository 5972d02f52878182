"""Benchmark of the memory of a conversion of T5Gemma from Flax and to Flax, with random weights in bf16.

python scripts/bench/convert_flax.py --layers 4 12

Models with the same embeddings and different numbers of layers are converted, each in a process of its own. The output
is the peak memory of the process above that of its imports, for each model and direction.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

ROWS = 32_768
"""Rows of the embeddings: with a width of 1024, 67 MB in bf16. No other array is larger."""
DIRECTIONS = ("make", "from", "to")
MIB = 2**20


def main() -> None:
    """Convert the models of the command line and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, nargs="+", default=[4, 12], help="layers of encoder and decoder")
    parser.add_argument("--only", choices=DIRECTIONS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only is not None:
        convert(arguments.only, arguments.folder, arguments.layers[0])
        return
    print(
        "| layers | MB of weights | from Flax: MB | to Flax: MB | from Flax: CPU s | to Flax: CPU s |\n"
        + "|---" * 6
        + "|"
    )
    for layers in arguments.layers:
        with tempfile.TemporaryDirectory() as folder:
            results = [run(direction, Path(folder), layers) for direction in DIRECTIONS]
            size = sum(file.stat().st_size for file in Path(folder, "model").glob("*.safetensors"))
        (_, (memory_from, seconds_from), (memory_to, seconds_to)) = results
        cells = (
            layers,
            round(size / 1e6),
            *(round(value) for value in (memory_from, memory_to, seconds_from, seconds_to)),
        )
        print("| " + " | ".join(map(str, cells)) + " |", flush=True)


def run(direction: str, folder: Path, layers: int) -> tuple[float, float]:
    """Return the memory in MB and the CPU seconds of one conversion in another process."""
    command = [sys.executable, __file__, "--only", direction, "--folder", str(folder), "--layers", str(layers)]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    memory, seconds = map(float, output.splitlines()[-1].split())
    return memory, seconds


def convert(direction: str, folder: Path, layers: int) -> None:
    """Run one direction and print its memory above the imports in MB and its CPU seconds."""
    import time

    import torch
    from transformers import GemmaTokenizer

    from mllm.models.t5gemma.from_flax import convert_from_flax
    from mllm.models.t5gemma.layout import arrays
    from mllm.models.t5gemma.orbax import import_orbax, write_checkpoint
    from mllm.models.t5gemma.sizes import Dimensions, Stack
    from mllm.models.t5gemma.to_flax import convert_to_flax

    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests" / "support"))
    from gemma_pieces import write_pieces

    import_orbax()
    pieces = folder / "tokenizer.model"
    if direction == "make":
        write_pieces(pieces)
    # The tokenizer is an import, too: it takes memory that does not depend on the model.
    GemmaTokenizer.from_pretrained(folder, vocab_file=str(pieces))
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    if direction == "make":
        stack = Stack(layers=layers, width=1024, hidden=4096, heads=16, head_dim=64, kv_heads=16)
        found = {array.name: array for array in arrays(Dimensions(stack, stack, ROWS))}
        write_checkpoint(
            folder / "flax", found, lambda name: torch.randn(found[name].shape).bfloat16(), lambda size: None
        )
    elif direction == "from":
        convert_from_flax(folder / "flax", folder / "model", tokenizer=str(pieces))
    else:
        convert_to_flax(folder / "model", folder / "back")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print((peak - before) * 1024 / 1e6, time.process_time() - start)


if __name__ == "__main__":
    main()
