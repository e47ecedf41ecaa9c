"""A model's vocabulary: text to tokens and back, and which tokens a user's text must never become."""

from __future__ import annotations

import ctypes
import functools
import itertools
import re
from collections.abc import Iterable, Sequence
from typing import Any

# enum llama_token_attr and llama_vocab_type of llama.h
_UNKNOWN, _CONTROL, _USER_DEFINED = 1 << 0, 1 << 3, 1 << 4
_SENTENCEPIECE = 1

_LONG = 16_384  # characters
_TAG = re.compile(r"<[^<>\s]{1,60}>|\[/?[A-Za-z_]{1,60}\]")


class Vocabulary:
    """The vocabulary of a loaded model; of no use once the model is freed.

    `template` is the source of the chat template: the tags in it are protected like control tokens, although some
    models declare them as ordinary words (`<think>`).
    """

    def __init__(self, api: Any, model: Any, template: str = "") -> None:
        self._api = api
        self._vocab = api.llama_model_get_vocab(model)
        self.pointer = self._vocab
        self._pieces: dict[int, bytes] = {}
        self._shown: frozenset[int] = frozenset()
        self._tags = tuple(tag for tag in dict.fromkeys(_TAG.findall(template)) if self._is_special(tag))

    def tokenize(self, text: str, *, parse_special: bool = True, add_special: bool = False) -> list[int]:
        """The tokens of `text`; with `add_special` those at its ends, too. What cannot be UTF-8 becomes "?"."""
        if not text.isascii() and self._spelt is not None:
            text = "".join(each if each.isascii() or each in self._spelt else "?" for each in text)
        raw = text.encode("utf-8", "replace")
        room = len(raw) + 16
        tokens = (ctypes.c_int32 * room)()
        count = self._api.llama_tokenize(self._vocab, raw, len(raw), tokens, room, add_special, parse_special)
        if count < 0:
            tokens = (ctypes.c_int32 * -count)()
            count = self._api.llama_tokenize(self._vocab, raw, len(raw), tokens, -count, add_special, parse_special)
        return tokens[: max(count, 0)]

    @functools.cached_property
    def _spelt(self) -> frozenset[str] | None:
        """The characters that this vocabulary has; None for those that have every byte, which is nearly all.

        llama.cpp ends the process over a character for which a SentencePiece vocabulary has no tokens.
        """
        if not self.leading_space:
            return None
        found = set()
        for token in range(int(self._api.llama_vocab_n_tokens(self._vocab))):
            text = self.text(token)
            if text == "<0xFF>":
                return None
            if len(text) == 1:
                found.add(text)
        return frozenset(found)

    def single(self, text: str) -> int | None:
        """The token that is exactly `text`, if there is one."""
        tokens = self.tokenize(text)
        return tokens[0] if len(tokens) == 1 else None

    def text(self, token: int) -> str:
        """How the vocabulary writes a token; "" for none (-1)."""
        raw = self._api.llama_vocab_get_text(self._vocab, token) if token >= 0 else None
        return bytes(raw).decode("utf-8", "replace") if raw else ""

    @property
    def bos(self) -> int:
        """The token that begins a text, -1 for none."""
        return int(self._api.llama_vocab_bos(self._vocab))

    @property
    def eos(self) -> int:
        """The token that ends a text, -1 for none."""
        return int(self._api.llama_vocab_eos(self._vocab))

    @property
    def adds_bos(self) -> bool:
        """Whether every text is to begin with `bos`."""
        return bool(self._api.llama_vocab_get_add_bos(self._vocab))

    @property
    def leading_space(self) -> bool:
        """Whether the first word of an answer comes with a space that is no part of it (SentencePiece)."""
        return bool(self._api.llama_vocab_type(self._vocab) == _SENTENCEPIECE)

    def is_end(self, token: int) -> bool:
        """Whether the model ends its answer with this token."""
        return bool(self._api.llama_vocab_is_eog(self._vocab, token))

    def show(self, markers: Iterable[str]) -> None:
        """Let the control tokens that are exactly these texts be part of the output."""
        self._shown = frozenset(token for marker in markers if (token := self.single(marker)) is not None)

    def piece(self, token: int) -> bytes:
        """The bytes of a token; other control tokens than those of `show` have none."""
        known = self._pieces.get(token)
        if known is None:
            known = self._pieces[token] = self._piece(token)
        return known

    def _piece(self, token: int) -> bytes:
        special, size = token in self._shown, 256
        while True:
            buffer = ctypes.create_string_buffer(size)
            length = self._api.llama_token_to_piece(self._vocab, token, buffer, size, 0, special)
            if length >= 0:
                return buffer.raw[:length]
            size = -length

    # ------------------------------------------------------------------------------------------------ safe contents

    def protected(self, content: str, border: str) -> str:
        """`content` with a `border` inside every text that would become a control token or one of the template's tags.

        `encode` cuts there, so that the parts are ordinary tokens. `border` must not occur in `content`.
        """
        if not any(tag in content for tag in self._tags) and self._is_plain(content):
            return content
        return break_up(content, (*self._tags, *self._control_texts), border)

    def encode(self, text: str, border: str) -> list[int]:
        """The tokens of a rendered prompt, or of a part of one, whose contents are `protected`."""
        tokens: list[int] = []
        for part in text.split(border):
            single = len(part) == 1 and part in self._control_texts
            tokens += self.tokenize(part, parse_special=not single)
        return tokens

    def with_bos(self, tokens: list[int]) -> list[int]:
        """`tokens` with BOS at the head, where the model wants it and the template has not written it."""
        return [self.bos, *tokens] if self.adds_bos and tokens[:1] != [self.bos] else tokens

    def _is_plain(self, content: str) -> bool:
        if len(content) > _LONG:  # by now reading the vocabulary once is cheaper than tokenizing twice
            return not any(text in content for text in self._control_texts)
        return self.tokenize(content) == self.tokenize(content, parse_special=False)

    def _is_special(self, text: str) -> bool:
        token = self.single(text)
        return token is not None and bool(self._attributes(token) & (_UNKNOWN | _CONTROL | _USER_DEFINED))

    def _attributes(self, token: int) -> int:
        return int(self._api.llama_vocab_get_attr(self._vocab, token))

    @functools.cached_property
    def _control_texts(self) -> frozenset[str]:
        """Every text that `llama_tokenize` takes for a control token; read when first needed (0.05 s at most)."""
        size = self._api.llama_vocab_n_tokens(self._vocab)
        texts = (self.text(token) for token in range(size) if self._attributes(token) & (_UNKNOWN | _CONTROL))
        return frozenset(text for text in texts if text)


def break_up(content: str, texts: Iterable[str], border: str) -> str:
    """`content` with `border` put after the first character of every occurrence of the `texts`, overlapping ones too.

    A text of one character cannot be broken; it gets a border on either side.
    """
    cuts: set[int] = set()
    for text in texts:
        at = content.find(text)
        while at >= 0:
            cuts.update((at, at + 1) if len(text) == 1 else (at + 1,))
            at = content.find(text, at + 1)
    edges = [0, *sorted(cuts - {0, len(content)}), len(content)]
    return border.join(content[start:end] for start, end in itertools.pairwise(edges))


def unused_character(texts: Sequence[str]) -> str:
    """A character that none of `texts` has: one that Unicode reserves for a program's own use."""
    candidates = map(chr, (*range(0xFDD0, 0xFDF0), *range(0xE000, 0xF900)))
    return next(c for c in candidates if not any(c in text for text in texts))
