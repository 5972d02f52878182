"""Chat templates for architectures whose published checkpoints have none."""

from __future__ import annotations

from collections.abc import Mapping

PALIGEMMA = r"""
{%- set images = namespace(count=0) -%}
{%- for turn in messages -%}
    {%- if turn['role'] == 'system' -%}
        {{- raise_exception('PaliGemma has no system turn; write its text into the question') -}}
    {%- endif -%}
    {%- if loop.index > 2 -%}
        {{- raise_exception('PaliGemma answers one question; make a row of each question') -}}
    {%- endif -%}
    {%- if turn['content'] is not string -%}
        {%- for part in turn['content'] if part['type'] == 'image' -%}
            {%- set images.count = images.count + 1 -%}
            {{- '<image>' -}}
        {%- endfor -%}
    {%- endif -%}
    {%- if loop.first and images.count == 0 -%}{{- bos_token -}}{%- endif -%}
    {%- if turn['content'] is string -%}
        {{- turn['content'] -}}
    {%- else -%}
        {%- for part in turn['content'] if part['type'] == 'text' -%}{{- part['text'] -}}{%- endfor -%}
    {%- endif -%}
    {{- eos_token if turn['role'] == 'assistant' else '\n' -}}
{%- endfor -%}
"""
"""PaliGemma: images, `<bos>`, question and a line feed, which are the prefix; then the answer and `<eos>`.

Its processor writes `<bos>` after the last image itself, and needs an image. Source: big_vision,
`configs/proj/paligemma/README.md`, and `PaliGemmaProcessor` with `suffix`.
"""
DEFAULTS: Mapping[str, str] = {"paligemma": PALIGEMMA}
"""Architecture -> template, used if the checkpoint has none and the config sets none."""
