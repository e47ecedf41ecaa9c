"""Tells what a model says to itself from what it answers, in a text that arrives in pieces.

Two customs are known: a pair of tags around the thoughts, before the answer (`<think>` of DeepSeek and Qwen, and its
kin), and the channels of gpt-oss ("harmony"). Tags count only at the very beginning: an answer may speak of them. Some
models put the answer after their thoughts into tags as well (Granite, Hunyuan, GLM-V); those are left out.
"""

from __future__ import annotations

import re
from typing import Literal, Protocol

from localai.domain.generation import AnswerText, ThinkingText
from localai.engine.text import held_back

Piece = ThinkingText | AnswerText

TAGS: tuple[tuple[str, str], ...] = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("[THINK]", "[/THINK]"),
    ("<mm:think>", "</mm:think>"),
    ("<seed:think>", "</seed:think>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|channel>thought", "<channel|>"),
    ("<|inner_prefix|>", "<|inner_suffix|>"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<reasoning>", "</reasoning>"),
    ("◁think▷", "◁/think▷"),
)
WRAPPERS: tuple[tuple[str, str], ...] = (
    ("<answer>", "</answer>"),
    ("<response>", "</response>"),
    ("<|begin_of_solution|>", "<|end_of_solution|>"),
)
START, CHANNEL, MESSAGE, END = "<|start|>", "<|channel|>", "<|message|>", "<|end|>"
FINAL = "final"  # the channel of the answer
_OPEN_CHANNEL = re.compile(r"<\|channel\|>([\w ]*)(<\|message\|>)?$")  # at the end of a prompt

# Control tokens that must be seen in the text, where ordinary ones are not shown.
MARKERS: tuple[str, ...] = (*(tag for pair in TAGS for tag in pair), "<|channel>", START, CHANNEL, MESSAGE, END)


class Splitter(Protocol):
    """Takes text as it comes, gives pieces of thought and answer; `finish` gives what was held back."""

    def feed(self, text: str) -> list[Piece]: ...

    def finish(self) -> list[Piece]: ...


def splitter(prompt: str) -> Splitter:
    """The splitter for an answer to the rendered `prompt`, whose end may itself open the thoughts."""
    end = prompt.rstrip()
    if (opened := _OPEN_CHANNEL.search(end)) is not None:
        return ChannelSplitter(opened[0])
    if end.endswith(START + "assistant"):
        return ChannelSplitter()
    return TagSplitter(next((close for opening, close in TAGS if end.endswith(opening)), None))


def opening(template: str) -> str:
    """The tag that a model with this chat template begins its thoughts with; "" where the template names none."""
    return next((first for first, last in TAGS if first in template or last in template), "")


def customary(template: str) -> bool:
    """Whether a model with this chat template has a way to think."""
    return bool(opening(template)) or CHANNEL in template


def after_thoughts(grammar: str, prompt: str, may_open: str = "") -> str:
    """The GBNF `grammar`, preceded by what stands before an answer to `prompt`: the rest of the thoughts that it has
    opened, or the header of the final channel; else, if the model likes, thoughts that it opens with `may_open`.
    """
    end = prompt.rstrip()
    closing = next((close for opening, close in TAGS if end.endswith(opening)), None)
    if closing is not None:
        before = _thoughts(closing)
    elif (channel := _OPEN_CHANNEL.search(end)) is not None:
        header = "" if channel[2] else f'"{MESSAGE}" '
        if not channel[1].strip().startswith(FINAL):
            header += f'{_thoughts(END)} "{START}assistant{CHANNEL}{FINAL}{MESSAGE}"'
        if not header:
            return grammar
        before = header
    elif end.endswith(START + "assistant"):
        before = f'"{CHANNEL}{FINAL}{MESSAGE}"'
    elif may_open:
        before = f'("{may_open}" {_thoughts(dict(TAGS)[may_open])})?'
    else:
        return grammar
    return f"root ::= {before} answer\n" + grammar.replace("root ::=", "answer ::=", 1)


def _thoughts(closing: str) -> str:
    first, rest = closing[0], closing[1:]
    return f'([^{_escaped(first)}] | "{first}" [^{_escaped(rest[0])}])* "{closing}" [ \\n]*'


def _escaped(character: str) -> str:
    return f"\\x{ord(character):02x}"


class PlainSplitter:
    """Everything is the answer."""

    def feed(self, text: str) -> list[Piece]:
        return [AnswerText(text)] if text else []

    def finish(self) -> list[Piece]:
        return []


class TagSplitter:
    """`<think>thoughts</think>answer`; with `closing`, the prompt has opened the thoughts already.

    White space around the thoughts belongs to neither them nor the answer.
    """

    def __init__(self, closing: str | None) -> None:
        self._closing = closing or ""
        self._part: Literal["beginning", "thoughts", "answer"] = "thoughts" if closing else "beginning"
        self._trim = True
        self._wrapped: str | None = None  # what ends the answer's own tags: "" for none, None while that is not known
        self._pending = ""
        self._channels: ChannelSplitter | None = None

    def feed(self, text: str) -> list[Piece]:
        if self._channels is not None:
            return self._channels.feed(text)
        if self._part == "answer" and not self._trim and not self._wrapped:
            return [AnswerText(text)] if text else []
        self._pending += text
        pieces: list[Piece] = []
        if self._part == "beginning":
            self._begin()
        if self._channels is not None:
            return self._channels.feed(self._pending)
        if self._part == "thoughts" and (thought := self._think()):
            pieces.append(ThinkingText(thought))
        if self._part == "answer" and (answer := self._answer()):
            pieces.append(AnswerText(answer))
        return pieces

    def _begin(self) -> None:
        start = self._pending.lstrip()
        if start.startswith((CHANNEL, START)):  # the prompt was not in the model's own form
            self._channels = ChannelSplitter()
            return
        for opening, closing in TAGS:
            if start.startswith(opening):
                self._part, self._closing, self._pending = "thoughts", closing, start[len(opening) :]
                return
        openings = (CHANNEL, START, *(opening for opening, _ in TAGS))
        if start and not any(opening.startswith(start) for opening in openings):
            self._part, self._trim, self._wrapped = "answer", False, ""

    def _think(self) -> str:
        if self._trim:
            self._pending = self._pending.lstrip()
        thought, found, rest = self._pending.partition(self._closing)
        if found:
            self._part, self._trim = "answer", True
        else:
            thought = thought[: len(thought) - held_back(thought, (self._closing,))]
            self._trim = self._trim and not thought
            rest = self._pending[len(thought.rstrip()) :]  # white space may turn out to be the last
        self._pending = rest
        return thought.rstrip()

    def _answer(self) -> str:
        if self._trim:
            self._pending = self._pending.lstrip()
        if self._wrapped is None:
            self._unwrap()
        answer = self._pending
        if self._wrapped is None or not answer:
            return ""
        self._trim = False
        keep = len(self._ending(answer)) if self._wrapped else 0
        self._pending = answer[len(answer) - keep :]
        return answer[: len(answer) - keep]

    def _unwrap(self) -> None:
        """Take the answer's own opening tag away, once it is known whether there is one."""
        answer = self._pending
        if any(opening != answer and opening.startswith(answer) for opening, _ in WRAPPERS):
            return  # also of nothing yet
        self._wrapped = ""
        for opening, closing in WRAPPERS:
            if answer.startswith(opening):
                self._pending, self._wrapped = answer[len(opening) :].lstrip(), closing

    def _ending(self, answer: str) -> str:
        """What at the end of a wrapped answer may be the tag that ends it, with the white space around it."""
        assert self._wrapped
        rest = answer.rstrip()
        length = len(self._wrapped) if rest.endswith(self._wrapped) else held_back(rest, (self._wrapped,))
        return answer[len(rest[: len(rest) - length].rstrip()) :]

    def finish(self) -> list[Piece]:
        if self._channels is not None:
            return self._channels.finish()
        rest, self._pending = self._pending, ""
        if self._part == "thoughts":
            return [ThinkingText(rest.rstrip())] if rest.strip() else []
        if self._wrapped and rest.strip() == self._wrapped:
            return []
        return [AnswerText(rest)] if rest else []


class ChannelSplitter:
    """gpt-oss: `<|channel|>NAME<|message|>text<|end|>…`; the channel "final" is the answer, any other is thought.

    `opened` is the header, or its beginning, that the prompt ends with.
    """

    def __init__(self, opened: str = "") -> None:
        self._pending = opened
        self._header = True
        self._final = False

    def feed(self, text: str) -> list[Piece]:
        self._pending += text
        pieces: list[Piece] = []
        while self._pending:
            if self._header:
                header, found, rest = self._pending.partition(MESSAGE)
                if not found:
                    break
                self._final = header.rpartition(CHANNEL)[2].strip().startswith(FINAL)
                self._header, self._pending = False, rest
                if (named := re.search(r"to=functions\.([\w.-]{1,200})", header)) is not None:
                    # a call, wherever its addressee stood: the rest is told with what follows, to be read as one
                    self._final = True
                    self._give(pieces, f"{CHANNEL}commentary to=functions.{named[1]}{MESSAGE}")
                continue
            ends = [at for marker in (END, START, CHANNEL) if (at := self._pending.find(marker)) >= 0]
            keep = 0 if ends else held_back(self._pending, (END, START, CHANNEL))
            upto = min(ends, default=len(self._pending) - keep)
            self._give(pieces, self._pending[:upto])
            self._pending = self._pending[upto:]
            if not ends:
                break
            self._header = True
        return pieces

    def _give(self, pieces: list[Piece], text: str) -> None:
        if text:
            pieces.append(AnswerText(text) if self._final else ThinkingText(text))

    def finish(self) -> list[Piece]:
        """What is left; a text without any channel was a plain answer."""
        rest, self._pending = self._pending, ""
        if self._header:
            return [] if not rest or CHANNEL in rest or END in rest or START in rest else [AnswerText(rest)]
        pieces: list[Piece] = []
        self._give(pieces, rest)
        return pieces
