"""How much memory a merge takes: a random LLaMA in bf16 is written in shards, given a LoRA, and merged with `mllm`.

python scripts/bench/merge_memory.py --megabytes 600 --shard-megabytes 100

Prints the peak of this process before the merge (Python, torch, transformers) and after it, and the report's figures.
The checkpoint is written by a process of its own, whose memory does not count.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

WIDTH, LAYERS_PER_MB = 512, 1 / 7.1
"""A LLaMA layer of this width, 4 x as wide inside, has 3.5 million numbers."""


def write(folder: Path, megabytes: int, shard_megabytes: int) -> None:
    """A random checkpoint of about that size, with the tokenizer of a tiny Gemma, and an adapter of rank 8 for it."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from mllm.testing.tiny import write_tiny

    config = LlamaConfig(
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=max(1, int((megabytes - 16) * LAYERS_PER_MB)),
        num_attention_heads=8,
        num_key_value_heads=4,
        vocab_size=16_000,
        tie_word_embeddings=True,
        dtype=torch.bfloat16,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(folder / "base", max_shard_size=f"{shard_megabytes}MB")
    AutoTokenizer.from_pretrained(write_tiny("gemma3n", folder / "tiny")).save_pretrained(folder / "base")
    lora = LoraConfig(
        r=8,
        target_modules=["q_proj", "v_proj", "down_proj"],
        init_lora_weights=False,
        base_model_name_or_path=str(folder / "base"),
    )
    adapted = get_peft_model(model, lora)
    adapted.peft_config["default"].base_model_name_or_path = str(folder / "base")
    adapted.save_pretrained(str(folder / "adapter"))
    (folder / "adapter" / "mllm.json").write_text('{"type": "causal-lm"}')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, help="where the files go; a temporary folder unless given")
    parser.add_argument("--megabytes", type=int, default=600)
    parser.add_argument("--shard-megabytes", type=int, default=100)
    parser.add_argument("--json", action="store_true", help="print one line of JSON")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        writer = multiprocessing.get_context("spawn").Process(
            target=write, args=(folder, arguments.megabytes, arguments.shard_megabytes)
        )
        writer.start()
        writer.join()
        measured = measure(folder)
    if arguments.json:
        print(json.dumps(measured))
        return
    sizes = [shard["bytes"] for shard in measured["shards"]]
    bound = 2 * max(sizes) + 2e9
    print(f"{len(sizes)} shards, {sum(sizes) / 1e6:.0f} MB, the largest {max(sizes) / 1e6:.0f} MB")
    print(
        f"peak {measured['peak_memory_bytes'] / 1e6:.0f} MB, before the merge {measured['before_bytes'] / 1e6:.0f} MB"
    )
    print(f"twice the largest shard and 2 GB: {bound / 1e6:.0f} MB; {measured['seconds']} s")


def measure(folder: Path) -> dict:
    """Merges, and gives the report with the peak of memory before it and what was added."""
    import mllm.export  # noqa: F401
    import mllm.models.builder.builder  # noqa: F401
    from mllm.export.report import peak_memory
    from mllm.pipeline.merge import merge

    before = peak_memory()
    out = merge(str(folder / "adapter"), folder / "merged", replaces=True)
    report = json.loads((out / "export_report.json").read_text())
    return {**report, "before_bytes": before, "added_bytes": report["peak_memory_bytes"] - before}


if __name__ == "__main__":
    main()
