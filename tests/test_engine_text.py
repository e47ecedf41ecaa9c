"""Whole characters only, and stop strings found wherever the pieces are cut."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from localai.engine.text import StopMatcher, Utf8Stream, held_back
from localai.engine.vocabulary import break_up, unused_character


def decoded(pieces: list[bytes]) -> list[str]:
    stream = Utf8Stream()
    return [*(stream.feed(piece) for piece in pieces), stream.finish()]


@given(st.text(), st.lists(st.integers(0, 5), max_size=30))
def test_text_cut_anywhere_comes_whole(text: str, lengths: list[int]) -> None:
    text = text.encode("utf-8", "ignore").decode()
    raw, pieces = text.encode(), []
    for length in lengths:
        pieces.append(raw[:length])
        raw = raw[length:]
    parts = decoded([*pieces, raw])
    assert "".join(parts) == text
    assert text.count("\ufffd") == "".join(parts).count("\ufffd")


@given(st.binary())
def test_any_bytes_become_text(raw: bytes) -> None:
    assert "".join(decoded([bytes([byte]) for byte in raw])) == raw.decode("utf-8", "replace")


def test_a_split_character_is_held_back_and_a_broken_one_replaced() -> None:
    assert decoded([b"\xf0\x9f", b"\x98\x80!"]) == ["", "\U0001f600!", ""]
    assert decoded([b"a\xc3"]) == ["a", "\ufffd"]


def matched(pieces: list[str], stops: list[str]) -> tuple[str, bool]:
    matcher = StopMatcher(stops)
    shown = "".join(matcher.feed(piece) for piece in pieces)
    return shown + matcher.finish(), matcher.stopped


def test_a_stop_string_across_pieces_is_never_shown() -> None:
    matcher = StopMatcher(["</end>"])
    assert [matcher.feed(piece) for piece in ("a <", "/en", "d> b", "c")] == ["a ", "", "", ""]
    assert matcher.stopped
    assert matcher.finish() == ""


def test_what_only_looked_like_a_stop_string_is_shown() -> None:
    assert matched(["a <", "/e", "x"], ["</end>"]) == ("a </ex", False)
    assert matched(["a </en"], ["</end>"]) == ("a </en", False)


ALPHABET = st.text(alphabet="ab", max_size=4)


@given(st.lists(ALPHABET, max_size=12), st.lists(ALPHABET, max_size=3))
def test_the_text_ends_at_the_first_stop_string(pieces: list[str], stops: list[str]) -> None:
    text = "".join(pieces)
    found = [text.find(stop) for stop in stops if stop and stop in text]
    shown, stopped = matched(pieces, stops)
    assert stopped == bool(found)
    if not found:
        assert shown == text
    elif len(stops) == 1:
        assert shown == text[: found[0]]
    else:  # with several, the one that is complete first ends the text
        assert text.startswith(shown)
        assert len(shown) <= max(found)


@given(ALPHABET, st.lists(ALPHABET, min_size=1, max_size=3))
def test_what_is_held_back_is_the_longest_possible_beginning(text: str, markers: list[str]) -> None:
    keep = held_back(text, markers)
    begins = [n for n in range(len(text) + 1) for m in markers if n < len(m) and text.endswith(m[:n])]
    assert keep == max(begins, default=0)


@given(st.text(alphabet="<|x>", max_size=12), st.lists(st.text(alphabet="<|x>", min_size=1, max_size=4), max_size=4))
def test_broken_up_content_holds_none_of_the_texts(content: str, texts: list[str]) -> None:
    broken = break_up(content, texts, "!")
    assert broken.replace("!", "") == content
    for part in broken.split("!"):
        assert part in texts or not any(text in part for text in texts)
        assert len(part) <= 1 or part not in texts


def test_the_border_is_a_character_that_nobody_has_written() -> None:
    assert unused_character(["\ufdd0 and \ufdd1"]) == "\ufdd2"
