"""The README's pictures are of this program, and tell nothing of the machine that took them."""

from __future__ import annotations

import html
import re
import socket
from pathlib import Path
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).resolve().parent.parent
PICTURES = sorted((ROOT / "docs" / "pictures").glob("*.svg"))


def test_the_readme_shows_them_all() -> None:
    shown = re.findall(r"\]\((docs/pictures/\w+\.svg)\)", (ROOT / "README.md").read_text("utf-8"))
    assert sorted(shown) == [path.relative_to(ROOT).as_posix() for path in PICTURES]
    assert len(PICTURES) == 3


@pytest.mark.parametrize("path", PICTURES, ids=lambda path: path.stem)
def test_a_picture_is_sound_and_discreet(path: Path) -> None:
    source = path.read_text("utf-8")
    texts = [html.unescape(each.text or "") for each in ElementTree.fromstring(source).findall(".//{*}text")]
    content = " ".join(texts).replace("\xa0", " ")
    assert f"localai {path.stem}" in re.sub(" +", " ", content)
    for word in ("/tmp", "/root", "/work", str(Path.home()), socket.gethostname(), str(ROOT)):
        assert word not in content
    assert "Traceback" not in content
    assert not re.search(r"url\([^#]", source), "nothing is fetched when it is looked at"
