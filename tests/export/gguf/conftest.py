"""Fixtures: tiny checkpoints that llama.cpp can run, and llama.cpp."""

from __future__ import annotations

import ctypes
import functools
import json
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AddedToken,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3nForCausalLM,
    Gemma3nTextConfig,
    Gemma3TextConfig,
    GemmaConfig,
    GemmaForCausalLM,
    GemmaTokenizer,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from mllm.tiny import templates
from mllm.tiny.parts import random_model
from mllm.tiny.vocabulary import BYTES, TEXT, train_bytes, train_pieces

TOKENS = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
WIDTHS = dict(
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=7,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=32,
    max_position_embeddings=512,
)
PERIODS = {"gemma2": 2, "gemma3": 6, "gemma3n": 5}
LLAMA3_ROPE = dict(
    rope_type="llama3",
    rope_theta=500000.0,
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=256,
)


def layer_types(family: str, layers: int) -> list[str]:
    period = PERIODS[family]
    return ["sliding_attention" if (index + 1) % period else "full_attention" for index in range(layers)]


def config_of(family: str, rows: int, **changed: Any) -> tuple[Any, Any]:
    """Return the class and the config of a tiny model with `rows` embeddings."""
    ids = dict(vocab_size=rows, bos_token_id=2, eos_token_id=[1, 5], pad_token_id=0)
    if family == "llama":
        return LlamaForCausalLM, LlamaConfig(**{**WIDTHS, **ids, "tie_word_embeddings": False, **changed})
    if family == "gemma":
        return GemmaForCausalLM, GemmaConfig(**{**WIDTHS, **ids, **changed})
    windows = dict(sliding_window=16, layer_types=layer_types(family, changed.get("num_hidden_layers", 7)))
    if family == "gemma2":
        values = {**WIDTHS, **ids, **windows, "query_pre_attn_scalar": 32, **changed}
        return Gemma2ForCausalLM, Gemma2Config(**values)
    if family == "gemma3":
        values = {**WIDTHS, **ids, **windows, "query_pre_attn_scalar": 32, **changed}
        return Gemma3ForCausalLM, Gemma3TextConfig(**values)
    layers = changed.get("num_hidden_layers", 21)
    values = {
        **WIDTHS,
        **ids,
        "num_hidden_layers": layers,
        "sliding_window": 16,
        "layer_types": layer_types("gemma3n", layers),
        "intermediate_size": [1024] * layers,
        "vocab_size_per_layer_input": rows - 64,
        "hidden_size_per_layer_input": 256,
        "num_kv_shared_layers": layers - 20,
        "laurel_rank": 64,
        "activation_sparsity_pattern": [0.95] * 10 + [0.0] * (layers - 10),
    }
    return Gemma3nForCausalLM, Gemma3nTextConfig(**{**values, **changed})


def piece_tokenizer() -> Any:
    """Return a tokenizer like that of Gemma; every piece has exactly one pair of merged parts, as in trained ones."""
    vocabulary, merges = train_pieces(TOKENS, 600)
    tokenizer = GemmaTokenizer(vocab=vocabulary, merges=merges, add_bos_token=True)
    tokenizer.add_tokens([AddedToken(name, special=True, normalized=False) for name in TOKENS])
    tokenizer.chat_template = templates.GEMMA3
    return tokenizer


def byte_tokenizer() -> Any:
    """Return a tokenizer like that of LLaMA 3: bytes, its regular expression, and complete words before merges."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    from mllm.export.gguf.tokenizer import LLAMA3

    vocabulary, merges = train_bytes(["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"], 600)
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=True))
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA3), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    inner.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<|begin_of_text|>", eos_token="<|end_of_text|>"
    )
    tokenizer.add_tokens([AddedToken("<|eot_id|>", special=True, normalized=False)])
    return tokenizer


def write_sentencepiece(folder: Path, *, dummy_prefix: bool) -> None:
    """Train a SentencePiece model and write it to `folder`, as for Gemma and LLaMA 2, without tokenizer.json."""
    from sentencepiece import SentencePieceTrainer

    SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT.splitlines()),
        model_prefix=str(folder / "tokenizer"),
        model_type="bpe",
        vocab_size=600,
        byte_fallback=True,
        add_dummy_prefix=dummy_prefix,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        **(
            dict(pad_id=0, eos_id=1, bos_id=2, unk_id=3, control_symbols=TOKENS[4:])
            if not dummy_prefix
            else dict(pad_id=-1, unk_id=0, bos_id=1, eos_id=2)
        ),
        pad_piece="<pad>",
        eos_piece="</s>" if dummy_prefix else "<eos>",
        bos_piece="<s>" if dummy_prefix else "<bos>",
        hard_vocab_limit=False,
        minloglevel=2,
    )
    (folder / "tokenizer.vocab").unlink()


def write_model(family: str, folder: Path, tokenizer: Any | None = None, damping: float = 1.0, **changed: Any) -> Path:
    """Write a tiny checkpoint of `family` with its tokenizer to `folder`.

    `damping` makes little of what stands behind an activation and a norm: llama.cpp takes GELU from a table of fp16
    values, whose rounding is larger than what is to be measured. LLaMA's activation has no such table.
    """
    tokenizer = piece_tokenizer() if tokenizer is None else tokenizer
    rows = (len(tokenizer) // 64 + 2) * 64
    kind, config = config_of(family, rows, **changed)
    model = random_model(kind, config, 0)
    offset = 0.0 if family == "gemma3n" else 1.0
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "post_feedforward_layernorm" in name or "post_per_layer_input_norm" in name:
                parameter.copy_((parameter + offset) * damping - offset)
            if family == "llama" and name.endswith(("o_proj.weight", "down_proj.weight")):
                parameter.mul_(damping)  # it has no norms there
            if family == "gemma3n" and "q_norm" in name:
                # Gemma 3n does not scale scores: random queries would attend to one token and amplify rounding errors.
                parameter.mul_(0.05)
    model.generation_config = GenerationConfig(
        do_sample=True, temperature=0.7, top_k=64, top_p=0.95, eos_token_id=[1, 5], bos_token_id=2, pad_token_id=0
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A function that returns the folder of the tiny checkpoint of a family, which is written at the first call."""
    written: dict[str, Path] = {}

    def folder(family: str) -> Path:
        if family not in written:
            extra = {
                "llama": dict(rope_parameters=LLAMA3_ROPE, tokenizer=byte_tokenizer()),
                "gemma3": dict(
                    rope_parameters={
                        "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
                        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
                    }
                ),
                "gemma3n": dict(damping=0.1),
            }.get(family, {})
            written[family] = write_model(family, tmp_path_factory.mktemp(family) / f"tiny-{family}", **extra)
        return written[family]

    return folder


def texts(count: int = 600) -> list[str]:
    """Parts of the training text of the vocabularies, with characters that do not occur in it."""
    strange = [
        "é",
        "ß",
        "中文",
        "😀",
        "\u00a0",
        "\t",
        "  ",
        "   ",
        "\n\n",
        "\r\n",
        "Ω≥",
        "<b>",
        "don't",
        "x²",
        "123456",
    ]
    draw = random.Random(0)
    texts = [" ", "  a", "a ", "\n", "▁", "<0x41>", *strange]
    while len(texts) < count:
        start = draw.randrange(len(TEXT) - 120)
        text = TEXT[start : start + draw.randrange(1, 120)]
        for _ in range(draw.randrange(3)):
            place = draw.randrange(len(text) + 1)
            text = text[:place] + draw.choice(strange) + text[place:]
        texts.append(text)
    return texts


def random_ids(count: int = 64, low: int = len(TOKENS) + len(BYTES), high: int = 590) -> list[int]:
    draw = random.Random(1)
    return [2, *(draw.randrange(low, high) for _ in range(count - 1))]


@torch.inference_mode()
def reference(model: Any, ids: Sequence[int]) -> np.ndarray:
    """Return the logits [L, V] of transformers for a text."""
    return model(input_ids=torch.tensor([ids])).logits[0].float().numpy()


def as_llama_cpp(model: Any) -> Any:
    """Return `model` with llama.cpp's activations: GELU by a table in fp16, sparsity by the deviation over n - 1."""

    def sparse(mlp: Any, inputs: torch.Tensor) -> torch.Tensor:
        deviations = torch.distributions.Normal(0, 1).icdf(torch.tensor(mlp.activation_sparsity))
        return torch.relu(inputs - inputs.mean(-1, keepdim=True) - inputs.std(-1, keepdim=True) * deviations)

    def table(x: torch.Tensor) -> torch.Tensor:
        looked_up = torch.nn.functional.gelu(x.half().float(), approximate="tanh").half().float()
        return torch.where(x <= -10, torch.zeros_like(x), torch.where(x >= 10, x, looked_up))

    for module in model.modules():
        for name in ("act_fn", "activation_fn"):
            if hasattr(module, name) and model.config.model_type != "llama":
                setattr(module, name, GeluTable(table))
        if hasattr(module, "_gaussian_topk"):
            module._gaussian_topk = functools.partial(sparse, module)
    return model


class GeluTable(torch.nn.Module):
    """GELU by a table in fp16, as a module, because activations of transformers are modules."""

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.forward = function


class Runtime:
    """Model in llama.cpp, in fp32 with an fp32 cache, on one thread."""

    def __init__(self, path: Path, lora: Path | None = None) -> None:
        import llama_cpp

        self.api: Any = llama_cpp
        self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
        assert self.model, f"llama.cpp does not load {path}"
        self.vocabulary = llama_cpp.llama_model_get_vocab(self.model)
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx = settings.n_batch = settings.n_ubatch = 512
        settings.type_k = settings.type_v = 0
        settings.flash_attn_type = 0
        settings.n_threads = settings.n_threads_batch = (
            1  # threads wait in loops, which takes very long on a busy machine
        )
        self.context = llama_cpp.llama_init_from_model(self.model, settings)
        assert self.context
        if lora is not None:
            adapter = llama_cpp.llama_adapter_lora_init(self.model, str(lora).encode())
            assert adapter, f"llama.cpp does not load {lora}"
            one = (ctypes.c_float * 1)(1.0)
            llama_cpp.llama_set_adapters_lora(self.context, (type(adapter) * 1)(adapter), 1, one)

    def logits(self, ids: Sequence[int]) -> np.ndarray:
        """Return the logits [L, V] of a text."""
        batch = self.api.llama_batch_init(len(ids), 0, 1)
        batch.n_tokens = len(ids)
        for place, token in enumerate(ids):
            batch.token[place], batch.pos[place], batch.logits[place] = token, place, 1
            batch.n_seq_id[place], batch.seq_id[place][0] = 1, 0
        self.api.llama_memory_clear(self.api.llama_get_memory(self.context), True)
        assert self.api.llama_decode(self.context, batch) == 0
        size = self.api.llama_vocab_n_tokens(self.vocabulary)
        logits = np.ctypeslib.as_array(self.api.llama_get_logits(self.context), (len(ids), size)).copy()
        self.api.llama_batch_free(batch)
        return logits

    def tokens(self, text: str, *, special: bool = False) -> list[int]:
        """Return the token ids of a text with special tokens in it; `special` adds those of the file around it."""
        data, room = text.encode(), len(text.encode()) + 8
        ids = (self.api.llama_token * room)()
        count = self.api.llama_tokenize(self.vocabulary, data, len(data), ids, room, special, True)
        assert count >= 0
        return list(ids[:count])

    def text(self, ids: Sequence[int]) -> str:
        """Return the text of tokens without special ones."""
        tokens, buffer = (self.api.llama_token * len(ids))(*ids), ctypes.create_string_buffer(4096)
        size = self.api.llama_detokenize(self.vocabulary, tokens, len(ids), buffer, len(buffer), True, False)
        assert size >= 0
        return buffer.raw[:size].decode(errors="replace")

    def metadata(self, key: str) -> str:
        """Return a value of the metadata of the file as text."""
        buffer = ctypes.create_string_buffer(4096)
        assert self.api.llama_model_meta_val_str(self.model, key.encode(), buffer, len(buffer)) >= 0, (
            f"{key} is missing"
        )
        return buffer.value.decode()

    def close(self) -> None:
        self.api.llama_free(self.context)
        self.api.llama_model_free(self.model)


@pytest.fixture(scope="session")
def llama_cpp_quiet() -> Any:
    """The module llama_cpp without output; skips the test if it is not installed."""
    module = pytest.importorskip("llama_cpp")
    callback = module.llama_log_callback(lambda level, text, data: None)
    module.llama_log_set(callback, None)
    yield module
    module.llama_log_set(module.llama_log_callback(0), None)


@pytest.fixture
def runtime(llama_cpp_quiet: Any) -> Iterator[Callable[..., Runtime]]:
    """A function that opens GGUF files in llama.cpp; they are closed at the end of the test."""
    opened: list[Runtime] = []

    def start(path: Path, lora: Path | None = None) -> Runtime:
        opened.append(Runtime(path, lora))
        return opened[-1]

    yield start
    for one in opened:
        one.close()


def edited(folder: Path, **values: Any) -> None:
    """Change keys of a checkpoint's config.json."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
