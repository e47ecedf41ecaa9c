"""An answer of the chat on the screen: Markdown as it arrives, thoughts folded into one line, a status meanwhile."""

from __future__ import annotations

import sys

from localai import render
from localai.domain.generation import AnswerText, Event, PromptProgress, ThinkingText, TurnsDropped
from localai.markdown.stream import Markdown

REPLAYED = 64  # characters at a time: what is held back of a line stays small
MOST_OF_A_QUESTION = 1000  # characters: it may hold documents


class AnswerView:
    """Shows the events of one answer. Leave it by `end`, whatever happened.

    On a terminal nothing that the model says is obeyed; a stdout that is none gets the answer exactly. With
    `show_thoughts` the thoughts are written out; an `exact` answer (JSON) is not taken for Markdown.
    """

    def __init__(self, show_thoughts: bool, exact: bool = False) -> None:
        self._show_thoughts = show_thoughts or not render.is_terminal(sys.stderr)
        as_it_is = exact or not render.is_terminal(sys.stdout)
        self._answer = render.AnswerStream() if as_it_is else MarkdownStream()
        self._thoughts = render.ThinkingStream()
        self._status = render.Status()
        self._thought_tokens = 0

    def show(self, event: Event) -> None:
        match event:
            case PromptProgress(done, total):
                self._status.show(f"reading: {done:,} of {total:,} tokens")
            case ThinkingText(piece):
                self._think(piece)
            case AnswerText(piece):
                self._status.clear()
                self._end_thoughts()
                self._answer.write(piece)
                if self._answer.held:
                    self._status.show(f"writing {self._answer.held}")
            case TurnsDropped(count):
                self._status.clear()
                render.note(f"(the context is full: the oldest {turns(count)} forgotten)")

    def _think(self, piece: str) -> None:
        if self._show_thoughts:
            self._status.clear()
            self._thoughts.write(piece)
            return
        if not self._thought_tokens and render.plain():
            render.note("thinking...")
        self._thought_tokens += 1  # the engine gives a piece a token
        self._status.show(f"thinking... {self._thought_tokens:,} tokens")

    def _end_thoughts(self) -> None:
        self._thoughts.end()
        if self._thought_tokens:
            render.faint(f"(thought for about {self._thought_tokens:,} tokens; /think show writes them out)")
            self._thought_tokens = 0

    def replay(self, text: str) -> None:
        """Show an answer of earlier, on a terminal only."""
        if render.is_terminal(sys.stdout):
            for start in range(0, len(text), REPLAYED):
                self._answer.write(text[start : start + REPLAYED])
            self._answer.end()

    def end(self) -> None:
        """Show what was held back, and leave the cursor at the beginning of a line."""
        self._status.clear()
        self._end_thoughts()
        self._answer.end()


def turns(count: int) -> str:
    return "turn is" if count == 1 else f"{count} turns are"


class MarkdownStream:
    """Streams an answer to a terminal: rendered, or in whole lines where the terminal is to be written to plainly."""

    def __init__(self) -> None:
        self._markdown = Markdown(render.width, render.colour_wanted(sys.stdout), render.can_show("─│"))
        self._by_line = render.plain()
        self._waiting = ""

    @property
    def held(self) -> str:
        """What is held back for long; "" for nothing."""
        return self._markdown.held

    def write(self, text: str) -> None:
        self._emit(self._markdown.feed(render.safe(text)))

    def end(self) -> None:
        self._emit(self._markdown.finish())
        if self._waiting:
            render.emit(self._waiting)

    def _emit(self, shown: str) -> None:
        if self._by_line:
            whole, newline, self._waiting = (self._waiting + shown).rpartition("\n")
            shown = whole + newline
        if shown:
            render.emit(shown)


def replay_question(text: str) -> None:
    """Show a question that was asked before, a long one by its beginning and its end."""
    if (left_out := len(text) - MOST_OF_A_QUESTION) > 0:
        half = MOST_OF_A_QUESTION // 2
        text = f"{text[:half].rstrip()}\n[... {left_out:,} characters ...]\n{text[-half:].lstrip()}"
    render.faint(f">>> {text}")
