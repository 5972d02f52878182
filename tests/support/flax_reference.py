"""T5Gemma of the package `gemma` in a process of its own, because TensorFlow, which it imports, stays in a process.

The process reads one request per line and answers with one line. Both are JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

ROWS = 640
INPUTS = [[106, 320, 200, 45, 111, 300, 500, 107, 250, 33, 90], [106, 9, 410, 77, 107, 0, 0, 0, 0, 0, 0]]
"""Tokens of two sources, the second one padded."""
TARGETS = [[2, 300, 41, 260, 512, 77, 130], [2, 111, 350, 9, 480, 200, 66]]
PROMPTS = ["<start_of_turn>user\nThe heart pumps blood.<end_of_turn>\n<start_of_turn>model\n", "Bonjour ! France"]
NEW_TOKENS = 12
WINDOW = 4
"""A small window, so that the attention of short texts is limited."""


class Reference:
    """The process with the Flax model."""

    def __init__(self) -> None:
        environment = {**os.environ, "JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def ask(self, name: str, **arguments: Any) -> Any:
        """Call a function of this module in the process, and return its value."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps([name, arguments]) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, f"the process with the Flax model ended with {self._process.wait()}"
        return json.loads(line)

    def close(self) -> None:
        self._process.communicate(timeout=60)


def _configs() -> Any:
    """Return the config of a small model: an encoder with one key per query, and a narrower decoder with fewer keys."""
    from dataclasses import replace

    from gemma.research.t5gemma import config, t5gemma

    small = config.GemmaPreset.GEMMA2_SMALL
    encoder = small.make_config(4, 64, 96, 4, 16, 4, bidirectional=True)
    decoder = small.make_config(2, 32, 80, 4, 8, 2, enable_cross_attention=True)
    return t5gemma.T5GemmaConfig(
        replace(encoder, num_embed=ROWS), replace(decoder, num_embed=ROWS, kv_embed_dim=encoder.embed_dim)
    )


def _model(window: int | None = None) -> Any:
    from dataclasses import replace

    import jax.numpy as jnp

    config = _configs()
    if window is not None:
        stacks = ("encoder_config", "decoder_config")
        config = replace(
            config, **{name: replace(getattr(config, name), sliding_window_size=window) for name in stacks}
        )
    return config.make("transformer", dtype=jnp.float32)


@cache
def _forward(window: int | None) -> Any:
    """Return the compiled model."""
    import jax

    return jax.jit(_model(window).apply)


def make(folder: str) -> None:
    """Write a random checkpoint, as `gemma.gm.ckpts.save_params` does.

    Variances are kept by all layers. Norms, which begin at zero, are random, too.
    """
    import jax
    import jax.numpy as jnp
    import numpy as np
    from orbax import checkpoint as ocp

    tokens = jnp.ones((1, 4), jnp.int32)
    shapes = jax.eval_shape(
        lambda key: _model().init(key, target_tokens=tokens, input_tokens=tokens), jax.random.key(0)
    )
    generator = np.random.default_rng(0)

    def draw(path: Any, value: Any) -> Any:
        is_table = "embedding" in jax.tree_util.keystr(path)
        scale = 0.1 if len(value.shape) == 1 else value.shape[1 if is_table else -2] ** -0.5
        return jnp.asarray(generator.normal(scale=scale, size=value.shape), jnp.float32)

    checkpointer = ocp.StandardCheckpointer()
    checkpointer.save(Path(folder).absolute(), jax.tree_util.tree_map_with_path(draw, shapes["params"]))
    checkpointer.wait_until_finished()


def run(folder: str, pieces: str) -> dict[str, Any]:
    """Return the logits and greedy answers of a checkpoint, read as `gemma.gm.ckpts.load_params` does."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from gemma.gm import text
    from gemma.research.t5gemma import Sampler
    from orbax import checkpoint as ocp

    checkpointer = ocp.StandardCheckpointer()
    tree = checkpointer.metadata(Path(folder).absolute()).item_metadata.tree
    kinds = jax.tree.map(lambda array: jax.ShapeDtypeStruct(array.shape, array.dtype), tree)
    params = checkpointer.restore(Path(folder).absolute(), kinds)

    def logits(window: int | None) -> Any:
        arguments = dict(input_tokens=jnp.asarray(INPUTS), target_tokens=jnp.asarray(TARGETS))
        return np.asarray(_forward(window)({"params": params}, **arguments).logits).tolist()

    tokenizer = text.Gemma2Tokenizer(path=pieces)
    sampler = Sampler(
        model=_model(), params=params, tokenizer=tokenizer, max_input_length=64, max_output_length=NEW_TOKENS
    )
    output = sampler.sample(PROMPTS, max_new_tokens=NEW_TOKENS, return_state=True)
    return {
        "logits": logits(None),
        "logits of the window": logits(WINDOW),
        "ids": [tokenizer.encode(prompt) for prompt in PROMPTS],
        "tokens": np.asarray(output.tokens).tolist(),
        "texts": output.text,
    }


def presets() -> dict[str, Any]:
    """Return the configs of all published sizes, with the shapes of the arrays of their first layers."""
    from dataclasses import asdict, replace

    import jax
    import jax.numpy as jnp
    from gemma.research.t5gemma import T5GemmaPreset

    found = {}
    tokens = jnp.ones((1, 4), jnp.int32)
    for preset in T5GemmaPreset:
        config = preset.config
        encoder, decoder = config.encoder_config, config.decoder_config
        short = replace(
            config, encoder_config=replace(encoder, num_layers=1), decoder_config=replace(decoder, num_layers=1)
        )
        shapes = jax.eval_shape(
            lambda key, short=short: short.make("transformer").init(key, target_tokens=tokens, input_tokens=tokens),
            jax.random.key(0),
        )
        leaves = jax.tree_util.tree_flatten_with_path(shapes["params"])[0]
        found[str(preset.value)] = {
            "encoder": asdict(encoder),
            "decoder": asdict(decoder),
            "arrays": {jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape for path, leaf in leaves},
        }
    return found


def serve() -> None:
    """Answer requests until the input ends."""
    output = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries print to standard output
    for line in sys.stdin:
        name, arguments = json.loads(line)
        value = {"make": make, "run": run, "presets": presets}[name](**arguments)
        output.write(json.dumps(value, default=str) + "\n")
        output.flush()


if __name__ == "__main__":
    serve()
