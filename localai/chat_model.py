"""The model of a chat: the server's or one of its own, changed for another while the conversation goes on."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from localai import images, kept_states, library, loading, render, terminal
from localai.commands import model_loading
from localai.domain.engine import ChatEngine
from localai.domain.generation import Event, GenerationRequest, Message
from localai.errors import EngineError, LocalaiError
from localai.interrupt import Interrupts
from localai.loading import Prepared

if TYPE_CHECKING:
    from localai.room import Room


class NoEngine(ChatEngine):
    """Where there is no model, since none could be loaded: says so, whatever is asked."""

    context = 0
    load_ms = 0.0

    def count_tokens(self, messages: Sequence[Message], think: bool | None = None) -> int:
        raise EngineError("no model is loaded", "/model NAME loads one")

    def generate(self, request: GenerationRequest, cancelled: Callable[[], bool]) -> Iterator[Event]:
        raise EngineError("no model is loaded", "/model NAME loads one")

    def close(self) -> None:
        pass


def planned_here(room: Room) -> Prepared:
    """The present model as it would be loaded into this process, with no less context. Raises LocalaiError."""
    found, context = room.loaded.prepared.found, room.loaded.plan.context
    return model_loading.prepare(str(found.path), room.load_options, context, alone=True)


def load_here(room: Room, prepared: Prepared, interrupts: Interrupts) -> None:
    room.take(model_loading.load_prepared(prepared, interrupts))


def see(room: Room) -> None:
    """Have a model that looks at images: the server's is loaded here for it. Raises LocalaiError."""
    if room.loaded.prepared.warm is None:
        loading.refuse_blind(room.loaded.prepared)
        return
    prepared = planned_here(room)
    loading.refuse_blind(prepared)
    with Interrupts() as interrupts:
        load_here(room, prepared, interrupts)


def set_context(room: Room, tokens: int | None) -> None:
    """Load the model again with another context. Raises LocalaiError and keeps the present one."""
    before = room.load_options
    room.load_options = replace(before, context=tokens)
    try:
        change(room, str(room.loaded.prepared.found.path))
    except BaseException:
        room.load_options = before
        raise


def change(room: Room, name: str) -> None:
    """Go on with another model. Raises LocalaiError, KeyboardInterrupt, and keeps the present one."""
    found = library.find(name)
    loading.header_of(found)  # what is wrong with it costs nothing yet
    before, load_options = room.loaded, room.load_options
    if load_options.draft is not None and found.path != before.prepared.found.path:
        load_options = replace(load_options, draft=None)
        render.note(f"(without the draft model {room.load_options.draft}, which guesses for {before.name})")
    pictures = bool(room.images) or any(each.images for each in room.conversation.turns)
    session = room.kept_session()
    with Interrupts(presses=sys.maxsize):  # no Ctrl-C leaves the chat without a model
        try:
            with Interrupts() as interrupts:
                room.take(replace(before, engine=NoEngine()))
                kept_states.leave(before, session, interrupts.requested)  # first: two may not fit, nor be planned
                prepared = model_loading.prepare(
                    name, load_options, None, alone=pictures, cancelled=interrupts.requested
                )
                load_here(room, prepared, interrupts)
        except (LocalaiError, KeyboardInterrupt):
            if not terminal.ending():
                load_again(room, before.prepared, session)
            raise
    room.load_options = load_options
    render.note(f"(now {room.loaded.name}, {room.loaded.plan.context:,} tokens of context)")
    forget_images(room)


def load_again(room: Room, prepared: Prepared, session: int | None) -> None:
    """Have the model back that was there before, with what it held of the conversation."""
    try:
        load_here(room, prepared, Interrupts())
    except LocalaiError as error:
        render.note(f"({prepared.found.name} cannot be loaded again, /model NAME takes another: {error.message})")
        return
    if session is not None:
        kept_states.restore(session, room.loaded)  # else it is read again


def forget_images(room: Room) -> None:
    """Go on without the pictures, where the model cannot see them."""
    turns = room.conversation.turns
    pictures = len(room.images) + sum(len(each.images) for each in turns)
    if pictures and loading.projector_of(room.loaded.prepared.found) is None:
        room.images.clear()
        room.conversation.recall([images.told(each) for each in turns])
        render.note(
            f"({room.loaded.name} cannot see: the conversation goes on without its {render.count(pictures, 'image')})"
        )
