"""A JSON schema that an answer must meet: read, turned into a grammar, and checked again afterwards."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from localai.engine import grammar
from localai.errors import SchemaIncomplete, UsageError

LARGEST_BYTES = 1_000_000


@dataclass(frozen=True, slots=True)
class AnswerSchema:
    """A schema that can be honoured, and the grammar that llama.cpp is held to."""

    schema: Any
    grammar: str

    def check(self, text: str, cut: bool) -> None:
        """Check an answer against the whole schema; `cut` tells that the token limit ended it.

        Raises SchemaIncomplete where it is no JSON or does not meet the schema.
        """
        try:
            value = json.loads(text, parse_constant=_no_json)
        except (ValueError, RecursionError) as error:
            if cut:
                raise SchemaIncomplete(
                    "the limit of tokens cut the answer before its JSON was complete",
                    "allow more with --max-tokens or --context, or ask for less",
                ) from error
            raise SchemaIncomplete("the answer is no complete JSON", "ask again, or take a larger model") from error
        if (fault := next(iter(_validator(self.schema).iter_errors(value)), None)) is not None:
            raise SchemaIncomplete(
                f"the answer does not meet the schema: {fault.message[:200]} (at {fault.json_path})",
                "ask again, or take a larger model",
            )


def from_option(given: str) -> AnswerSchema:
    """The schema that `--json-schema` gives: JSON itself, else a file of it. Raises NotFound, UsageError."""
    return from_text(given, "the schema") if given.lstrip()[:1] == "{" else from_file(Path(given))


def from_file(path: Path) -> AnswerSchema:
    """The schema in the file `path`; `-` is stdin. Raises NotFound, UsageError."""
    from localai import documents

    content = documents.content_of(path)
    if len(content) > LARGEST_BYTES:
        raise UsageError(f"{path} is larger than {LARGEST_BYTES:,} bytes", "that is no schema for one answer")
    return from_text(content.decode(json.detect_encoding(content), "replace"), documents.name_of(path))


def from_text(text: str, where: str) -> AnswerSchema:
    """The schema in `text`, which stands in `where`. Raises UsageError naming what is wrong or cannot be honoured."""
    from jsonschema.exceptions import SchemaError

    try:
        schema = json.loads(text, parse_constant=_no_json)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{where} is no JSON: {str(error)[:200]}", "a JSON schema is a JSON object") from error
    try:
        made = AnswerSchema(schema, grammar.gbnf(schema))
        _validator(schema).check_schema(schema)
    except (TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise UsageError(f"{where} is no JSON schema", "see https://json-schema.org") from error
    except SchemaError as error:
        raise UsageError(
            f"{where} is no JSON schema: {error.message[:200]} (at {error.json_path})", "see https://json-schema.org"
        ) from error
    return made


def _validator(schema: Any) -> Any:
    from jsonschema.validators import Draft202012Validator, validator_for
    from referencing import Registry

    return validator_for(schema, default=Draft202012Validator)(schema, registry=Registry())  # fetches nothing


def _no_json(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")
