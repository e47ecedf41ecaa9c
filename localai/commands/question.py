"""What `run` and `map` ask: the prompt, what is piped in, files and a preset, put together; and cut where wanted."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from localai import chat, render
from localai.commands import stdin
from localai.domain.engine import ChatEngine
from localai.domain.generation import Image, Message, Sampling
from localai.errors import UsageError

if TYPE_CHECKING:
    from localai.answer_schema import AnswerSchema
    from localai.batch import Asking
    from localai.presets import Preset, PresetText

LETTERS_PER_TOKEN = 2.5  # few tokenizers do worse on ordinary words; a plan only has to be large enough
LETTERS = b" abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
TOKENS_PER_IMAGE = 1200  # more than most models take for one; it is counted before the answer


def read_prompt(words: list[str], needed: bool, reads: bool) -> tuple[str, str]:
    """The arguments, and what stdin holds where it is no terminal and is not a file (`reads` False).

    Raises UsageError where one of both is `needed`.
    """
    asked = " ".join(words).strip()
    reads = reads and sys.stdin is not None and not render.is_terminal(sys.stdin)
    piped = stdin.read_text().strip("\r\n") if reads else ""
    if not piped.strip():
        piped = ""
    if needed and not asked and not piped:
        raise UsageError("there is no prompt", 'localai run "Name the capital of France.", or pipe text into it')
    return asked, piped


def likely_tokens(messages: Iterable[Message]) -> int:
    """About how many tokens texts take, rather too many: digits, signs and other scripts may take one a byte."""
    text = "".join(message.content for message in messages).encode("utf-8", "replace")
    others = len(text.translate(None, delete=LETTERS))
    return int((len(text) - others) / LETTERS_PER_TOKEN) + others


@dataclass(frozen=True, slots=True)
class Question:
    """A question in its parts. `content` is what may be cut: documents, or what was piped in.

    `sampling` is what the preset wants, `schema` what the answer must meet.
    """

    system: str | None
    before: str
    content: str
    after: str
    preset: Preset | None = None
    text: PresetText | None = None
    variables: dict[str, str] | None = None
    schema: AnswerSchema | None = None
    images: tuple[Image, ...] = ()

    @property
    def sampling(self) -> dict[str, float]:
        return dict(self.preset.sampling) if self.preset else {}

    def messages(self, content: str | None = None) -> tuple[Message, ...]:
        """The conversation to answer, with another content where one is given. Raises UsageError for the preset's."""
        parts = (self.before, self.content if content is None else content, self.after)
        user, system = "\n\n".join(part for part in parts if part), self.system
        if self.preset is not None and self.text is not None:
            from localai import presets

            filled = presets.fill(self.preset, self.text, self.variables or {}, user)
            user, system = filled.user, filled.system if self.system is None else self.system
        return (*([Message("system", system)] if system else []), Message("user", user, self.images))

    def likely_tokens(self) -> int:
        """About how many tokens it takes, rather too many."""
        return likely_tokens(self.messages()) + TOKENS_PER_IMAGE * len(self.images)

    def cut(self, engine: ChatEngine, max_tokens: int | None, think: bool | None) -> Question:
        """The question with as much of its content's beginning as the context holds beside an answer; tells if cut."""
        room = engine.context - chat.reserve(engine.context, max_tokens)
        whole = engine.count_tokens(self.messages(), think)
        if whole <= room:
            return self
        low, high = 0, len(self.content)  # so many characters fit; so many may
        while low < high:
            middle = (low + high + 1) // 2
            if engine.count_tokens(self.messages(self.content[:middle]), think) <= room:
                low = middle
            else:
                high = middle - 1
        kept = replace(self, content=self.content[:low])
        tokens = engine.count_tokens(kept.messages(), think)
        render.note(
            f"warning: the input is cut to fit the context of {engine.context:,} tokens: the first {low:,} of"
            f" {len(self.content):,} characters are read, {tokens:,} of {whole:,} tokens"
        )
        return kept


def compose(
    asked: str,
    piped: str,
    system: str | None,
    preset: str | None = None,
    variables: Sequence[str] = (),
    language: str | None = None,
    schema_given: str | None = None,
    files: Sequence[Path] = (),
    pictures: Sequence[Path] = (),
) -> Question:
    """Put a question together: documents first, then the task. Raises UsageError, NotFound for what is not there."""
    from localai import documents, images, presets

    check_for_preset(preset, variables, language)
    chosen = presets.find(preset) if preset is not None else None
    schema = schema_wanted(schema_given, chosen)
    if files:
        content = documents.together([documents.read(path) for path in files])
        before, after = "", "\n\n".join(part for part in (asked, piped) if part)
    elif piped:
        before, content, after = asked, piped, ""
    else:
        before, content, after = "", asked, ""
    text = chosen.text(language) if chosen else None
    given = presets.given_variables(variables)
    seen = tuple(images.read(path) for path in pictures)
    question = Question(system, before, content, after, chosen, text, given, schema, seen)
    question.messages()  # a missing variable is told before a model is loaded
    return question


def check_for_preset(preset: str | None, variables: Sequence[str], language: str | None) -> None:
    """Raise UsageError for what is of use with a preset alone."""
    if preset is None and (variables or language is not None):
        raise UsageError("--var and --language are for a preset", "add --preset NAME; localai presets list shows them")


def compose_for_records(
    template: str | None,
    form: str,
    system: str | None,
    preset: str | None,
    variables: Sequence[str],
    language: str | None,
    schema_given: str | None,
    limit: int,
    stop: Sequence[str],
    think: bool | None,
) -> Asking:
    """What each record is asked. Raises UsageError for what no record could ever be asked."""
    from localai import presets, record_template
    from localai.batch import Asking

    if template is None and preset is None:
        raise UsageError("there is no template", "localai map 'Summarize: {text}' < lines.txt")
    parsed = record_template.parse("{text}" if template is None else template)
    if not parsed.fields:
        raise UsageError("the template has no field: all records would be asked the same", "put {text} into it")
    there = {"lines": ("text",), "files": ("text", "name", "path")}.get(form, parsed.fields)
    if missing := [name for name in parsed.fields if name not in there]:
        raise UsageError(
            f"with --input {form} there is no field {missing[0][:100]!r}",
            f"there is {', '.join(f'{{{name}}}' for name in there)}; --input jsonl has the fields of its records",
        )
    check_for_preset(preset, variables, language)
    chosen = presets.find(preset) if preset is not None else None
    held = schema_wanted(schema_given, chosen)
    asking = Asking(
        parsed,
        system,
        Sampling(),
        limit,
        tuple(stop),
        False if held is not None and think is None else think,  # the grammar leaves no room for thoughts
        held,
        chosen,
        chosen.text(language) if chosen else None,
        presets.given_variables(variables),
    )
    asking.probes()  # a missing variable is told before a model is loaded
    return asking


def schema_wanted(given: str | None, preset: Preset | None) -> AnswerSchema | None:
    """What the answer must meet: the schema given, else the preset's. Raises UsageError for what is none."""
    if given is not None:
        from localai.answer_schema import from_option

        return from_option(given)
    if preset is not None and preset.schema:
        from localai.answer_schema import from_text

        return from_text(preset.schema, f"the schema of the preset {preset.name}")
    return None
