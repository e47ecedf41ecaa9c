"""Image files become pixels, in any common format and turned the right way; hostile ones are told in one line."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Pillow

from localai import images, readers
from localai.errors import LocalaiError, NotFound, UsageError
from localai.readers import image as image_reader


def encoded(form: str, picture: Pillow.Image | None = None, **options: object) -> bytes:
    held = io.BytesIO()
    (picture or picture_of()).save(held, form, **options)
    return held.getvalue()


def picture_of(width: int = 6, height: int = 4) -> Pillow.Image:
    """Red, with a blue first row."""
    picture = Pillow.new("RGB", (width, height), (255, 0, 0))
    for x in range(width):
        picture.putpixel((x, 0), (0, 0, 255))
    return picture


@pytest.mark.parametrize("form", ["PNG", "BMP", "GIF", "TIFF", "WEBP", "JPEG"])
def test_every_format_gives_rows_of_red_green_and_blue(form: str, tmp_path: Path) -> None:
    path = tmp_path / "café 1.png"  # the content tells, not the name
    options = {"lossless": True} if form == "WEBP" else {"quality": 100, "subsampling": 0} if form == "JPEG" else {}
    path.write_bytes(encoded(form, picture_of(16, 16), **options))
    image = images.read(path)
    assert (image.name, image.width, image.height, len(image.pixels)) == ("café 1.png", 16, 16, 3 * 16 * 16)
    assert image.pixels[2] > 180 > 90 > image.pixels[0]
    assert image.pixels[-3] > 180 > 90 > image.pixels[-1]


def test_a_photograph_is_turned_as_the_camera_says() -> None:
    exif = Pillow.Exif()
    exif[0x0112] = 6  # the first row is the right side
    image = images.decoded(encoded("JPEG", picture_of(16, 8), exif=exif, quality=100), "photo.jpg")
    assert (image.width, image.height) == (8, 16)


def test_a_large_photograph_is_made_smaller() -> None:
    image = images.decoded(encoded("JPEG", Pillow.new("RGB", (6000, 4000), "red")), "photo.jpg")
    assert image.width * image.height <= 8_000_000
    assert image.width / image.height == pytest.approx(1.5, abs=0.01)
    assert len(image.pixels) == 3 * image.width * image.height


def test_what_is_transparent_is_white() -> None:
    image = images.decoded(encoded("PNG", Pillow.new("RGBA", (2, 2), (0, 0, 0, 0))), "x.png")
    assert image.pixels == b"\xff" * 12


def test_pictures_are_known_by_their_pixels() -> None:
    one, same = (images.decoded(encoded(form, picture_of()), f"x.{form}") for form in ("PNG", "BMP"))
    other = images.decoded(encoded("PNG", picture_of(4, 6)), "x.PNG")
    assert one.sha256 == same.sha256 != other.sha256


def png_of(width: int, height: int) -> bytes:
    """A PNG that announces so many pixels and has none."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packed = [chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))]
    packed += [chunk(b"IDAT", zlib.compress(b"")), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "not an image"),
        (b"hello", "not an image"),
        (b"RIFF\x00\x00\x00\x00WAVEfmt ", "not an image"),
        (encoded("PNG")[:40], "image"),
        (encoded("JPEG", picture_of(64, 64))[:200], "image"),
        (png_of(100_000, 100_000), "more than 64 million"),
        (png_of(2**31 - 1, 2**31 - 1), "image|more than"),
        (png_of(8000, 8000), "damaged image"),
        (b"%PDF-1.4", "not an image"),
    ],
)
def test_what_is_no_image_is_told(content: bytes, why: str) -> None:
    with pytest.raises(UsageError, match=why) as caught:
        images.decoded(content, "x.png")
    assert caught.value.message.startswith("x.png ")
    assert caught.value.hint


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=60)
@given(st.sampled_from(["PNG", "GIF", "BMP", "TIFF", "WEBP", "JPEG"]), st.integers(0, 300), st.binary(max_size=20))
def test_damage_anywhere_gives_pixels_or_an_error(form: str, at: int, noise: bytes) -> None:
    whole = encoded(form, picture_of(16, 16))
    try:
        told, pixels = image_reader.read(whole[:at] + noise + whole[at + len(noise) :])
    except (readers.Unreadable, OSError, ValueError, SyntaxError, EOFError, OverflowError):
        return
    assert len(pixels) == 3 * told["width"] * told["height"]


def test_what_cannot_be_opened_is_told(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        images.read(tmp_path / "nosuch.png")
    with pytest.raises(LocalaiError, match="folder"):
        images.read(tmp_path)
