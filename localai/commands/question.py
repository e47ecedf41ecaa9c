"""What `run` asks: the prompt, what is piped in, files and a preset, put together; and cut where that is wanted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from localai import render
from localai.commands.presets import complete_preset
from localai.domain.engine import ChatEngine
from localai.domain.generation import Image, Message
from localai.errors import UsageError

if TYPE_CHECKING:
    from localai.answer_schema import AnswerSchema
    from localai.presets import Preset, PresetText

ON_OVERFLOW = ("error", "truncate")
ANSWER_RESERVE = 512  # tokens kept free for an answer whose length nobody has said
RESERVE_SHARE = 4  # but at most a quarter of the context

PresetOption = Annotated[
    str | None,
    typer.Option(
        "--preset", "-p", metavar="NAME", help="Ask in the words of this preset.", autocompletion=complete_preset
    ),
]
VariableOption = Annotated[
    list[str] | None, typer.Option("--var", metavar="NAME=VALUE", help="A variable of the preset; repeatable.")
]
SchemaOption = Annotated[
    Path | None,
    typer.Option("--json-schema", metavar="FILE", help="Answer with JSON of this schema, or exit with 8."),
]
FileOption = Annotated[
    list[Path] | None,
    typer.Option("--file", "-f", metavar="PATH", help="Read this file (PDF, DOCX, HTML, text) first; repeatable."),
]
ImageOption = Annotated[
    list[Path] | None,
    typer.Option("--image", metavar="PATH", help="Look at this image, with a model that sees; repeatable."),
]
OverflowOption = Annotated[
    str,
    typer.Option("--on-overflow", metavar="WHAT", help="An input larger than the context: error (exit 7) or truncate."),
]


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

    def cut(self, engine: ChatEngine, max_tokens: int | None, think: bool | None) -> Question:
        """The question with as much of its content's beginning as the context holds beside an answer; tells if cut."""
        room = engine.context - min(max_tokens or ANSWER_RESERVE, engine.context // RESERVE_SHARE)
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
        kept = self._with(self.content[:low])
        tokens = engine.count_tokens(kept.messages(), think)
        render.note(
            f"warning: the input is cut to fit the context of {engine.context:,} tokens: the first {low:,} of"
            f" {len(self.content):,} characters are read, {tokens:,} of {whole:,} tokens"
        )
        return kept

    def _with(self, content: str) -> Question:
        from dataclasses import replace

        return replace(self, content=content)


def compose(
    asked: str,
    piped: str,
    system: str | None,
    preset: str | None = None,
    variables: Sequence[str] = (),
    language: str | None = None,
    schema_file: Path | None = None,
    files: Sequence[Path] = (),
    pictures: Sequence[Path] = (),
) -> Question:
    """Put a question together: documents first, then the task. Raises UsageError, NotFound for what is not there."""
    from localai import documents, images, presets

    if preset is None and variables:
        raise UsageError("--var is for a preset", "add --preset NAME; localai presets list shows them")
    if preset is None and language is not None:
        raise UsageError("--language is for a preset", "add --preset NAME; localai presets list shows them")
    schema: AnswerSchema | None = None
    chosen = presets.find(preset) if preset is not None else None
    if schema_file is not None or (chosen and chosen.schema):
        from localai import answer_schema

        if schema_file is not None:
            schema = answer_schema.from_file(schema_file)
        elif chosen and chosen.schema:
            schema = answer_schema.from_text(chosen.schema, f"the schema of the preset {chosen.name}")
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
