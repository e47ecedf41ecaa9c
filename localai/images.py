"""Image files to pixels, for models that see."""

from __future__ import annotations

import hashlib
from pathlib import Path

from localai import documents, readers
from localai.domain.generation import Image, Message
from localai.errors import UsageError


def told(message: Message) -> Message:
    """A message as it is kept: its pictures are not, only what they were called."""
    names = (f"[image: {each.name}]" for each in message.images)
    return Message(message.role, "\n".join([*names, message.content]))


def read(path: Path) -> Image:
    """The picture in the file `path`; `-` is stdin. Raises NotFound, UsageError for what is no image."""
    return decoded(documents.content_of(path), documents.name_of(path))


def decoded(content: bytes, name: str) -> Image:
    """The picture in `content`, called `name`. Raises UsageError for what is no image."""
    try:
        told, pixels = readers.in_child("image", content)
        width, height = int(told["width"]), int(told["height"])
    except readers.Unreadable as error:
        raise UsageError(f"{name} {error.what}", error.hint.replace("{name}", name)) from error
    if min(width, height) < 1 or len(pixels) != 3 * width * height:
        raise UsageError(f"{name} is a damaged image file", "open it and save it again")
    sha256 = hashlib.sha256(f"{width} {height} ".encode() + pixels).hexdigest()
    return Image(name, width, height, pixels, sha256)
