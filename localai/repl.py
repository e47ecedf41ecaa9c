"""The interactive conversation: reads a line, streams the answer, obeys slash commands, survives Ctrl-C.

The conversation itself is `localai.chat`; this module is its keyboard and its screen.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from localai import chat, library, render, sessions
from localai.commands import answer, options
from localai.domain import AnswerEnd, AnswerText, PromptProgress, ThinkingText, TurnsDropped
from localai.errors import LocalaiError
from localai.interrupt import Interrupts
from localai.loading import Loaded, Wishes

if TYPE_CHECKING:
    from prompt_toolkit import PromptSession

PROMPT = ">>> "
GREETING = "/help lists the commands, Ctrl-C stops an answer, Ctrl-D leaves."


def talk(
    model: str | None,
    system: str | None,
    flags: dict[str, Any],
    wished: Wishes,
    max_tokens: int | None,
    think: bool | None,
    private: bool = False,
    resume: sessions.Session | None = None,
) -> None:
    """Load `model` and converse until the user leaves. `flags` are the sampling flags that were given.

    What is said is kept on this disk, as a new conversation or as more of `resume`, unless it is `private`.
    """
    room = Room(flags, wished, max_tokens, think, private)
    room.enter(model, system)
    if resume is not None:
        room.resume(resume)
    try:
        room.loop()
    finally:
        room.loaded.engine.close()


class Room:
    """One conversation at a terminal."""

    loaded: Loaded
    conversation: chat.Conversation

    def __init__(
        self, flags: dict[str, Any], wished: Wishes, max_tokens: int | None, think: bool | None, private: bool
    ) -> None:
        self._flags, self._wished, self._max_tokens, self._think = flags, wished, max_tokens, think
        self._last: AnswerEnd | None = None
        self._private = private
        self._session: int | None = None
        self._read = line_reader()

    def enter(self, model: str | None, system: str | None) -> None:
        """Load the model and begin an empty conversation."""
        with Interrupts() as interrupts:
            self.loaded = answer.load(model, self._wished, None, interrupts)
        self.conversation = chat.Conversation(
            self.loaded.engine,
            system=system,
            sampling=options.sampling(self.loaded.name, self._flags),
            max_tokens=self._max_tokens,
            think=self._think,
        )
        note = f"; {self.loaded.note}" if self.loaded.note else ""
        render.note(f"{self.loaded.name}: {self.loaded.plan.context:,} tokens of context{note}.")
        render.note(GREETING)

    def resume(self, session: sessions.Session) -> None:
        """Go on with a kept conversation."""
        self.conversation.recall(sessions.messages(session))
        if self.conversation.system is None:
            self.conversation.set_system(session.system)
        self._session = session.id
        render.note(f"(going on with conversation {session.id}, {session.turns} turns: {session.title})")

    def _keep(self, question: str, answer: str) -> None:
        if not self._private and answer:
            system = self.conversation.system
            self._session = sessions.keep(self._session, self.loaded.name, system, question, answer)

    def loop(self) -> None:
        """Read and answer until the user leaves; what goes wrong in a turn is told, and the conversation goes on."""
        while True:
            try:
                line = self._read(PROMPT)
            except KeyboardInterrupt:
                render.note("(Ctrl-D or /exit leaves)")
                continue
            except EOFError:
                return
            if not line.strip():
                continue
            try:
                if line.lstrip().startswith("/"):
                    if self.obey(line.strip()):
                        return
                else:
                    self.respond(line)
            except LocalaiError as error:
                render.error(error.message, error.hint)
            except KeyboardInterrupt:  # while a model was loaded
                render.note("(stopped)")

    def respond(self, text: str) -> None:
        """Stream the answer to `text`; Ctrl-C stops it and keeps what was said."""
        stream, thoughts, status = render.AnswerStream(), render.ThinkingStream(), render.Status()
        with Interrupts() as interrupts:
            try:
                for event in self.conversation.ask(text, cancelled=interrupts.requested):
                    match event:
                        case PromptProgress(done, total):
                            status.show(f"reading: {done} of {total} tokens")
                        case ThinkingText(piece):
                            status.clear()
                            thoughts.write(piece)
                        case AnswerText(piece):
                            status.clear()
                            thoughts.end()
                            stream.write(piece)
                        case TurnsDropped(count):
                            status.clear()
                            render.note(f"(the context is full: the oldest {count} turns are forgotten)")
                        case AnswerEnd():
                            self._last = event
                            self._keep(text, event.text)
            finally:
                status.clear()
                thoughts.end()
                stream.end()
        if self._last is not None and self._last.finish_reason == "interrupted":
            render.note("(stopped)")
        elif self._last is not None and self._last.finish_reason == "length":
            render.note("(cut off: the limit of tokens is reached)")

    # --------------------------------------------------------------------------------------- slash commands

    def obey(self, line: str) -> bool:
        """Carry out a slash command; True ends the conversation."""
        name, _, argument = line.partition(" ")
        if name in ("/exit", "/quit", "/bye"):
            return True
        command = COMMANDS.get(name)
        if command is None:
            render.note(f"there is no command {name}; /help lists them")
        else:
            command[0](self, argument.strip())
        return False

    def help(self, argument: str) -> None:
        """list the commands"""
        lines = [(name, text) for name, (_, text) in COMMANDS.items()]
        render.note(render.facts([*lines, ("/exit", "leave (also Ctrl-D)")]))
        render.note("Alt-Enter (or Esc, Enter) makes a new line in a message.")

    def clear(self, argument: str) -> None:
        """forget the conversation; the system text stays"""
        self.conversation.clear()
        self._session = None
        self._last = None
        render.note("(the conversation is empty)")

    def system(self, argument: str) -> None:
        """show the system text, or set it: /system TEXT (/system - removes it)"""
        if argument:
            self.conversation.set_system(None if argument == "-" else argument)
            render.note("(set)" if argument != "-" else "(removed)")
        else:
            render.note(self.conversation.system or "(no system text)")

    def model(self, argument: str) -> None:
        """show the installed models, or go on with another: /model NAME"""
        if not argument:
            here = self.loaded.prepared.found.model
            for each in library.installed():
                mark = "*" if here and (each.model, each.quantization) == (here.model, here.quantization) else " "
                render.note(f"{mark} {each.model} ({each.quantization}, {render.size(each.size_bytes)})")
            return
        prepared = answer.prepare(argument, self._wished, None)  # what is wrong with it costs nothing yet
        previous = self.loaded.prepared
        self.loaded.engine.close()  # first, since two may not fit
        with Interrupts() as interrupts:
            try:
                self.loaded = answer.load_prepared(prepared, interrupts)
            except (LocalaiError, KeyboardInterrupt):
                self.loaded = answer.load_prepared(previous, Interrupts())
                raise
            finally:
                self.conversation.engine = self.loaded.engine
                self.conversation.sampling = options.sampling(self.loaded.name, self._flags)
        render.note(f"(now {self.loaded.name}, {self.loaded.plan.context:,} tokens of context)")

    def stats(self, argument: str) -> None:
        """show tokens and speeds of the last answer"""
        if self._last is None:
            render.note("(nothing is answered yet)")
            return
        used = self._last.usage.prompt_tokens + self._last.usage.completion_tokens
        render.note(answer.stats_line(self._last))
        render.note(f"{used:,} of {self.loaded.plan.context:,} tokens of context in use")


COMMANDS: dict[str, tuple[Callable[[Room, str], None], str]] = {
    f"/{function.__name__}": (function, function.__doc__ or "")
    for function in (Room.help, Room.clear, Room.system, Room.model, Room.stats)
}


def line_reader() -> Callable[[str], str]:
    """What reads a message: prompt_toolkit's editor, or the bare terminal's where it can do no more.

    The reader raises EOFError at Ctrl-D and KeyboardInterrupt at Ctrl-C.
    """
    if os.environ.get("TERM", "dumb") == "dumb":
        return read_plain_line
    session = editor()
    return lambda prompt: session.prompt(prompt)


def read_plain_line(prompt: str) -> str:
    line = render.ask(prompt.strip())
    if line is None:
        raise EOFError
    return line


def editor() -> PromptSession[str]:
    """A line editor with history and completion of commands; its prompt is on stderr: stdout has the answers alone."""
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import Completer, Completion
    from prompt_toolkit.history import InMemoryHistory
    from prompt_toolkit.key_binding import KeyBindings
    from prompt_toolkit.output.defaults import create_output

    class SlashCommands(Completer):
        def get_completions(self, document: Any, complete_event: Any) -> Any:
            typed = document.text_before_cursor
            if typed.startswith("/model "):
                words, typed = sorted({each.model for each in library.installed()}), typed.removeprefix("/model ")
            elif typed.startswith("/"):
                words = [*COMMANDS, "/exit"]
            else:
                return
            yield from (Completion(word, start_position=-len(typed)) for word in words if word.startswith(typed))

    keys = KeyBindings()

    @keys.add("escape", "enter")
    def _(event: Any) -> None:
        event.current_buffer.insert_text("\n")

    return PromptSession(
        history=InMemoryHistory(),
        completer=SlashCommands(),
        complete_while_typing=False,
        key_bindings=keys,
        output=create_output(stdout=sys.stderr),
    )
