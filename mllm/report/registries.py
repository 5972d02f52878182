"""The registries as text."""

from __future__ import annotations

from mllm.registry import ALL


def describe_registries() -> str:
    """Return every registry with its description, and every entry with the first line of its docstring."""
    blocks = []
    for registry in ALL:
        lines = [f"{registry.name.upper()}  {registry.description}"]
        lines += [f"  {name:22} {registry.describe(name).summary}".rstrip() for name in registry.names()]
        blocks.append("\n".join(lines if len(lines) > 1 else [*lines, "  (none)"]))
    return "\n\n".join(blocks)
