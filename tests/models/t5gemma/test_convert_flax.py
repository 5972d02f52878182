"""Conversion of T5Gemma to Orbax checkpoints and back: round trips, refusals, and no files after a failure."""

from __future__ import annotations

import json
import resource
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from gemma_pieces import write_pieces
from safetensors.torch import load_file, save_file
from sentencepiece import sentencepiece_model_pb2
from torch import Tensor
from transformers import AutoTokenizer, T5GemmaConfig, T5GemmaForConditionalGeneration

from mllm.errors import ConfigError
from mllm.models.t5gemma import sizes
from mllm.models.t5gemma.config import build_config, dimensions_of
from mllm.models.t5gemma.from_flax import convert_from_flax
from mllm.models.t5gemma.layout import arrays
from mllm.models.t5gemma.orbax import open_checkpoint, write_checkpoint
from mllm.models.t5gemma.sizes import PUBLISHED_ROWS, SIZES, Dimensions
from mllm.models.t5gemma.to_flax import convert_to_flax
from mllm.pipeline.command import run_command
from mllm.pipeline.convert import main
from mllm.tiny.checkpoints import write_tiny

ocp = pytest.importorskip("orbax.checkpoint")

Values = dict[str, Tensor]


def weights_of(folder: Path) -> Values:
    """Return all weights of a folder of transformers."""
    return {name: value for file in folder.glob("*.safetensors") for name, value in load_file(file).items()}


def arrays_of(folder: Path) -> Values:
    """Return all arrays of an Orbax checkpoint."""
    with open_checkpoint(folder) as checkpoint:
        return {name: checkpoint.read(name) for name in checkpoint.arrays}


def assert_same_bits(first: Values, second: Values) -> None:
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert value.dtype == second[name].dtype and value.shape == second[name].shape, name
        assert torch.equal(value.contiguous().view(torch.uint8), second[name].contiguous().view(torch.uint8)), name


@pytest.fixture(scope="module")
def flax(source, tmp_path_factory) -> Path:
    """Return the checkpoint of `source` in Flax."""
    return convert_to_flax(source, tmp_path_factory.mktemp("flax") / "checkpoint")


@pytest.fixture(scope="module")
def values(flax) -> Values:
    return arrays_of(flax)


def changed(folder: Path, values: Values, pieces: Path | None = None) -> Path:
    """Write a checkpoint of Flax with these arrays."""
    write_checkpoint(folder, values, values.__getitem__, lambda size: None)
    if pieces is not None:
        shutil.copyfile(pieces, folder / "tokenizer.model")
    return folder


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_round_trip_from_transformers_is_equal_in_all_bits(source, tmp_path, dtype):
    folder = shutil.copytree(source, tmp_path / "model")
    file = folder / "model.safetensors"
    weights = {name: value.to(dtype) for name, value in load_file(file).items()}
    save_file(weights, file, {"format": "pt"})
    there = convert_to_flax(folder, tmp_path / "flax")
    back = convert_from_flax(there, tmp_path / "back", instruction_tuned=True, shard_size=200_000)
    assert_same_bits(weights_of(back), weights)
    assert len(list(back.glob("model-*-of-*.safetensors"))) > 2
    model, report = T5GemmaForConditionalGeneration.from_pretrained(back, output_loading_info=True)
    assert model.dtype == dtype and not any(report.values())
    tokenizer = AutoTokenizer.from_pretrained(back)
    assert model.generation_config.eos_token_id == [1, tokenizer.convert_tokens_to_ids("<end_of_turn>")]
    messages = [{"role": "user", "content": " The heart. "}]
    rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert rendered == "<bos><start_of_turn>user\nThe heart.<end_of_turn>\n<start_of_turn>model\n"


def test_mixed_dtypes_are_kept(values, pieces, tmp_path):
    mixed = {name: value.bfloat16() if "einsum" in name else value for name, value in values.items()}
    folder = convert_from_flax(changed(tmp_path / "flax", mixed, pieces), tmp_path / "model")
    assert_same_bits(arrays_of(convert_to_flax(folder, tmp_path / "back")), mixed)


@pytest.fixture
def padded(source, values) -> Values:
    """Return the arrays of a checkpoint with rows of zeros after the vocabulary in both tables."""
    rows, padded = len(AutoTokenizer.from_pretrained(source)), dict(values)
    for side in ("encoder", "decoder"):
        padded[f"{side}/embedder/input_embedding"] = values[f"{side}/embedder/input_embedding"].clone()
        padded[f"{side}/embedder/input_embedding"][rows:] = 0
    return padded


def test_rows_of_zeros_of_a_size_without_padding_are_kept(padded, pieces, tmp_path):
    folder = convert_from_flax(changed(tmp_path / "flax", padded, pieces), tmp_path / "model")
    assert_same_bits(arrays_of(convert_to_flax(folder, tmp_path / "back")), padded)


def test_rows_of_zeros_after_the_vocabulary_of_a_published_size_are_left_out(
    source, padded, pieces, tmp_path, monkeypatch
):
    """The small size takes the place of a published one, with 640 rows in Flax."""
    dimensions = dimensions_of("tiny", T5GemmaConfig.from_pretrained(source))
    monkeypatch.setitem(SIZES, "s-s", (dimensions.encoder, dimensions.decoder))
    monkeypatch.setattr(sizes, "PUBLISHED_ROWS", dimensions.rows)
    rows = len(AutoTokenizer.from_pretrained(source))
    folder = convert_from_flax(changed(tmp_path / "both", padded, pieces), tmp_path / "both-model")
    assert_same_bits(arrays_of(convert_to_flax(folder, tmp_path / "back", size="s-s")), padded)
    assert weights_of(folder)["model.encoder.embed_tokens.weight"].shape[0] == rows
    assert json.loads((folder / "config.json").read_text())["decoder"]["vocab_size"] == rows
    padded["decoder/embedder/input_embedding"][-1, -1] = 1e-30
    folder = convert_from_flax(changed(tmp_path / "one", padded, pieces), tmp_path / "one-model")
    assert weights_of(folder)["model.encoder.embed_tokens.weight"].shape[0] == 640


def test_a_published_size_is_padded_for_flax(source, pieces, tmp_path, monkeypatch):
    """The widths of S-S with one layer: only the embeddings have many values."""
    small = tuple(stack.__class__(**{**vars(stack), "layers": 1}) for stack in SIZES["s-s"])
    monkeypatch.setitem(SIZES, "s-s", small)
    dimensions = Dimensions(*small, rows=640)
    folder = shutil.copytree(source, tmp_path / "model")
    weights = {
        name: torch.randn(array.weight_shape).bfloat16() for array in arrays(dimensions) for name in array.weights
    }
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    build_config(dimensions, "bfloat16", [1]).save_pretrained(folder)
    there = convert_to_flax(folder, tmp_path / "flax", size="s-s")
    with open_checkpoint(there) as checkpoint:
        assert checkpoint.arrays["decoder/embedder/input_embedding"].shape == (PUBLISHED_ROWS, 512)
        table = checkpoint.read("decoder/embedder/input_embedding")
    assert torch.equal(table[:640], weights["model.decoder.embed_tokens.weight"]) and not table[640:].any()


def test_checkpoints_with_joined_keys_and_of_the_trainer_are_read(values, flax, pieces, tmp_path):
    """`gemma.gm.ckpts` reads the same three structures (`_CheckpointType`)."""
    joined: dict[str, dict[str, object]] = {}
    nested: dict[str, object] = {}
    for name, value in values.items():
        path, key = (name, "w") if "/mlp/" in name else name.rsplit("/", 1)
        joined.setdefault(f"transformer/{path}", {})[key] = value.numpy()
        *parents, last = name.split("/")
        node = nested
        for parent in parents:
            node = node.setdefault(parent, {})  # type: ignore[assignment]
        node[last] = value.numpy()
    state = {"params": nested, "opt_state": {"0": values["encoder/final_norm/scale"].numpy()}, "step": 3}
    state["collections"] = {}
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        checkpointer.save(tmp_path / "joined", args=ocp.args.PyTreeSave(joined))
        checkpointer.save(tmp_path / "ckpt_3" / "default", args=ocp.args.PyTreeSave(state))
    expected = weights_of(convert_from_flax(flax, tmp_path / "expected"))
    for name in ("joined", "ckpt_3"):
        folder = convert_from_flax(tmp_path / name, tmp_path / f"{name}-model", tokenizer=str(pieces))
        assert_same_bits(weights_of(folder), expected)
    with pytest.raises(ConfigError, match=r"contains checkpoints in folders; pass one of them, such as .*joined"):
        convert_from_flax(tmp_path, tmp_path / "out")


def without(name: str) -> Callable[[Values], Values]:
    return lambda values: {other: value for other, value in values.items() if other != name}


FLAX_FAULTS = {
    "decoder only": (
        lambda values: {f"layer_0/{name[-8:]}": values[name] for name in list(values)[:3]},
        r"is not a checkpoint of T5Gemma in Flax: it has no array encoder/layer_0/attn/attn_vec_einsum/w",
    ),
    "missing": (without("decoder/layer_1/mlp/linear"), r"lacks 1 arrays of T5Gemma \(first decoder/layer_1/mlp/linear"),
    "unknown": (
        lambda values: {**values, "encoder/x": torch.ones(1)},
        r"has 1 arrays that T5Gemma has not \(first enc",
    ),
    "LoRA": (
        lambda values: {**values, "encoder/layer_0/attn/q_einsum/lora/a": torch.ones(1)},
        "contains the arrays of a LoRA, .*: add it to the weights in Flax first",
    ),
    "shape": (
        lambda values: {**values, "encoder/final_norm/scale": torch.ones(3)},
        r"encoder/final_norm/scale has the shape \(3,\), not \(64,\)",
    ),
    "dtype": (
        lambda values: {**values, "encoder/final_norm/scale": torch.ones(64, dtype=torch.int32)},
        "encoder/final_norm/scale is int32, and weights are float32, bfloat16, float16",
    ),
}


@pytest.mark.parametrize("fault", FLAX_FAULTS)
def test_other_checkpoints_of_flax_are_refused(values, tmp_path, fault):
    change, sentence = FLAX_FAULTS[fault]
    with pytest.raises(ConfigError, match=sentence):
        convert_from_flax(changed(tmp_path / "flax", change(values)), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["flax"]


def test_damaged_checkpoints_are_refused_and_leave_no_files(flax, tmp_path):
    folder = shutil.copytree(flax, tmp_path / "flax")
    largest = max((folder / "ocdbt.process_0" / "d").iterdir(), key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:1000])
    with pytest.raises(ConfigError, match=r"the Orbax checkpoint .* cannot be read .*: a file is damaged or missing"):
        convert_from_flax(folder, tmp_path / "out")
    (folder / "_METADATA").write_text("{")
    with pytest.raises(ConfigError, match="cannot be read"):
        convert_from_flax(folder, tmp_path / "out")
    (folder / "_METADATA").unlink()
    with pytest.raises(ConfigError, match="is not an Orbax checkpoint: it has no file _METADATA"):
        convert_from_flax(folder, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["flax"]


def test_tokenizers_are_checked(flax, source, pieces, tmp_path):
    folder = shutil.copytree(flax, tmp_path / "flax")
    (folder / "tokenizer.model").unlink()
    with pytest.raises(ConfigError, match="has no tokenizer.model, as published checkpoints of Flax: pass --tokenizer"):
        convert_from_flax(folder, tmp_path / "out")
    with pytest.raises(ConfigError, match="other.model does not exist"):
        convert_from_flax(folder, tmp_path / "out", tokenizer=str(tmp_path / "other.model"))
    (tmp_path / "bad.model").write_text("no model")
    with pytest.raises(ConfigError, match="bad.model is not a SentencePiece model"):
        convert_from_flax(folder, tmp_path / "out", tokenizer=str(tmp_path / "bad.model"))
    many = write_pieces(tmp_path / "many.model")
    model = sentencepiece_model_pb2.ModelProto()
    model.ParseFromString(many.read_bytes())
    for number in range(200):
        model.pieces.add(piece=f"<added{number}>", score=-9999)
    many.write_bytes(model.SerializeToString())
    with pytest.raises(ConfigError, match=r"the tokenizer has \d+ tokens, and .* has embeddings for 640"):
        convert_from_flax(folder, tmp_path / "out", tokenizer=str(many))
    llama = write_tiny("llama", tmp_path / "llama")
    with pytest.raises(ConfigError, match=r"has another id for '<pad>'"):
        convert_from_flax(folder, tmp_path / "out", tokenizer=str(llama))
    converted = convert_from_flax(folder, tmp_path / "out", tokenizer=str(source))
    assert (converted / "tokenizer.model").read_bytes() == pieces.read_bytes()
    (converted / "tokenizer.model").unlink()
    with pytest.raises(ConfigError, match=r"tokenizer.model does not exist, and Flax reads no tokenizer.json"):
        convert_to_flax(converted, tmp_path / "back")
    other = write_pieces(tmp_path / "other.model", rows=400)
    with pytest.raises(ConfigError, match=r"has another id for|tokens that .* does not have"):
        convert_to_flax(converted, tmp_path / "back", tokenizer=str(other))
    assert not (tmp_path / "back").exists()


def edited(source: Path, folder: Path, change: Callable[[Values], None], **config: object) -> Path:
    """Write a copy of a folder of transformers with other weights and values of the encoder's config."""
    shutil.copytree(source, folder)
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    settings = json.loads((folder / "config.json").read_text())
    settings["encoder"] |= config
    (folder / "config.json").write_text(json.dumps(settings))
    return folder


NORM = "model.encoder.norm.weight"


@pytest.mark.parametrize(
    ("change", "config", "sentence"),
    [
        (lambda weights: weights.pop(NORM), {}, r"lacks 1 weights of T5Gemma \(first model.encoder.norm.weight"),
        (lambda weights: weights.update(x=torch.ones(1)), {}, r"has 1 weights that T5Gemma in Flax has not \(first x"),
        (lambda weights: weights.update({NORM: torch.ones(3)}), {}, r"norm.weight has the shape \(3,\), not \(64,\)"),
        (
            lambda weights: weights.update({NORM: torch.ones(64, dtype=torch.uint8)}),
            {},
            r"norm.weight is U8; weights for Flax are F32, BF16 or F16 \(a quantized",
        ),
        (
            lambda weights: weights.update({"lm_head.out_proj.weight": torch.ones(640, 64)}),
            {},
            "lm_head.out_proj.weight is not the embedding of the decoder",
        ),
        (
            lambda weights: None,
            {"sliding_window": 64},
            r"has encoder.sliding_window=64, and T5Gemma in Flax has 4096",
        ),
        (lambda weights: None, {"final_logit_softcapping": None}, "has encoder.final_logit_softcapping=None"),
    ],
)
def test_other_checkpoints_of_transformers_are_refused(source, tmp_path, change, config, sentence):
    folder = edited(source, tmp_path / "model", change, **config)
    with pytest.raises(ConfigError, match=sentence):
        convert_to_flax(folder, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_adapters_and_other_architectures_are_refused(tmp_path):
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    with pytest.raises(ConfigError, match="is a LoRA adapter, .*: merge it first with `mllm merge --adapter "):
        convert_to_flax(tmp_path / "adapter", tmp_path / "out")
    llama = write_tiny("llama", tmp_path / "llama")
    with pytest.raises(ConfigError, match="is a 'llama' model, and only T5Gemma can be converted to Flax"):
        convert_to_flax(llama, tmp_path / "out")


def test_the_command_prints_the_folder_or_one_sentence(source, tmp_path, capsys):
    flax, model = tmp_path / "flax", tmp_path / "model"
    assert run_command(main, ["--to", "flax", "--model", str(source), "--out", str(flax)]) == 0
    assert run_command(main, ["--from", "flax", "--model", str(flax), "--out", str(model), "--it"]) == 0
    assert capsys.readouterr().out.split() == [str(flax), str(model)]
    assert (model / "chat_template.jinja").is_file()
    for arguments, sentence in (
        (["--from", "flax", "--size", "b-b"], "is a T5Gemma of no published size, not b-b"),
        (["--from", "flax", "--size", "b-c"], "--size b-c is no published size of T5Gemma: did you mean 'b-b'?"),
        (["--from", "flax", "--vision-tower", "x"], "--vision-tower does not apply to --from flax"),
        (["--size", "b-b"], "--size does not apply to --from llava"),
        (["--to", "flax", "--it"], "--it does not apply to --to flax"),
        (["--to", "flax", "--from", "flax"], "--from and --to exclude each other"),
    ):
        assert run_command(main, [*arguments, "--model", str(flax), "--out", str(tmp_path / "other")]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert sentence in line
    assert not (tmp_path / "other").exists()


def test_a_full_disk_is_one_sentence_and_leaves_no_files(source, tmp_path, capsys):
    """A limit of the size of files has the effect of a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, hard))
    try:
        code = run_command(main, ["--to", "flax", "--model", str(source), "--out", str(tmp_path / "out")])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"the disk is full while writing {tmp_path / 'out'}" in line
    assert not list(tmp_path.iterdir())


def test_a_missing_package_is_one_sentence(source, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "orbax", None)
    with pytest.raises(ConfigError, match=r"need the package orbax-checkpoint .*: run pip install -e '\.\[jax\]'"):
        convert_to_flax(source, tmp_path / "out")
