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
"""Quality of JPEG of the pictures of a report, of which a page has hundreds."""
VIEWED = 92
"""Quality of JPEG of a picture that is looked at in detail."""


def write_page(path: Path, template: str, **values: Any) -> None:
    """Write a page atomically.

    Args:
        path: The file.
        template: Name of a template in `mllm/report/templates`.
        values: Variables of the template. Their texts are escaped.

    Raises:
        ConfigError: The file cannot be written.
    """
    html = rendered("mllm.report", template, **values)
    with replaced_file(path) as file:
        # A lone surrogate, which JSON can hold, is not valid in UTF-8.
        file.write(html.encode("utf-8", "replace").decode("utf-8"))


def rendered(package: str, template: str, **values: Any) -> str:
    """Return a template of the folder `templates` of a package with its variables. Their texts are escaped."""
    return _environment(package).get_template(template).render(**values)


@cache
def _environment(package: str) -> Environment:
    """Return the environment with the compiled templates of a package."""
    return Environment(
        loader=PackageLoader(package, "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def data_url(image: Image.Image, longest: int = THUMBNAIL, quality: int = QUALITY) -> str:
    """Return an image as the data URL of a JPEG.

    Args:
        image: The image.
        longest: Maximum longer side in pixels; a larger image is reduced.
        quality: Quality of JPEG, 1 to 95.
    """
    small = image.convert("RGB")
    small.thumbnail((longest, longest))
    buffer = io.BytesIO()
    small.save(buffer, format="JPEG", quality=quality)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def shortened(text: str, limit: int) -> str:
    """Return a text of at most `limit` characters."""
    return text if len(text) <= limit else f"{text[:limit]}…"
