"""Benchmark of the memory of a merge: a random model in bf16 in shards, with a LoRA of rank 8.

python scripts/bench/merge_memory.py --model medgemma-4b --shard-megabytes 5000

Another process writes the checkpoint tensor by tensor, so that its memory is not included. The output is the peak
memory of this process before the merge (Python, torch, transformers) and after it, and the limit.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parents[level]) for level in (1, 2)]

TARGETS = r".*language_model.*(q_proj|v_proj|down_proj)|model\.layers.*(q_proj|v_proj|down_proj)"
MODELS = ("llama-0.3b", "medgemma-4b")


def _model(name: str, tiny: Path) -> tuple[Any, str]:
    """Return a model on the meta device and its type; `tiny` is the checkpoint with its tokenizer."""
    import torch
    from transformers import AutoConfig, Gemma3ForConditionalGeneration, LlamaConfig, LlamaForCausalLM

    config: Any
    if name == "llama-0.3b":
        config = LlamaConfig(
            hidden_size=1024,
            intermediate_size=4096,
            num_hidden_layers=17,
            num_attention_heads=16,
            num_key_value_heads=4,
            vocab_size=32_000,
            tie_word_embeddings=True,
        )
        kind: Any = LlamaForCausalLM
    else:  # the dimensions of Gemma 3 4B's config.json
        config = AutoConfig.from_pretrained(tiny)
        text = dict(hidden_size=2560, intermediate_size=10_240, num_hidden_layers=34, num_attention_heads=8)
        text |= dict(num_key_value_heads=4, head_dim=256, query_pre_attn_scalar=256, vocab_size=262_208)
        text |= dict(sliding_window=1024, layer_types=None)
        vision = dict(hidden_size=1152, intermediate_size=4304, num_hidden_layers=27, num_attention_heads=16)
        values = config.to_dict()
        values["text_config"] |= text
        values["vision_config"] |= vision
        config, kind = type(config).from_dict(values), Gemma3ForConditionalGeneration
    config.dtype = "bfloat16"
    with torch.device("meta"):
        return kind(config), "medgemma" if name == "medgemma-4b" else "causal-lm"


def write(folder: Path, name: str, shard_bytes: int) -> None:
    """Write the checkpoint to `folder/base` and the adapter to `folder/adapter`."""
    import re

    import torch
    from peft import LoraConfig
    from random_weights import write_weights

    from mllm.export.settings import write_settings
    from mllm.models.adapters.files import write_adapter
    from mllm.tiny.checkpoints import write_tiny

    tiny = write_tiny("gemma3n" if name == "llama-0.3b" else "medgemma", folder / "tiny")
    model, kind = _model(name, tiny)
    base = folder / "base"
    base.mkdir(parents=True)
    write_weights(base, model, shard_bytes)
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(base)
    for file in tiny.iterdir():
        if file.name not in ("config.json", "model.safetensors", "generation_config.json"):
            (base / file.name).write_bytes(file.read_bytes())

    tensors = {}
    for module, layer in model.named_modules():
        if re.fullmatch(TARGETS, module) and isinstance(layer, torch.nn.Linear):
            key = f"base_model.model.{module}.lora_"
            tensors[f"{key}A.weight"] = 0.02 * torch.randn(8, layer.in_features)
            tensors[f"{key}B.weight"] = 0.02 * torch.randn(layer.out_features, 8)
    lora = LoraConfig(r=8, lora_alpha=16, target_modules=TARGETS, base_model_name_or_path=str(base))
    write_adapter(folder / "adapter", tensors, lora)
    write_settings(folder / "adapter", {"type": kind})


def measure(folder: Path, parity: bool) -> dict[str, Any]:
    """Merge, and return the export report and the peak memory before the merge."""
    import mllm.export  # noqa: F401
    import mllm.models.builder.builder  # noqa: F401
    from mllm.export.merge import merge
    from mllm.memory import peak_memory

    before = peak_memory()
    out = merge(str(folder / "adapter"), folder / "merged", overwrite=True, compare=parity)
    return {**json.loads((out / "export_report.json").read_text()), "before_bytes": before}


def main() -> None:
    """Measure a merge, and exit with an error above the limit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="llama-0.3b")
    parser.add_argument("--shard-megabytes", type=int, default=100)
    parser.add_argument("--parent", help="folder of the temporary files; needs twice the size of the model")
    parser.add_argument("--skip-parity", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.parent) as temporary:
        folder = Path(temporary)
        inputs = (folder, arguments.model, arguments.shard_megabytes * 10**6)
        writer = multiprocessing.get_context("spawn").Process(target=write, args=inputs)
        writer.start()
        writer.join()
        measured = measure(folder, not arguments.skip_parity)
    sizes = [shard["bytes"] for shard in measured["shards"]]
    limit = 2 * max(sizes) + 2 * 10**9
    print(f"{arguments.model}: {sum(sizes) / 1e9:.2f} GB in {len(sizes)} shards, the largest {max(sizes) / 1e9:.2f} GB")
    print(
        f"before the merge {measured['before_bytes'] / 1e9:.2f} GB, peak {measured['peak_memory_bytes'] / 1e9:.2f} GB"
    )
    print(f"limit (twice the largest shard and 2 GB): {limit / 1e9:.2f} GB")
    print({key: measured[key] for key in ("seconds", "parity", "dtype", "adapter_effect")})
    print({key: measured.get(key) for key in ("max_abs_difference", "allowed_difference", "largest_logit")})
    if measured["peak_memory_bytes"] > limit:
        sys.exit("the peak memory exceeds the limit")


if __name__ == "__main__":
    main()
