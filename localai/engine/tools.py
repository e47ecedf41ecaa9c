"""Calls of tools: how each family of models writes them, reading them out of an answer, and grammars that hold to them.

Which form is a model's is told by its chat template. A model whose template knows no tools, or has them called in a
form that is not read here, is asked in the system text for the form that most know
(`<tool_call>{"name": …, "arguments": …}</tool_call>`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from localai.domain.generation import Tool, ToolCall
from localai.engine import call_syntax as syntax
from localai.engine.grammar import several
from localai.engine.notation import PRIMITIVES, literal
from localai.engine.text import held_back
from localai.errors import UsageError

HARMONY_CALL = "<|channel|>commentary to=functions."


@dataclass(frozen=True, slots=True)
class Form:
    """How calls are written: between `opening` and `closing` ("": the end of the answer), read by `read`.

    `bare`: the opening may be left out at the very beginning, where the answer starts with a brace. `one` writes the
    grammar of one call; `several` in one pair of marks are parted by `between`, each mark pair holds one where it is
    "". `triggers`: the opening is what only a call begins with.
    """

    opening: str
    closing: str
    read: Callable[[str, Sequence[Tool]], list[ToolCall] | None]
    one: Callable[[Tool, str, Callable[[Any], str]], str]
    before: str = ""
    after: str = ""
    between: str = ""
    bare: bool = False
    triggers: bool = True


HERMES = Form("<tool_call>", "</tool_call>", syntax.tagged, syntax.json_call("arguments"), '"\\n"?', '"\\n"?')
ELEMENTS = Form("<tool_call>", "</tool_call>", syntax.tagged, syntax.element_call, '"\\n"', '"\\n"')
KEYED = Form("<tool_call>", "</tool_call>", syntax.keyed, syntax.keyed_call, after='"\\n"?')
NAMED = Form("<function name=", "</function>", syntax.named, syntax.named_call)
GRANITE = Form("<|tool_call|>", "", syntax.json_calls, syntax.json_call("arguments"), '" "? "["', '"]"', '"," " "?')
PHI = Form(
    "<|tool_call|>", "<|/tool_call|>", syntax.json_calls, syntax.json_call("arguments"), '"["', '"]"', '"," " "?'
)
MISTRAL = Form("[TOOL_CALLS]", "", syntax.mistral, syntax.json_call("arguments"), '" "? "["', '"]"', '"," " "?')
MISTRAL_ARGS = Form("[TOOL_CALLS]", "", syntax.mistral, syntax.args_call)
LLAMA = Form("<|python_tag|>", "", syntax.json_calls, syntax.json_call("parameters"), bare=True)
LFM = Form("<|tool_call_start|>", "<|tool_call_end|>", syntax.pythonic, syntax.pythonic_call, '"["', '"]"', '"," " "?')
GEMMA = Form("<|tool_call>", "<tool_call|>", syntax.gemma, syntax.gemma_call)
HARMONY = Form(HARMONY_CALL, "<|call|>", syntax.harmony, syntax.harmony_call, triggers=False)

IN_WORDS = HERMES  # what `in_words` asks for
FORMS = (HERMES, ELEMENTS, KEYED, NAMED, GRANITE, PHI, MISTRAL, MISTRAL_ARGS, LLAMA, LFM, GEMMA, HARMONY)
# Control tokens that must be seen in the text.
MARKERS = tuple(dict.fromkeys((*(mark for form in FORMS for mark in (form.opening, form.closing) if mark),
                               "[ARGS]", "[CALL_ID]", "<|constrain|>",
                               "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>")))  # fmt: skip


def form(template: str, known: Callable[[str], bool] = lambda mark: False) -> Form | None:
    """The form that a chat template's model writes calls in; None where it is none of ours.

    `known` tells of a mark whether the model has a token for it: LFM2's templates need not name theirs.
    """
    if "<|channel|>" in template:
        return HARMONY
    if "<|tool_call>" in template:
        return GEMMA
    if "<function=" in template and "<parameter=" in template:
        return ELEMENTS
    if "<arg_key>" in template:
        return KEYED
    if "[TOOL_CALLS]" in template:
        return MISTRAL_ARGS if "[ARGS]" in template else MISTRAL
    if LFM.opening in template or known(LFM.opening):
        return LFM
    if "<|/tool_call|>" in template:
        return PHI
    if "<|tool_call|>" in template:
        return GRANITE
    if "<tool_call>" in template:
        return HERMES
    if '<function name="' in template:
        return NAMED
    return LLAMA if "ipython" in template and "parameters" in template else None


def grammar(form: Form, tools: Sequence[Tool], choice: str, one_call: bool = False) -> str:
    """The grammar (GBNF) of calls of these tools: of one where `choice` is its name, or with `one_call`, else of more.

    A schema with keywords that cannot be honoured counts as that of any object. Where calls have no opening, a bare
    one is meant. Raises UsageError for a schema that is none.
    """
    try:
        return _grammar(form, tools, choice, one_call)
    except (TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise UsageError("the parameters of a tool are no JSON schema", "see https://json-schema.org") from error


def _grammar(form: Form, tools: Sequence[Tool], choice: str, one_call: bool) -> str:
    named = [tool for tool in tools if tool.name == choice]
    meant, single = named or list(tools), one_call or bool(named)
    rules: dict[str, str] = {}

    def expression(schema: Any) -> str:
        if isinstance(schema, dict) and schema.get("properties") == {}:  # a function without arguments
            schema = {"additionalProperties": False, **schema}
        try:
            (found,), text = several([schema])
        except UsageError:
            (found,), text = several([{"type": "object"}])
        own = dict(line.split(" ::= ", 1) for line in text.splitlines())
        prefix = f"s{len(rules)}-"
        renamed = {name: f"{prefix}{name}" for name in own if name not in PRIMITIVES}
        for name, rule in own.items():
            rules[renamed.get(name, name)] = syntax.renamed(rule, renamed)
        return f"({syntax.renamed(found, renamed)})"

    calls = " | ".join(form.one(tool, f"tool{index}", expression) for index, tool in enumerate(meant))
    rules["call"] = calls
    opening = "" if form.bare else literal(form.opening) if form is not HARMONY else ""
    one = f"{form.before} call {form.after}".strip()
    if not single and form.between:
        one = f"{form.before} call ({form.between} call)* {form.after}"
    whole = f"{opening} {one} {literal(form.closing) if form.closing and form is not HARMONY else ''}".strip()
    rules["root"] = f'{whole} ("\\n"? {whole})*' if not single and not form.between and form.closing else whole
    rules.update({**syntax.EXTRA, **PRIMITIVES})
    return "".join(f"{name} ::= {rule}\n" for name, rule in rules.items())


def or_answer(calls: str, answer: str) -> str:
    """The grammar of what is a text of one of two: of `calls`, or of an `answer` that a schema was made into."""
    rules = dict(line.split(" ::= ", 1) for line in answer.splitlines())
    names = {name: f"answer-{name}" for name in rules if name not in PRIMITIVES}
    own = "".join(f"{names[name]} ::= {syntax.renamed(rules[name], names)}\n" for name in names)
    return f"root ::= calls | answer-root\n{calls.replace('root ::=', 'calls ::=', 1)}{own}"


class ToolSplitter:
    """Tells the calls of tools from the text of an answer that arrives in pieces.

    What looks like a call and is none is text. White space around calls belongs to nothing.
    """

    def __init__(self, form: Form, tools: Sequence[Tool]) -> None:
        self._form, self._tools = form, tools
        self._inside: str | None = None  # the mark that opened the call being read, None outside
        self._pending = ""
        self._space = ""
        self._begun = self._called = False

    def feed(self, text: str) -> list[str | ToolCall]:
        """The text and the calls that are now certain."""
        self._pending += text
        pieces: list[str | ToolCall] = []
        while self._pending:
            if self._inside is not None:
                closing = self._form.closing or self._form.opening
                body, found, rest = self._pending.partition(closing)
                if not found:
                    break
                self._pending = rest if self._form.closing else found + rest
                self._close(pieces, body, found if self._form.closing else "")
                continue
            if self._form.bare and not self._begun:
                start = self._pending.lstrip()
                if not start:
                    break
                if start.startswith("{"):
                    self._inside, self._begun, self._pending = "", True, start
                    continue
            before, found, rest = self._pending.partition(self._form.opening)
            if not found:
                keep = held_back(self._pending, (self._form.opening,))
                before, rest = self._pending[: len(self._pending) - keep], self._pending[len(self._pending) - keep :]
            self._tell(pieces, before)
            self._pending = rest
            if not found:
                break
            self._inside, self._begun = self._form.opening, True
        return pieces

    def finish(self) -> list[str | ToolCall]:
        """What was held back; a call that the end of the answer closes."""
        rest, self._pending = self._pending, ""
        pieces: list[str | ToolCall] = []
        if self._inside is not None:
            self._close(pieces, rest, "")
        else:
            self._tell(pieces, rest)
        if self._space and not self._called:
            pieces.append(self._space)
        return pieces

    def _close(self, pieces: list[str | ToolCall], body: str, closing: str) -> None:
        opening, self._inside = self._inside or "", None
        calls = (self._form.read if opening else syntax.bare)(body, self._tools)
        if calls:
            self._called, self._space = True, ""
            pieces += calls
        else:
            self._tell(pieces, opening + body + closing)

    def _tell(self, pieces: list[str | ToolCall], text: str) -> None:
        if not text:
            return
        text = self._space + text
        told = text.rstrip()
        self._begun = self._begun or bool(told)
        self._space = text[len(told) :]
        if self._called:
            told = told.lstrip() if not told.strip() else told
        if told:
            pieces.append(told)
