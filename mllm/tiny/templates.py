"""Chat templates of the tiny checkpoints; each renders the same text as the published template of its family."""

from __future__ import annotations

GEMMA3 = r"""
{{- bos_token -}}
{%- macro body(content) -%}
    {%- if content is string -%}
        {{- content | trim -}}
    {%- elif content is iterable -%}
        {%- for part in content -%}
            {{- '<start_of_image>' if part['type'] == 'image' -}}
            {{- part['text'] | trim if part['type'] == 'text' -}}
        {%- endfor -%}
    {%- else -%}
        {{- raise_exception('content must be a string or a list of parts') -}}
    {%- endif -%}
{%- endmacro -%}
{%- set preface, turns = '', messages -%}
{%- if messages[0]['role'] == 'system' -%}
    {%- set opening = messages[0]['content'] -%}
    {%- set preface, turns = (opening if opening is string else opening[0]['text']) ~ '\n\n', messages[1:] -%}
{%- endif -%}
{%- for turn in turns -%}
    {%- if (loop.index0 is even) != (turn['role'] == 'user') -%}
        {{- raise_exception('roles must alternate, beginning with user') -}}
    {%- endif -%}
    {{- '<start_of_turn>' ~ ('model' if turn['role'] == 'assistant' else turn['role']) ~ '\n' -}}
    {{- preface if loop.first -}}
    {{- body(turn['content']) -}}
    {{- '<end_of_turn>\n' -}}
{%- endfor -%}
{{- '<start_of_turn>model\n' if add_generation_prompt -}}
"""
"""Gemma 3: writes `<bos>` itself, puts system text before the first user turn, trims contents."""

GEMMA3N = GEMMA3.replace("<start_of_image>", "<image_soft_token>")
"""Gemma 3n: as Gemma 3, with another image token."""

LLAVA = r"""
{%- for turn in messages -%}
    {%- if turn['role'] != 'system' -%}{{- turn['role'] | upper ~ ': ' -}}{%- endif -%}
    {%- if turn['content'] is string -%}
        {{- turn['content'] ~ ' ' -}}
    {%- else -%}
        {%- for part in turn['content'] if part['type'] == 'image' -%}{{- '<image>\n' -}}{%- endfor -%}
        {%- for part in turn['content'] if part['type'] == 'text' -%}{{- part['text'] ~ ' ' -}}{%- endfor -%}
    {%- endif -%}
{%- endfor -%}
{{- 'ASSISTANT:' if add_generation_prompt -}}
"""
"""LLaVA 1.5: images before text in every turn, and no end of an assistant's turn."""

QWEN2_VL = r"""
{%- for turn in messages -%}
    {%- if loop.first and turn['role'] != 'system' -%}
        {{- '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' -}}
    {%- endif -%}
    {{- '<|im_start|>' ~ turn['role'] ~ '\n' -}}
    {%- if turn['content'] is string -%}
        {{- turn['content'] -}}
    {%- else -%}
        {%- for part in turn['content'] -%}
            {{- '<|vision_start|><|image_pad|><|vision_end|>' if part['type'] == 'image' -}}
            {{- part['text'] if part['type'] == 'text' -}}
        {%- endfor -%}
    {%- endif -%}
    {{- '<|im_end|>\n' -}}
{%- endfor -%}
{{- '<|im_start|>assistant\n' if add_generation_prompt -}}
"""
"""Qwen2-VL: ChatML, with a default system turn where the conversation has none."""

QWEN3_VL = QWEN2_VL.replace(
    r"""    {%- if loop.first and turn['role'] != 'system' -%}
        {{- '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' -}}
    {%- endif -%}
""",
    "",
)
"""Qwen3-VL: as Qwen2-VL, without a default system turn."""

INTERNVL = QWEN3_VL.replace("<|vision_start|><|image_pad|><|vision_end|>", r"<IMG_CONTEXT>\n")
"""InternVL 3: ChatML, with a line feed after an image."""

GEMMA4 = r"""
{{- bos_token -}}
{%- for turn in messages -%}
    {{- '<|turn>' ~ ('model' if turn['role'] == 'assistant' else turn['role']) ~ '\n' -}}
    {%- if turn['content'] is string -%}
        {{- turn['content'] | trim -}}
    {%- else -%}
        {%- for part in turn['content'] -%}
            {{- '\n\n<|image|>\n\n' if part['type'] == 'image' -}}
            {{- part['text'] | trim if part['type'] == 'text' -}}
        {%- endfor -%}
    {%- endif -%}
    {{- '<turn|>\n' -}}
{%- endfor -%}
{{- '<|turn>model\n' if add_generation_prompt -}}
"""
"""Gemma 4 without thinking (E2B and E4B): turns of system, user and model, with blank lines around an image."""
