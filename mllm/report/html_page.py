"""HTML pages without references to other files: templates of Jinja2, and images as data URLs."""

from __future__ import annotations

import base64
import io
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from mllm.files import replaced_file

THUMBNAIL = 320
"""Maximum longer side of a picture in pixels."""
QUALITY = 82
"""Quality of JPEG, 1 to 95."""


def write_page(path: Path, template: str, **values: Any) -> None:
    """Write a page atomically.

    Args:
        path: The file.
        template: Name of a template in `mllm/report/templates`.
        values: Variables of the template. Their texts are escaped.

    Raises:
        ConfigError: The file cannot be written.
    """
    html = _environment().get_template(template).render(**values)
    with replaced_file(path) as file:
        # A lone surrogate, which JSON can hold, is not valid in UTF-8.
        file.write(html.encode("utf-8", "replace").decode("utf-8"))


@cache
def _environment() -> Environment:
    """Return the environment with the compiled templates."""
    return Environment(
        loader=PackageLoader("mllm.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def data_url(image: Image.Image) -> str:
    """Return an image, reduced to `THUMBNAIL` pixels, as the data URL of a JPEG."""
    small = image.convert("RGB")
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    small.save(buffer, format="JPEG", quality=QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def shortened(text: str, limit: int) -> str:
    """Return a text of at most `limit` characters."""
    return text if len(text) <= limit else f"{text[:limit]}…"
