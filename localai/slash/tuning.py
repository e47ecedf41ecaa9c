"""The slash commands about how it is answered: sampling, thinking, the model, and what all that is now."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from localai import chat_model, render, settings
from localai.commands import answer
from localai.commands.options import complete_model
from localai.domain.units import GIB
from localai.errors import UsageError
from localai.slash.command import Command

if TYPE_CHECKING:
    from localai.room import Room

HIGHEST_SEED = 2**32 - 2
SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repeat_penalty", "seed")
THINK = {"on": True, "off": False, "auto": None}


def _seed(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        raise ValueError("expected a whole number") from None
    if not 0 <= value <= HIGHEST_SEED:
        raise ValueError(f"expected 0 to {HIGHEST_SEED}")
    return value


def _think(text: str) -> bool | None:
    if text not in THINK:
        raise ValueError(f"expected {', '.join(THINK)}")
    return THINK[text]


PARSERS: dict[str, Callable[[str], Any]] = {
    **{name: settings.KEYS[name].parse for name in SAMPLING if name in settings.KEYS},
    "seed": _seed,
    "max_tokens": settings.KEYS["max_tokens"].parse,
    "think": _think,
    "context": settings.KEYS["context"].parse,
}


def set_value(room: Room, argument: str) -> None:
    words = argument.replace("=", " ").split()
    if words[:1] == ["parameter"]:  # as Ollama has it
        del words[0]
    if not words:
        render.note(render.facts([(name, text) for name, text in values(room)]))
        render.note("/set NAME VALUE changes one, /set NAME default takes that back.")
        return
    name = words[0].replace("-", "_")
    if name not in PARSERS:
        raise UsageError(f"there is nothing called {words[0]!r} to set", f"/set takes {', '.join(PARSERS)}")
    if len(words) != 2:
        render.note(f"{name}: {dict(values(room))[name]}")
        return
    try:
        value = None if words[1] == "default" else PARSERS[name](words[1])
    except ValueError as error:
        raise UsageError(f"{name}: {error}, not {words[1]!r}", f"/set {name} default takes it back") from error
    if name == "max_tokens":
        room.conversation.max_tokens = value
    elif name == "think":
        room.conversation.think = value
    elif name == "context":
        chat_model.set_context(room, value)
        return
    else:
        room.flags.pop(name, None)
        if words[1] != "default":
            room.flags[name] = value
        room.retune()
    render.note(f"({name}: {dict(values(room))[name]})")


def values(room: Room) -> list[tuple[str, str]]:
    """What can be set, and what it is."""
    conversation = room.conversation
    sampling = asdict(conversation.sampling)
    limit, seed = conversation.max_tokens, sampling["seed"]
    return [
        *((name, f"{sampling[name]:g}") for name in SAMPLING[:-1]),
        ("seed", "drawn anew each time" if seed is None else str(seed)),
        ("max_tokens", f"{limit:,}" if limit else "what the context holds"),
        ("think", {value: name for name, value in THINK.items()}[conversation.think]),
        ("context", f"{room.loaded.plan.context:,}"),
    ]


def set_words(room: Room, typed: str) -> Iterable[str]:
    name, space, _ = typed.partition(" ")
    if not space:
        return PARSERS
    return [f"{name} {value}" for value in (*(THINK if name == "think" else ()), "default")]


def think(room: Room, argument: str) -> None:
    if argument in ("show", "hide"):
        room.show_thoughts = argument == "show"
        render.note("(thoughts are written out)" if room.show_thoughts else "(thoughts are folded into one line)")
        return
    if argument:
        try:
            room.conversation.think = _think(argument)
        except ValueError as error:
            raise UsageError(
                f"/think: {error}, show or hide, not {argument!r}", "/think auto is as the model does"
            ) from error
    state = {True: "on", False: "off", None: "as the model does"}[room.conversation.think]
    render.note(f"(thinking: {state}; thoughts are {'written out' if room.show_thoughts else 'folded'})")


def show(room: Room, argument: str) -> None:
    from localai import cards
    from localai.commands.models import card_facts

    plan, prepared = room.loaded.plan, room.loaded.prepared
    card = cards.card(str(prepared.found.path))
    quantization = card.variants[0].quantization if card.variants else "unknown"
    where = f"{plan.placement}, {plan.gpu_layers} layers on the GPU" if plan.gpu_layers else str(plan.placement)
    lines = [
        *card_facts(card),
        ("Quantization", quantization),
        ("Runs on", f"{where}, {plan.threads} threads, KV cache {plan.kv_type}"),
        ("Memory", f"{(plan.memory.total_bytes + plan.memory.overhead_bytes) / GIB:.1f} GiB planned"),
        ("In use", f"{room.used_tokens():,} of {plan.context:,} tokens of context"),
        ("System text", " ".join((room.conversation.system or "none").split())),
        ("Preset", room.preset.preset.name if room.preset else "none"),
        *values(room),
        (
            "Kept",
            "no, this is private"
            if room.private
            else f"as conversation {room.session}"
            if room.session
            else "yes, from the first answer on",
        ),
    ]
    render.note(render.facts(lines))


def stats(room: Room, argument: str) -> None:
    if room.last is None:
        render.note("(nothing is answered yet)")
        return
    render.note(answer.stats_line(room.last))
    render.note(f"{room.used_tokens():,} of {room.loaded.plan.context:,} tokens of context in use")


def model(room: Room, argument: str) -> None:
    from localai import library

    if argument:
        chat_model.change(room, argument)
        return
    here = room.loaded.prepared.found.model
    for each in library.writing():
        mark = "*" if here and (each.model, each.quantization) == (here.model, here.quantization) else " "
        render.note(f"{mark} {each.model} ({each.quantization}, {render.size(each.size_bytes)})")


COMMANDS = (
    Command(
        "set",
        "[NAME VALUE]",
        "show or change temperature, seed, max_tokens, context, ...",
        set_value,
        set_words,
        "/set takes another value; alone it shows what is set",
    ),
    Command(
        "think",
        "[on|off|auto|show|hide]",
        "let the model think or not; write its thoughts out or fold them",
        think,
        lambda room, typed: (*THINK, "show", "hide"),
    ),
    Command(
        "model",
        "[NAME]",
        "list the installed models, or go on with another",
        model,
        lambda room, typed: complete_model(""),
        "/model lists the installed ones",
    ),
    Command("show", "", "show the model, how it runs, and the settings", show),
    Command("stats", "", "show tokens and speeds of the last answer", stats),
)
