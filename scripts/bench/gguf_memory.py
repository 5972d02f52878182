"""Benchmark of the memory of an export to GGUF: a random model with the shape of Gemma 3 270M.

python scripts/bench/gguf_memory.py --type q8_0

Separate processes write the checkpoint (262,144 tokens, 18 layers of width 640, bf16), export it, and compare llama.cpp
with transformers. The output is the peak memory of the exporting process after its imports and at its end. The limit is
1.2 GB, except for K-quants: llama.cpp computes them and maps the whole unquantized file. Without llama.cpp the
comparison is skipped.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

LIMIT = 1_200_000_000
"""Maximum memory of the exporting process in bytes."""
TOKENS = 262_144
LETTERS, MAX_LENGTH = set("▁abcdefghilmnoprstu"), 8
"""Characters of random pieces, and the maximum length of a piece."""
K_QUANTS = ("q6_k", "q4_k_m")
TYPES = ("f32", "f16", "bf16", "q8_0", "q4_0", *K_QUANTS)


def add_pieces(path: Path, size: int) -> None:
    """Add random pieces to the tokenizer.json at `path` until it has `size`; each pair that forms a piece is a merge.

    transformers converts SentencePiece models in the same way. With few letters there are about two merges per piece.
    """
    fast = json.loads(path.read_text(encoding="utf-8"))
    vocabulary = fast["model"]["vocab"]
    parts = [piece for piece in vocabulary if set(piece) <= LETTERS]
    rng, letters = random.Random(0), sorted(LETTERS)
    while len(vocabulary) < size:
        piece = rng.choice(parts) + rng.choice(letters)
        if len(piece) <= MAX_LENGTH and piece not in vocabulary:
            vocabulary[piece] = len(vocabulary)
            parts.append(piece)
    special = {token["content"] for token in fast["added_tokens"]}
    fast["model"]["merges"] = [
        [piece[:cut], piece[cut:]]
        for piece in vocabulary
        if piece not in special and not piece.startswith("<0x")
        for cut in range(1, len(piece))
        if piece[:cut] in vocabulary and piece[cut:] in vocabulary
    ]
    path.write_text(json.dumps(fast, ensure_ascii=False), encoding="utf-8")


def write_checkpoint(folder: Path) -> None:
    """Write the checkpoint with the dimensions in config.json of Gemma 3 270M."""
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    from mllm.tiny.checkpoints import write_tiny
    from mllm.tiny.parts import random_model

    tiny = write_tiny("gemma3n", folder.with_name("tiny"))
    config = Gemma3TextConfig(
        hidden_size=640,
        intermediate_size=2048,
        num_hidden_layers=18,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=256,
        query_pre_attn_scalar=256,
        max_position_embeddings=32_768,
        sliding_window=512,
        vocab_size=TOKENS,
        bos_token_id=2,
        eos_token_id=1,
        pad_token_id=0,
    )
    random_model(Gemma3ForCausalLM, config, 0).bfloat16().save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (folder / name).write_bytes((tiny / name).read_bytes())
    add_pieces(folder / "tokenizer.json", TOKENS)


def export(folder: Path, out: Path, kind: str) -> dict[str, Any]:
    """Export as `mllm export` does, and return the seconds and the peak memory in bytes before and after."""
    import mllm.export.gguf.k_quants  # noqa: F401
    from mllm.export.gguf.export import export_gguf
    from mllm.memory import peak_memory

    before, started = peak_memory(), time.perf_counter()
    export_gguf(str(folder), out, kind)
    return {"before": before, "peak": peak_memory(), "seconds": time.perf_counter() - started}


def compare_logits(folder: Path, out: Path) -> str:
    """Return a comparison of the logits of llama.cpp and transformers for a prompt."""
    import numpy as np
    import torch
    from llama_cpp import Llama
    from transformers import AutoModelForCausalLM, AutoTokenizer

    llama = Llama(str(out), n_ctx=128, logits_all=True, verbose=False, type_k=0, type_v=0)
    prompt = "Is the heart enlarged? The cardiac silhouette is normal."
    ids = llama.tokenize(prompt.encode(), add_bos=True, special=True)
    is_equal = ids == AutoTokenizer.from_pretrained(folder)(prompt)["input_ids"]
    llama.eval(ids)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.inference_mode():
        expected = model(input_ids=torch.tensor([ids])).logits[0].numpy()
    logits = np.asarray(llama.scores)[: len(ids)]
    equal = int((logits.argmax(-1) == expected.argmax(-1)).sum())
    return (
        f"llama.cpp: {len(ids)} tokens, {'equal to' if is_equal else 'DIFFERENT FROM'} those of transformers; the most "
        f"probable next token is equal at {equal} of {len(ids)} positions; logits (standard deviation "
        f"{expected.std():.2f}) differ by {np.abs(logits - expected).max():.1e} at most"
    )


def in_new_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """Run `function` in a new process and return its result."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def main() -> None:
    """Measure the export to each type, and exit with an error above the limit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--type", choices=TYPES, nargs="+", default=["q8_0"])
    parser.add_argument("--parent", help="folder of the temporary files; needs up to 2.5 GB")
    arguments = parser.parse_args()
    is_within_limit = True
    with tempfile.TemporaryDirectory(dir=arguments.parent) as temporary:
        folder = Path(temporary, "model")
        in_new_process(write_checkpoint, folder)
        for kind in arguments.type:
            out = Path(temporary, f"{kind}.gguf")
            measured = in_new_process(export, folder, out, kind)
            print(
                f"{kind}: {out.stat().st_size / 1e6:,.0f} MB in {measured['seconds']:.0f} s; memory after the imports "
                f"{measured['before'] / 1e9:.2f} GB, peak {measured['peak'] / 1e9:.2f} GB"
            )
            try:
                print(in_new_process(compare_logits, folder, out))
            except ModuleNotFoundError as missing:
                print(f"comparison skipped: {missing}")
            out.unlink()
            is_within_limit = is_within_limit and (measured["peak"] <= LIMIT or kind in K_QUANTS)
    if not is_within_limit:
        sys.exit(f"the peak memory exceeds the limit of {LIMIT / 1e9} GB")


if __name__ == "__main__":
    main()
