"""What reads a message in a chat: an editor of several lines with history and completion, or the bare terminal's line.

A message that begins with three double quotes goes on over lines until three more, as in Ollama.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Protocol

from localai import history, render, terminal
from localai.errors import LocalaiError

if TYPE_CHECKING:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.buffer import Buffer

QUOTES = '"""'
PROMPT, MORE = ">>> ", "... "

Completer = Callable[[str], tuple[int, Iterable[str]]]
"""Of the text before the cursor: how many of its last characters are replaced, and by what they may be."""


class Reader(Protocol):
    """Reads one message. Raises EOFError at Ctrl-D and KeyboardInterrupt at Ctrl-C."""

    def read(self) -> str: ...

    def forget_ahead(self) -> None:
        """Drop the lines that are typed already, as the terminal does with those that it holds at Ctrl-C."""


def reader(completions: Completer, meter: Callable[[], str]) -> Reader:
    """The best reader that this terminal allows; `meter` is shown at the right of the line."""
    if render.plain() or not render.is_terminal(sys.stderr):
        return PlainReader()
    return EditorReader(completions, meter)


def unquoted(text: str) -> str:
    """A message without the three quotes around it."""
    inner = text.strip()
    if not inner.startswith(QUOTES):
        return text
    return inner.removeprefix(QUOTES).removesuffix(QUOTES).strip("\n")


def is_open(text: str) -> bool:
    """Whether a message has begun with three quotes and goes on."""
    start = text.lstrip()
    return start.startswith(QUOTES) and not (start.rstrip().endswith(QUOTES) and len(start.rstrip()) >= 2 * len(QUOTES))


class PlainReader:
    """Lines as the terminal itself lets them be typed: nothing on it is moved or written over."""

    def read(self) -> str:
        with terminal.cooked():
            text = self._line(PROMPT)
            while is_open(text):
                text += "\n" + self._line(MORE)
        return unquoted(text)

    def forget_ahead(self) -> None:
        pass  # the terminal holds them all

    def _line(self, prompt: str) -> str:
        line = render.read_line(prompt.strip())
        if line is None:
            raise EOFError
        return line


class EditorReader:
    """prompt_toolkit's editor; its prompt is on stderr, since stdout has the answers alone."""

    def __init__(self, completions: Completer, meter: Callable[[], str]) -> None:
        self._late = False
        self._session = editor(completions, meter, self._pressed_late)

    def _pressed_late(self) -> None:
        self._late = True

    def read(self) -> str:
        self._late = False
        text = unquoted(self._session.prompt(PROMPT))
        terminal.mark_pastes()
        if self._late:
            raise KeyboardInterrupt
        return text

    def forget_ahead(self) -> None:
        from prompt_toolkit.input.typeahead import clear_typeahead

        clear_typeahead(self._session.input)


def editor(completions: Completer, meter: Callable[[], str], pressed_late: Callable[[], None]) -> PromptSession[str]:
    """Enter sends; Alt-Enter, and Enter within three quotes, make a new line; Ctrl-X Ctrl-E opens $EDITOR.

    `pressed_late` hears of a Ctrl-C after Enter while the editor is still putting the terminal in order.
    """
    from prompt_toolkit import PromptSession
    from prompt_toolkit.application import get_app, run_in_terminal
    from prompt_toolkit.completion import Completer as ToolkitCompleter
    from prompt_toolkit.completion import Completion
    from prompt_toolkit.filters import Condition
    from prompt_toolkit.history import History
    from prompt_toolkit.key_binding import KeyBindings
    from prompt_toolkit.output.color_depth import ColorDepth
    from prompt_toolkit.output.defaults import create_output

    class Completions(ToolkitCompleter):
        def get_completions(self, document: Any, complete_event: Any) -> Any:
            replaced, words = completions(document.text_before_cursor)
            for word in words:
                yield Completion(word, start_position=-replaced, display=render.safe(word))

    class Kept(History):
        """The entries of this disk; new ones are written to it with the conversation that they belong to."""

        def load_history_strings(self) -> Iterable[str]:
            return reversed(history.load())

        def store_string(self, string: str) -> None:
            pass

    keys = KeyBindings()

    @keys.add("escape", "enter")
    @keys.add("enter", filter=Condition(lambda: is_open(get_app().current_buffer.text)))
    def _(event: Any) -> None:
        event.current_buffer.insert_text("\n")

    @keys.add("<sigint>")  # prompt_toolkit's own fails with a traceback where nothing is read any more
    def _(event: Any) -> None:
        if event.app.future is None or event.app.future.done():
            pressed_late()
        else:
            event.app.exit(exception=KeyboardInterrupt(), style="class:aborting")

    @keys.add("c-x", "c-e")  # prompt_toolkit's own takes any editor where $EDITOR fails
    def _(event: Any) -> None:
        run_in_terminal(lambda: written_in_editor(event.current_buffer))

    return PromptSession(
        history=Kept(),
        completer=Completions(),
        complete_while_typing=False,
        key_bindings=keys,
        rprompt=lambda: "" if get_app().is_done else [("fg:ansibrightblack", meter())],
        prompt_continuation=lambda width, line, wraps: "" if wraps else MORE,
        enable_suspend=True,
        output=create_output(stdout=sys.stderr),
        color_depth=ColorDepth.DEPTH_1_BIT if os.environ.get("NO_COLOR") else None,
    )


def written_in_editor(buffer: Buffer) -> None:
    """Put the message into the user's editor and back; it stays as it is where that goes wrong."""
    from prompt_toolkit.document import Document

    from localai.slash import turns

    try:
        buffer.document = Document(turns.edited(buffer.text))
    except LocalaiError as error:
        render.error(error.message, error.hint)
    except KeyboardInterrupt:
        render.note("(stopped)")
