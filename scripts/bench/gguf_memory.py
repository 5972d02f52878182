"""How much memory an export to GGUF takes: a random model of the shape of Gemma 3 270M is written and read back.

python scripts/bench/gguf_memory.py --type q8_0

Each part has a process of its own: one writes the checkpoint (262,144 tokens, 18 layers of width 640, bf16), one
exports it, and one compares llama.cpp with transformers. What is printed: the peak of the exporting process after its
imports and at its end, and the bound of 1.2 GB that it must keep, but for K-quants: llama.cpp makes those, and maps the
whole unquantized file meanwhile. Without llama.cpp nothing is read back.
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

BOUND = 1_200_000_000
"""Bytes that the exporting process may hold at most."""
TOKENS = 262_144
LETTERS, LONGEST = set("▁abcdefghilmnoprstu"), 8
"""What random pieces consist of, and how many characters they have at most."""
K_QUANTS = ("q6_k", "q4_k_m")
TYPES = ("f32", "f16", "bf16", "q8_0", "q4_0", *K_QUANTS)


def grow(path: Path, size: int) -> None:
    """Gives the tokenizer.json at `path` random pieces until it has `size`; every pair that makes one is a merge.

    So does transformers with a SentencePiece model. Letters are few, so that there are about two merges for each piece.
    """
    fast = json.loads(path.read_text(encoding="utf-8"))
    vocabulary = fast["model"]["vocab"]
    parts = [piece for piece in vocabulary if set(piece) <= LETTERS]
    draw, letters = random.Random(0), sorted(LETTERS)
    while len(vocabulary) < size:
        piece = draw.choice(parts) + draw.choice(letters)
        if len(piece) <= LONGEST and piece not in vocabulary:
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


def write(folder: Path) -> None:
    """The checkpoint, in the dimensions of Gemma 3 270M's config.json."""
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    from mllm.tiny.checkpoints import write_tiny
    from mllm.tiny.parts import filled

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
    filled(Gemma3ForCausalLM, config, 0).bfloat16().save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (folder / name).write_bytes((tiny / name).read_bytes())
    grow(folder / "tokenizer.json", TOKENS)


def export(folder: Path, out: Path, kind: str) -> dict[str, Any]:
    """Exports as `mllm export` does; gives seconds and peaks."""
    import mllm.export.gguf.k_quants  # noqa: F401
    from mllm.export.export_report import peak_memory
    from mllm.export.gguf.export import export_gguf

    before, started = peak_memory(), time.perf_counter()
    export_gguf(str(folder), out, kind)
    return {"before": before, "peak": peak_memory(), "seconds": time.perf_counter() - started}


def read(folder: Path, out: Path) -> str:
    """What llama.cpp says after a prompt, against transformers."""
    import numpy as np
    import torch
    from llama_cpp import Llama
    from transformers import AutoModelForCausalLM, AutoTokenizer

    llama = Llama(str(out), n_ctx=128, logits_all=True, verbose=False, type_k=0, type_v=0)
    prompt = "Is the heart enlarged? The cardiac silhouette is normal."
    ids = llama.tokenize(prompt.encode(), add_bos=True, special=True)
    same = ids == AutoTokenizer.from_pretrained(folder)(prompt)["input_ids"]
    llama.eval(ids)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.inference_mode():
        expected = model(input_ids=torch.tensor([ids])).logits[0].numpy()
    found = np.asarray(llama.scores)[: len(ids)]
    agreed = int((found.argmax(-1) == expected.argmax(-1)).sum())
    return (
        f"llama.cpp reads it: {len(ids)} tokens, {'the same' if same else 'NOT THE SAME'} as transformers'; the "
        f"likeliest next token is the same at {agreed} of {len(ids)} places; logits (standard deviation "
        f"{expected.std():.2f}) differ by {np.abs(found - expected).max():.1e} at most"
    )


def fresh(function: Callable[..., Any], *arguments: Any) -> Any:
    """What `function` gives in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def main() -> None:
    """Writes, exports, reads and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--type", choices=TYPES, nargs="+", default=["q8_0"])
    parser.add_argument("--parent", help="the folder for the temporary files: up to 2.5 GB")
    arguments = parser.parse_args()
    kept = True
    with tempfile.TemporaryDirectory(dir=arguments.parent) as temporary:
        folder = Path(temporary, "model")
        fresh(write, folder)
        for kind in arguments.type:
            out = Path(temporary, f"{kind}.gguf")
            measured = fresh(export, folder, out, kind)
            print(
                f"{kind}: {out.stat().st_size / 1e6:,.0f} MB in {measured['seconds']:.0f} s; memory after the imports "
                f"{measured['before'] / 1e9:.2f} GB, peak {measured['peak'] / 1e9:.2f} GB"
            )
            try:
                print(fresh(read, folder, out))
            except ModuleNotFoundError as missing:
                print(f"not read back: {missing}")
            out.unlink()
            kept = kept and (measured["peak"] <= BOUND or kind in K_QUANTS)
    if not kept:
        sys.exit(f"the bound of {BOUND / 1e9} GB is not kept")


if __name__ == "__main__":
    main()
