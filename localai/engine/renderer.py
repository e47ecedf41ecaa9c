"""Renders chat templates in a process of its own: `python renderer.py`, one JSON object a line in and out.

A chat template is a program from a stranger. jinja2's sandbox keeps it from Python's insides, but not from looping
for ever nor from filling the memory (`{% set x = x ~ x %}`); a process can be limited in both, and killed. It starts
while the model is read, so that it costs no time.

This file is run by its path and imports nothing of localai, so that it starts quickly and from anywhere.
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from typing import Any

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

MEMORY_LIMIT_BYTES = 512 * 1024**2  # address space, of which Python and jinja2 take 50 MiB
TIME_LIMIT_S = 30  # for one rendering, where the parent, which waits for less long, has been killed


class OutputTooLong(TemplateError):
    """The template wrote more than any prompt could be."""


class GenerationTag(Extension):
    """`{% generation %}…{% endgeneration %}` of Hugging Face templates, which marks the answer for training."""

    tags = {"generation"}  # noqa: RUF012 - as jinja2 declares it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def environment() -> ImmutableSandboxedEnvironment:
    """The environment that templates are written for (transformers' `apply_chat_template`)."""

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    def tojson(value: Any, indent: int | None = None, **options: Any) -> str:
        kept = {key: options[key] for key in ("separators", "sort_keys") if key in options}
        return json.dumps(value, ensure_ascii=bool(options.get("ensure_ascii")), indent=indent, **kept)

    made = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, GenerationTag], cache_size=4
    )
    made.filters["tojson"] = tojson
    made.globals["raise_exception"] = raise_exception
    made.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return made


def render(made: ImmutableSandboxedEnvironment, template: str, variables: dict[str, Any], limit: int) -> str:
    """The rendered text. Raises OutputTooLong beyond `limit` characters, and whatever the template does."""
    pieces, length = [], 0
    for piece in _compiled(made, template).generate(**variables):
        length += len(piece)
        if length > limit:
            raise OutputTooLong(f"it writes more than {limit} characters")
        pieces.append(piece)
    return "".join(pieces)


_templates: dict[str, Any] = {}


def _compiled(made: ImmutableSandboxedEnvironment, template: str) -> Any:
    if template not in _templates:
        _templates.clear()
        _templates[template] = made.from_string(template)
    return _templates[template]


def limit_process(memory_bytes: int) -> None:
    """Leave Ctrl-C to the parent, and bound the memory where the system can."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        import resource

        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        bound = memory_bytes if hard == resource.RLIM_INFINITY else min(memory_bytes, hard)
        resource.setrlimit(resource.RLIMIT_AS, (bound, hard))
    except (ImportError, OSError, ValueError):
        pass  # Windows has no such limit, macOS does not keep to it: there the time limit alone holds


def watched(lines: Iterable[str]) -> Iterator[str]:
    """The lines; the process is ended where the next one is not asked for in time."""
    alarm = getattr(signal, "alarm", lambda seconds: None)  # Windows has none
    for line in lines:
        alarm(TIME_LIMIT_S)
        yield line
        alarm(0)


def serve(lines: Any, write: Callable[[str], object]) -> None:
    """Answer each request line by its number, 0 for being ready; an error of any kind is an answer too."""
    made = environment()
    write(json.dumps({"number": 0}))
    for line in lines:
        request = json.loads(line)
        try:
            answer = {"text": render(made, request["template"], request["variables"], request["limit"])}
        except Exception as error:  # noqa: BLE001 - a template may raise whatever Python can
            answer = {"error": (str(error) or type(error).__name__)[:500]}
        write(json.dumps({"number": request["number"], **answer}))


def main() -> None:
    limit_process(MEMORY_LIMIT_BYTES)

    def write(text: str) -> None:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()

    serve(watched(sys.stdin), write)


if __name__ == "__main__":
    main()
