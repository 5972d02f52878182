"""Legend below a picture: one line of colored squares with texts."""

from __future__ import annotations

from collections.abc import Mapping

from PIL import Image, ImageDraw, ImageFont

Color = tuple[int, int, int]
"""RGB."""
BACKGROUND: Color = (0, 0, 0)
INK: Color = (255, 255, 255)


def add_legend(picture: Image.Image, entries: Mapping[str, Color]) -> Image.Image:
    """Return the picture with a legend in a strip below it; a picture that is too narrow is extended to the right.

    Args:
        picture: The picture, RGB.
        entries: Text -> color of its square, in order.
    """
    size = max(13, round(max(picture.size) / 42))
    font, gap = ImageFont.load_default(size), size // 2
    widths = [size + gap + round(font.getlength(text)) for text in entries]
    width = max(picture.width, sum(widths) + 2 * gap * len(widths))
    legend = Image.new("RGB", (width, picture.height + 2 * size), BACKGROUND)
    legend.paste(picture, (0, 0))
    draw, left, top = ImageDraw.Draw(legend), gap, picture.height + size // 2
    for (text, color), extent in zip(entries.items(), widths, strict=True):
        draw.rectangle((left, top, left + size - 1, top + size - 1), fill=color)
        draw.text((left + size + gap, top + size / 2), text, font=font, fill=INK, anchor="lm")
        left += extent + 2 * gap
    return legend
