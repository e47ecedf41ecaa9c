"""The pixels of image files, by Pillow: turned as the camera says, on white where they are transparent."""

from __future__ import annotations

import io
from typing import Any

from localai.readers import Unreadable

FORMATS = ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF")
MOST_PIXELS = 64_000_000  # a phone's largest photographs have 50 to 64 million
KEPT_PIXELS = 8_000_000  # no model looks at more (Qwen3-VL at 4 million), and 24 MB travel as RGB


def read(content: bytes) -> tuple[dict[str, Any], bytes]:
    """The first picture of the file: its width and height, and three bytes a pixel, a row after the other.

    One of more than 8 million pixels is made smaller.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    Image.MAX_IMAGE_PIXELS = None  # the bound below is ours, and told in our words
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as opened:
            if opened.width * opened.height > MOST_PIXELS:
                raise Unreadable(
                    f"has {opened.width} × {opened.height} pixels: more than {MOST_PIXELS // 10**6} million",
                    "make it smaller: models look at about 1000 × 1000",
                )
            while opened.width * opened.height > KEPT_PIXELS:
                share = (KEPT_PIXELS / (opened.width * opened.height)) ** 0.5
                opened.thumbnail((int(opened.width * share), int(opened.height * share)))
            turned = ImageOps.exif_transpose(opened)
            if turned.has_transparency_data:
                held = turned.convert("RGBA")
                turned = Image.alpha_composite(Image.new("RGBA", held.size, "white"), held)
            picture = turned.convert("RGB")
    except UnidentifiedImageError as error:
        raise Unreadable("is not an image that can be read", f"save it as one of: {', '.join(FORMATS)}") from error
    return {"width": picture.width, "height": picture.height}, picture.tobytes()
