"""One conversation at a terminal: its model, what is asked and shown, and what its commands change.

The conversation itself is `localai.chat`, its commands are `localai.slash`; this module holds them together.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from localai import chat, chat_model, documents, history, images, kept_states, recording, render, sessions, terminal
from localai.answer_view import AnswerView, replay_question
from localai.commands import answer, model_loading, options
from localai.commands.options import SamplingFlags
from localai.commands.question import likely_tokens
from localai.domain.generation import AnswerEnd, AnswerText, Event, Image, Message, ThinkingText
from localai.errors import EngineError, LocalaiError, NotFound
from localai.estimate import DEFAULT_CONTEXT
from localai.interrupt import Interrupts
from localai.kept_turns import KeptTurns
from localai.loading import Loaded, LoadOptions, refuse_blind

if TYPE_CHECKING:
    from localai.answer_schema import AnswerSchema
    from localai.slash.files import ActivePreset

GREETING = "/help lists the commands, Ctrl-C stops an answer, Ctrl-D leaves."
ROOM_TO_GO_ON = 2048  # tokens, beside a kept conversation
PATIENCE = 5  # presses of Ctrl-C after which a turn is torn down, whatever the engine is doing


@dataclass(frozen=True, slots=True)
class Given:
    """What the command line says of a chat: how its questions are asked, and what goes with the first one."""

    system: str | None = None
    flags: SamplingFlags = field(default_factory=dict)
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    think: bool | None = None
    documents: tuple[documents.Document, ...] = ()
    images: tuple[Image, ...] = ()
    preset: ActivePreset | None = None
    schema: AnswerSchema | None = None
    stats: bool = False


class Room:
    """One conversation at a terminal, and what its commands change."""

    loaded: Loaded
    conversation: chat.Conversation
    own_system: str | None  # that of the conversation, where no preset has one

    def __init__(self, given: Given, load_options: LoadOptions, private: bool) -> None:
        self.given = given
        self.flags = dict(given.flags)
        self.private = private
        self.load_options = load_options
        self.last: AnswerEnd | None = None
        self.documents = list(given.documents)
        self.images = list(given.images)
        self.preset: ActivePreset | None = None
        self.show_thoughts = False
        self.unanswered: str | None = None  # the question that a resumed conversation ended with
        self.typed = history.Typed(private)
        self._kept = KeptTurns(private)
        self._used: int | None = 0  # tokens of context; None: to be counted

    @property
    def session(self) -> int | None:
        """The kept conversation that this is; None while nothing is kept."""
        return self._kept.session

    def enter(self, model: str | None, resume: sessions.Session | None = None) -> None:
        """Load the model and begin an empty conversation, with room for the kept one where one is to be resumed."""
        given = self.given
        with Interrupts() as interrupts:
            # a kept state is of use only to an engine of our own, with the context that it was made with
            wanted = None if resume is None else self._context_for(resume)
            alone = resume is not None or bool(given.images)
            prepared = model_loading.prepare(
                model, self.load_options, wanted, alone=alone, cancelled=interrupts.requested
            )
            if given.images:
                refuse_blind(prepared)
            self.loaded = model_loading.load_prepared(prepared, interrupts)
        self.own_system = options.setting("system", given.system)
        sampling = options.sampling(self.loaded.name, self.flags)
        self.conversation = chat.Conversation(
            self.loaded.engine, self.own_system, sampling, given.max_tokens, given.stop, given.think
        )
        if given.preset is not None:
            self.use_preset(given.preset)
        note = f"; {self.loaded.note}" if self.loaded.note else ""
        render.note(f"{self.loaded.name}: {self.loaded.plan.context:,} tokens of context{note}.")
        render.note(GREETING)

    def leave(self) -> None:
        """Free the model; what it holds of a kept conversation is saved, which Ctrl-C leaves off."""
        self.typed.keep(self.session, leaving=True)
        with Interrupts() as interrupts:
            kept_states.leave(self.loaded, self.kept_session(), interrupts.requested)

    def kept_session(self) -> int | None:
        """The kept conversation whose state the model now holds, and nothing besides; None where none is kept."""
        session = self.session
        with contextlib.suppress(LocalaiError):
            if session is not None and self.conversation.turns and sessions.exists(session):
                self.loaded.engine.keep_only(self.conversation.messages, self.conversation.think)
                return session
        return None

    def _save_state(self) -> None:
        """Keep what the model holds of this conversation before it goes on with another; Ctrl-C leaves it off."""
        if (session := self.kept_session()) is not None:
            with Interrupts() as interrupts:
                kept_states.save(self.loaded, session, interrupts.requested)

    def take(self, loaded: Loaded) -> None:
        """Go on with another model."""
        self.loaded = loaded
        self.conversation.engine = loaded.engine
        self._used = None
        self.retune()

    # ------------------------------------------------------------------------------------------------- asking

    def ask(self, text: str) -> None:
        """Ask, with the files that wait and through the preset; Ctrl-C stops the answer and keeps what was said."""
        waiting = [documents.together(self.documents)] if self.documents else []
        before = self.conversation.last
        try:
            question = "\n\n".join([*waiting, text])
            if self.preset is not None:
                filled = self.preset.fill(question)
                self.conversation.set_system(filled.system)
                question = filled.user
            self._respond(question, tuple(self.images))
        finally:
            if self.conversation.last is not before:
                self.documents.clear()
                self.images.clear()

    def ask_instead(self, text: str | None) -> None:
        """Answer the last question again, or `text` instead of it; the old turn stays where there is no new one."""
        if self.unanswered is not None:
            self._respond(self.unanswered if text is None else text, ())
            return
        turns = self.conversation.turns
        if (turn := self.conversation.undo()) is None:
            return
        before = self.conversation.last
        try:
            self._respond(
                turn[0].content if text is None else text, turn[0].images, replaces=images.told(turn[0]).content
            )
        finally:
            if self.conversation.last is before:
                self.conversation.recall(turns)

    def _respond(self, question: str, pictures: tuple[Image, ...], replaces: str | None = None) -> None:
        """Stream the answer, and keep the turn: in place of the last one where it `replaces` that one's question."""
        held = self.given.schema or (self.preset.schema if self.preset else None)
        self.conversation.grammar = held.grammar if held else None
        view = AnswerView(self.show_thoughts, exact=held is not None)
        end: AnswerEnd | None = None
        with (
            Interrupts(PATIENCE) as interrupts,
            self._keeping(images.told(Message("user", question, pictures)).content, replaces),
        ):
            try:
                with contextlib.closing(self._answer(question, pictures, interrupts)) as events:
                    for event in events:
                        view.show(event)
                        if isinstance(event, AnswerEnd):
                            end = event
            finally:
                view.end()
        assert end is not None, "an engine ends with AnswerEnd"
        self.last = end
        self._used = end.usage.prompt_tokens + end.usage.completion_tokens if end.text else None
        if not self.private:
            recording.keep(self.loaded.prepared, end, "chat")
        if end.finish_reason == "interrupted":
            render.note("(stopped)")
        elif end.finish_reason == "length":
            where = "" if end.text else " among the thoughts, and nothing is answered"
            limited = end.usage.completion_tokens == self.conversation.max_tokens
            full = f"the context of {self.loaded.engine.context:,} tokens is full"
            render.note(f"(cut off{where}: {'the limit of tokens is reached' if limited else full})")
        elif not end.text:
            render.note("(the model says nothing to that)")
        if self.given.stats:
            render.note(answer.stats_line(end))
        if held is not None and end.finish_reason != "interrupted":
            held.check(end.text, cut=end.finish_reason == "length")

    @contextlib.contextmanager
    def _keeping(self, question: str, replaces: str | None) -> Iterator[None]:
        """Within, the question is kept; after it the turn, however much of an answer there was, or neither.

        A signal that ends the program leaves the question, as the end that nobody hears of does.
        """
        system, model = self.conversation.system, self.loaded.prepared.found.lasting_name
        before = self.conversation.last
        self._kept.ask(model, system, question)
        try:
            yield
        finally:
            said = self.conversation.last
            if said is None or said is before:
                if not terminal.ending():
                    self._kept.unask()
            else:
                self.unanswered = None
                try:
                    self._kept.add(model, system, question, said.content, replaces)
                except LocalaiError as error:
                    render.error(error.message, "the chat goes on; this turn is kept with the next one, if that works")

    def _answer(self, question: str, images: tuple[Image, ...], interrupts: Interrupts) -> Generator[Event, None, None]:
        """The answer's events. Where the server that holds the model is gone, it is loaded here and asked once more."""
        said = False
        try:
            for event in self.conversation.ask(question, images, cancelled=interrupts.requested):
                said = said or isinstance(event, AnswerText | ThinkingText | AnswerEnd)
                yield event
            return
        except (NotFound, EngineError):
            if said or self.loaded.prepared.warm is None or interrupts.requested():
                raise
        chat_model.load_here(self, chat_model.planned_here(self), interrupts)
        yield from self.conversation.ask(question, images, cancelled=interrupts.requested)

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
        self._save_state()
        self.conversation.clear()
        self._kept, self.last, self._used, self.unanswered = KeptTurns(self.private), None, 0, None

    def undo(self) -> str | None:
        """Take the last turn back, also from the kept conversation; returns its question, None where there is none."""
        session, question = self.session, self.unanswered
        if question is not None:
            self._kept.unask()
            self.unanswered = None
        elif self.conversation.turns:
            question = self.conversation.turns[-2].content
            self._kept.take_back(images.told(self.conversation.turns[-2]).content)
            self.conversation.undo()
            self._used = None
        else:
            return None
        if session is not None:
            emptied = self.session is None
            with contextlib.suppress(OSError):
                history.forget(session, lambda line: emptied or f"\n\n{question}".endswith(f"\n\n{line.strip()}"))
        return question

    def set_system(self, text: str | None) -> None:
        """Give another system text, also in place of the preset's own."""
        self.own_system = text
        if self.preset is not None:
            self.preset = self.preset.with_system(text)
        self.conversation.set_system(text)
        self._used = None

    def _recall(self, system: str | None, turns: tuple[Message, ...], kept: KeptTurns) -> None:
        """Go on from these turns; `kept` is where more of them go."""
        self._save_state()
        self.conversation.recall(turns)
        self.own_system = system
        if self.preset is None:
            self.conversation.set_system(system)
        self._kept, self.last, self._used, self.unanswered = kept, None, None, None

    def bring_in(self, system: str | None, turns: tuple[Message, ...]) -> None:
        """Go on from turns that were exported; unless this is private they are kept as a new conversation."""
        kept, system = KeptTurns(self.private), self._system_for(system)
        for question, said in zip(turns[::2], turns[1::2], strict=True):
            kept.add(self.loaded.prepared.found.lasting_name, system, question.content, said.content)
        self._recall(system, turns, kept)

    def resume(self, session: sessions.Session) -> None:
        """Go on with a kept conversation."""
        said = sessions.messages(session)
        turns = sessions.answered(said)
        self._recall(self._system_for(session.system), turns, KeptTurns(self.private, session.id))
        if problem := kept_states.restore(session.id, self.loaded):
            render.note(f"({problem})")
        render.note(
            f"(going on with conversation {session.id}, {render.count(len(turns) // 2, 'turn')}: {session.title})"
        )
        if turns:
            view = AnswerView(False)
            replay_question(turns[-2].content)
            view.replay(turns[-1].content)
        if len(said) > len(turns):
            self.unanswered = said[-1].content
            render.note("(it ended before this was answered; /retry asks it, or ask something else)")
            replay_question(said[-1].content)

    def _context_for(self, session: sessions.Session) -> int:
        """Tokens of context to resume a conversation with: what its state was made with, else what it takes."""
        needed = likely_tokens([*sessions.messages(session), Message("system", session.system or "")])
        return kept_states.context(session.id) or max(DEFAULT_CONTEXT, needed + ROOM_TO_GO_ON)

    def _system_for(self, own: str | None) -> str | None:
        """The system text to go on with, where a conversation has `own`."""
        found: str | None = options.setting("system", own if self.given.system is None else self.given.system)
        return found

    def use_preset(self, preset: ActivePreset | None) -> None:
        """Ask through a preset from now on, or no longer; its system text goes with it, unless a flag gives one."""
        if preset is not None and self.given.system is not None:
            preset = preset.with_system(self.given.system)
        self.preset = preset
        self.conversation.set_system(preset.fill("").system if preset else self.own_system)
        self._used = None
        self.retune()

    def retune(self) -> None:
        """Draw tokens as the flags say, else the preset, else the settings, else the model's makers."""
        preferred = dict(self.preset.preset.sampling) if self.preset else {}
        self.conversation.sampling = options.sampling(self.loaded.name, {**preferred, **self.flags})
