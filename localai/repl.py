"""The interactive conversation: reads a line, streams the answer, obeys slash commands, survives Ctrl-C.

The conversation itself is `localai.chat`, its commands are `localai.slash`; this module holds them together.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from localai import chat, documents, kept_states, line_editor, recording, render, sessions, terminal
from localai.answer_view import AnswerView
from localai.commands import model_loading, options
from localai.commands.options import SamplingFlags
from localai.domain.generation import AnswerEnd, AnswerText, Event, Image, Message, ThinkingText
from localai.errors import ContextOverflow, EngineError, LocalaiError, NotFound, SchemaIncomplete
from localai.interrupt import Interrupts
from localai.loading import Loaded, Prepared, Wishes, projector_of, refuse_blind
from localai.slash import table

if TYPE_CHECKING:
    from localai.slash.files import ActivePreset

GREETING = "/help lists the commands, Ctrl-C stops an answer, Ctrl-D leaves."
ROOM_TO_ANSWER = 512  # tokens, beside a question that needs a larger context
PATIENCE = 5  # presses of Ctrl-C after which a turn is torn down, whatever the engine is doing


def talk(
    model: str | None,
    system: str | None,
    flags: SamplingFlags,
    wished: Wishes,
    max_tokens: int | None,
    think: bool | None,
    private: bool = False,
    resume: sessions.Session | None = None,
) -> None:
    """Load `model` and converse until the user leaves. `system` and `flags` are what was given on the command line.

    What is said is kept on this disk, as a new conversation or as more of `resume`, unless it is `private`.
    """
    room = Room(flags, wished, max_tokens, think, private)
    room.enter(model, system, alone=resume is not None)  # a kept state is of use only to an engine of our own
    try:
        with terminal.conversing():
            if resume is not None:
                room.resume(resume)
            room.loop()
    finally:
        room.leave()


class Room:
    """One conversation at a terminal, and what its commands change."""

    loaded: Loaded
    conversation: chat.Conversation
    given_system: str | None  # on the command line: it goes before a kept conversation's own

    def __init__(
        self, flags: SamplingFlags, wished: Wishes, max_tokens: int | None, think: bool | None, private: bool
    ) -> None:
        self.flags = dict(flags)
        self.private = private
        self.session: int | None = None
        self.last: AnswerEnd | None = None
        self.documents: list[documents.Document] = []
        self.images: list[Image] = []
        self.preset: ActivePreset | None = None
        self.show_thoughts = False
        self._wished, self._max_tokens, self._think = wished, max_tokens, think
        self._used: int | None = 0  # tokens of context; None: to be counted
        self._reader = line_editor.reader(lambda text: table.complete(self, text), self.meter, private)

    def enter(self, model: str | None, system: str | None, alone: bool = False) -> None:
        """Load the model and begin an empty conversation; `alone` means not from the server's memory."""
        with Interrupts() as interrupts:
            self.loaded = model_loading.load(model, self._wished, None, interrupts, alone)
        self.given_system = system
        self.conversation = chat.Conversation(
            self.loaded.engine,
            system=options.setting("system", system),
            sampling=options.sampling(self.loaded.name, self.flags),
            max_tokens=self._max_tokens,
            think=self._think,
        )
        note = f"; {self.loaded.note}" if self.loaded.note else ""
        render.note(f"{self.loaded.name}: {self.loaded.plan.context:,} tokens of context{note}.")
        render.note(GREETING)

    def leave(self) -> None:
        """Free the model; what it holds of a kept conversation is saved, which Ctrl-C leaves off."""
        with Interrupts() as interrupts:
            kept = None
            with contextlib.suppress(LocalaiError):
                kept = self.session if self.session is not None and sessions.exists(self.session) else None
            kept_states.leave(self.loaded, kept, interrupts.requested)

    def loop(self) -> None:
        """Read and answer until the user leaves; what goes wrong in a turn is told, and the conversation goes on."""
        left = False
        while not left:
            try:
                left = self._step()
            except KeyboardInterrupt:
                with contextlib.suppress(KeyboardInterrupt):
                    render.note("(stopped)")

    def _step(self) -> bool:
        """One message or command; True ends the conversation."""
        try:
            line = self._reader.read()
        except KeyboardInterrupt:
            render.note("(Ctrl-D or /exit leaves)")
            return False
        except EOFError:
            return True
        if not line.strip():
            return False
        try:
            if table.is_command(line.strip()):
                with terminal.interruptible():
                    return table.obey(self, line.strip())
            self.ask(line)
        except LocalaiError as error:
            render.error(error.message, self._hint(error, line))
        return False

    def _hint(self, error: LocalaiError, line: str) -> str:
        """What to do next, in the words of the chat: a hint at the shell's would be of no use here."""
        if isinstance(error, ContextOverflow):
            made_for, needed = self.loaded.prepared.context_length, error.needed_tokens
            larger = -(-((needed or 0) + ROOM_TO_ANSWER) // 1024) * 1024
            if needed is not None and made_for is not None and larger <= made_for:
                return f"shorten it, or make room: /set context {larger}"
            return "shorten it, or take the part of it that matters"
        if isinstance(error, SchemaIncomplete):
            return "/set max_tokens allows a longer answer, /retry asks again, /preset off asks freely"
        if "localai " in error.hint or "--" in error.hint:
            return table.hint(line.strip())
        return error.hint

    # ------------------------------------------------------------------------------------------------- asking

    def ask(self, text: str) -> None:
        """Ask, with the files that wait and through the preset; Ctrl-C stops the answer and keeps what was said."""
        waiting = [documents.together(self.documents)] if self.documents else []
        if self._respond("\n\n".join([*waiting, text]), tuple(self.images)):
            self.documents.clear()
            self.images.clear()

    def ask_instead(self, text: str | None) -> None:
        """Answer the last question again, or `text` instead of it; the old turn stays where there is no new one."""
        before, answered = self.conversation.turns, False
        if (turn := self.conversation.undo()) is None:
            return
        try:
            answered = self._respond(turn[0].content if text is None else text, turn[0].images, instead_of=1)
        finally:
            if not answered:
                self.conversation.recall(before)

    def _respond(self, question: str, images: tuple[Image, ...], instead_of: int = 0) -> bool:
        """Stream the answer; whether there was any."""
        held = self.preset.schema if self.preset else None
        if self.preset is not None and not instead_of:
            filled = self.preset.fill(question)
            self.conversation.set_system(filled.system)
            question = filled.user
        self.conversation.grammar = held.grammar if held else None
        view = AnswerView(self.show_thoughts, exact=held is not None)
        end: AnswerEnd | None = None
        with Interrupts(PATIENCE) as interrupts:
            try:
                for event in self._answer(question, images, interrupts):
                    view.show(event)
                    if isinstance(event, AnswerEnd):
                        end = event
                        self._used = event.usage.prompt_tokens + event.usage.completion_tokens
                        named = [f"[image: {each.name}]" for each in images]
                        self._keep("\n".join([*named, question]), event.text, instead_of)
            finally:
                view.end()
        assert end is not None, "an engine ends with AnswerEnd"
        self.last = end
        if not self.private:
            recording.keep(self.loaded.prepared, end, "chat")
        if end.finish_reason == "interrupted":
            render.note("(stopped)")
        elif end.finish_reason == "length":
            render.note("(cut off: the limit of tokens is reached)")
        if held is not None and end.finish_reason != "interrupted":
            held.check(end.text, cut=end.finish_reason == "length")
        return bool(end.text)

    def _answer(self, question: str, images: tuple[Image, ...], interrupts: Interrupts) -> Iterator[Event]:
        """The answer's events. Where the server that holds the model is gone, it is loaded here and asked once more."""
        said = False
        try:
            for event in self.conversation.ask(question, images, cancelled=interrupts.requested):
                said = said or isinstance(event, AnswerText | ThinkingText | AnswerEnd)
                yield event
            return
        except (NotFound, EngineError):
            if said or self.loaded.prepared.warm is None:
                raise
        self._load_here(self._planned_here(), interrupts)
        yield from self.conversation.ask(question, images, cancelled=interrupts.requested)

    def _planned_here(self) -> Prepared:
        """The present model as it would be loaded into this process, with no less context. Raises LocalaiError."""
        found, context = self.loaded.prepared.found, self.loaded.plan.context
        return model_loading.prepare(str(found.path), self._wished, context, alone=True)

    def _load_here(self, prepared: Prepared, interrupts: Interrupts) -> None:
        self.loaded = model_loading.load_prepared(prepared, interrupts)
        self.conversation.engine = self.loaded.engine

    def see(self) -> None:
        """Have a model that looks at images: the server's is loaded here for it. Raises LocalaiError."""
        if self.loaded.prepared.warm is None:
            refuse_blind(self.loaded.prepared)
            return
        prepared = self._planned_here()
        refuse_blind(prepared)
        with Interrupts() as interrupts:
            self._load_here(prepared, interrupts)

    def _keep(self, question: str, said: str, instead_of: int) -> None:
        if not self.private and said:
            system, model = self.conversation.system, self.loaded.prepared.found.lasting_name
            self.session = sessions.keep(self.session, model, system, question, said, instead_of=instead_of)

    # ------------------------------------------------------------------------------------- what commands change

    def meter(self) -> str:
        """What stands at the right of the prompt: the files that wait, and how full the context is."""
        names = [*(each.name for each in self.documents), *(each.name for each in self.images)]
        waiting = [f"+{render.safe(name)}" for name in names]
        with contextlib.suppress(LocalaiError):  # the server has gone: the next question loads the model here
            waiting.append(f"{self.used_tokens():,}/{self.loaded.plan.context:,}")
        return " ".join(waiting)

    def used_tokens(self) -> int:
        """Tokens of context that the conversation takes."""
        if self._used is None:
            turns = self.conversation.turns
            engine, think = self.loaded.engine, self.conversation.think
            self._used = engine.count_tokens(self.conversation.messages, think) if turns else 0
        return self._used

    def forget(self) -> None:
        """Begin a new conversation with the same system text."""
        self.conversation.clear()
        self.session, self.last, self._used = None, None, 0

    def undo(self) -> str | None:
        """Take the last turn back, also from the kept conversation; returns its question, None where there is none."""
        turn = self.conversation.undo()
        if turn is None:
            return None
        if self.session is not None:
            sessions.take_back(self.session)
        self._used = None
        return turn[0].content

    def set_system(self, text: str | None) -> None:
        self.conversation.set_system(text)
        self._used = None

    def recall(self, system: str | None, turns: tuple[Message, ...], session: int | None = None) -> None:
        """Go on from these turns; `session` is where more of them are kept."""
        self.conversation.recall(turns)
        self.set_system(system)
        self.session, self.last = session, None

    def bring_in(self, system: str | None, turns: tuple[Message, ...]) -> None:
        """Go on from turns that were exported; unless this is private they are kept as a new conversation."""
        kept, system = None, self._system_for(system)
        if not self.private:
            model = self.loaded.prepared.found.lasting_name
            for question, said in zip(turns[::2], turns[1::2], strict=True):
                kept = sessions.keep(kept, model, system, question.content, said.content)
        self.recall(system, turns, kept)

    def resume(self, session: sessions.Session) -> None:
        """Go on with a kept conversation."""
        turns = sessions.messages(session)
        self.recall(self._system_for(session.system), turns, None if self.private else session.id)
        if problem := kept_states.restore(session.id, self.loaded):
            render.note(f"({problem})")
        render.note(f"(going on with conversation {session.id}, {session.turns} turns: {session.title})")
        if turns:
            view = AnswerView(False)
            render.faint(f">>> {turns[-2].content}")
            view.replay(turns[-1].content)

    def _system_for(self, own: str | None) -> str | None:
        """The system text to go on with, where a conversation has `own`."""
        found: str | None = options.setting("system", own if self.given_system is None else self.given_system)
        return found

    def use_preset(self, preset: ActivePreset | None) -> None:
        """Ask through a preset from now on, or no longer; its system text goes with it."""
        self.preset = preset
        self.set_system(preset.fill("").system if preset else None)
        self.retune()

    def retune(self) -> None:
        """Draw tokens as the flags say, else the preset, else the settings, else the model's makers."""
        preferred = dict(self.preset.preset.sampling) if self.preset else {}
        self.conversation.sampling = options.sampling(self.loaded.name, {**preferred, **self.flags})

    def set_context(self, tokens: int | None) -> None:
        """Load the model again with another context. Raises LocalaiError and keeps the present one."""
        before = self._wished
        self._wished = replace(before, context=tokens)
        try:
            self.change_model(str(self.loaded.prepared.found.path))
        except BaseException:
            self._wished = before
            raise

    def change_model(self, name: str) -> None:
        """Go on with another model. Raises LocalaiError, KeyboardInterrupt, and keeps the present one."""
        pictures = bool(self.images) or any(each.images for each in self.conversation.turns)
        # what is wrong with it costs nothing yet
        prepared = model_loading.prepare(name, self._wished, None, alone=pictures)
        previous = self.loaded.prepared
        self.loaded.engine.close()  # first, since two may not fit
        with Interrupts() as interrupts:
            try:
                self.loaded = model_loading.load_prepared(prepared, interrupts)
            except (LocalaiError, KeyboardInterrupt):
                self.loaded = model_loading.load_prepared(previous, Interrupts())
                raise
            finally:
                self.conversation.engine = self.loaded.engine
                self._used = None
                self.retune()
        render.note(f"(now {self.loaded.name}, {self.loaded.plan.context:,} tokens of context)")
        self._forget_images()

    def _forget_images(self) -> None:
        """Go on without the pictures, where the model cannot see them."""
        turns = self.conversation.turns
        pictures = len(self.images) + sum(len(each.images) for each in turns)
        if pictures and projector_of(self.loaded.prepared.found) is None:
            self.images.clear()
            self.conversation.recall([replace(each, images=()) for each in turns])
            render.note(f"({self.loaded.name} cannot see: the conversation goes on without its {pictures} images)")
