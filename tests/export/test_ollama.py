"""Tests of Modelfiles: the prompt equals that of the chat template, and all parameters are written."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment
from transformers import AutoTokenizer

from mllm.errors import ConfigError
from mllm.export.ollama import CHAT_FORMATS, GEMMA, LLAMA3, chat_format, modelfile_text
from mllm.tiny.checkpoints import write_tiny
from mllm.tiny.templates import GEMMA3
from tests.support.go_template import render

# The format that Meta's model card of Llama 3 describes.
LLAMA3_JINJA = (
    "{%- for turn in messages -%}{{- bos_token if loop.first -}}"
    "{{- '<|start_header_id|>' ~ turn['role'] ~ '<|end_header_id|>\n\n' ~ turn['content'] | trim ~ '<|eot_id|>' -}}"
    "{%- endfor -%}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' if add_generation_prompt -}}"
)
SYSTEM = {"role": "system", "content": "Be brief."}
ASKED = [
    {"role": "user", "content": "Is it {{ .broken }}?\nSay."},
    {"role": "assistant", "content": 'Yes, "here".'},
    {"role": "user", "content": "Where?"},
]
CONVERSATIONS = [ASKED[:1], ASKED, [SYSTEM, *ASKED[:1]], [SYSTEM, *ASKED]]


def _jinja(template: str, messages: list[dict[str, str]]) -> str:
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = pytest.fail
    rendered: str = environment.from_string(template).render(
        messages=messages, bos_token="<bos>", add_generation_prompt=True
    )
    return rendered.removeprefix("<bos>")


@pytest.mark.parametrize("messages", CONVERSATIONS, ids=["one", "three", "system and one", "system and three"])
@pytest.mark.parametrize(("go", "jinja"), [(GEMMA, GEMMA3), (LLAMA3, LLAMA3_JINJA)], ids=["gemma", "llama3"])
def test_the_prompt_is_that_of_the_chat_template(go: str, jinja: str, messages: list[dict[str, str]]) -> None:
    assert render(go, messages) == _jinja(jinja, messages)


@pytest.mark.parametrize("name", ["gemma3_medgemma", "gemma3n", "google-gemma-2-2b-it"])
def test_the_prompt_is_that_of_published_models(shared_data: Path, name: str) -> None:
    jinja = (shared_data / "chat_templates" / f"{name}.jinja").read_text()
    assert chat_format(jinja) == "gemma"
    for messages in CONVERSATIONS if "gemma-2" not in name else CONVERSATIONS[:2]:  # Gemma 2 refuses a system turn
        assert render(GEMMA, messages) == _jinja(jinja, messages)


GO = """package main
import ("encoding/json"; "os"; "text/template")
func main() {
    var data map[string]any
    json.NewDecoder(os.Stdin).Decode(&data)
    template.Must(template.New("").Parse(os.Args[1])).Execute(os.Stdout, data)
}
"""


@pytest.mark.skipif(shutil.which("go") is None, reason="Go is not installed")
@pytest.mark.parametrize("family", CHAT_FORMATS)
def test_the_template_engine_of_go_renders_the_same(family: str, tmp_path: Path) -> None:
    import json

    (tmp_path / "main.go").write_text(GO)
    for messages in CONVERSATIONS:
        turns: list[dict[str, Any]] = [{"Role": turn["role"], "Content": turn["content"]} for turn in messages]
        data = {"System": "Be brief." if messages[0] is SYSTEM else "", "Messages": turns}
        rendered = subprocess.run(
            ["go", "run", "main.go", CHAT_FORMATS[family].template],
            input=json.dumps(data),
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        assert rendered == render(CHAT_FORMATS[family].template, messages)


def test_a_complete_modelfile() -> None:
    text = modelfile_text(
        "gemma",
        "model-q8_0.gguf",
        mmproj="mmproj.gguf",
        adapter="../lora.gguf",
        generation={"temperature": 0.0, "top_k": 64, "repetition_penalty": 1.1, "seed": None},
        system="Be brief.",
        stops=["<eos>", "<end_of_turn>"],
        license_text="Gemma terms.\nhttps://ai.google.dev/gemma/terms",
    )
    assert text == (
        "FROM ./model-q8_0.gguf\n"
        "FROM ./mmproj.gguf\n"
        "ADAPTER ../lora.gguf\n"
        f'TEMPLATE """{GEMMA}"""\n'
        'SYSTEM """Be brief."""\n'
        "PARAMETER temperature 0.0\n"
        "PARAMETER top_k 64\n"
        "PARAMETER repeat_penalty 1.1\n"
        'PARAMETER stop "<end_of_turn>"\n'
        'PARAMETER stop "<eos>"\n'
        'LICENSE """Gemma terms.\nhttps://ai.google.dev/gemma/terms"""\n'
    )


def test_a_minimal_modelfile() -> None:
    text = modelfile_text("llama3", "/models/a.gguf")
    assert text.splitlines()[0] == "FROM /models/a.gguf"
    assert 'PARAMETER stop "<|eot_id|>"' in text
    assert not any(word in text for word in ("ADAPTER", "SYSTEM", "LICENSE"))


def test_a_family_is_recognized_by_its_chat_template(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(write_tiny("gemma3n", tmp_path / "gemma3n"))
    assert chat_format(tokenizer.chat_template) == "gemma"
    assert chat_format(LLAMA3_JINJA) == "llama3"
    for unknown in (None, "", "{{ messages }}", "{{ date_string }}" + LLAMA3_JINJA):
        with pytest.raises(ConfigError, match="no Ollama template.*gemma, llama3"):
            chat_format(unknown)


def test_settings_without_a_modelfile_equivalent_are_refused() -> None:
    with pytest.raises(ConfigError, match="the system text contains"):
        modelfile_text("gemma", "a.gguf", system='Say """.')
    with pytest.raises(ConfigError, match="no parameter for beams"):
        modelfile_text("gemma", "a.gguf", generation={"beams": 4})
