"""From a conversation to the text a model was trained to continue: its own chat template, or a plain fallback."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from localai.domain.generation import Message, Tool, ToolCall
from localai.engine import tool_turns
from localai.engine.rendering import Renderer, TemplateEndless, TemplateFailed
from localai.engine.tools import Form

PATIENCE = 2  # requests in a row that it takes longer for, after which the template is not tried again
MAX_TEMPLATE_CHARS = 1_000_000  # the longest of the well-known ones has 20,000

CHATML_END = "<|im_end|>"


@dataclass(frozen=True, slots=True)
class Rendered:
    """The prompt's text, and the strings besides the end token at which an answer to it ends.

    `in_words`: the template has no place for tools, which are told in the system text instead.
    """

    text: str
    stops: tuple[str, ...] = ()
    in_words: bool = False


class ChatTemplate:
    """A model's chat template, with what models without a system role or without a template need."""

    def __init__(
        self,
        source: str | None,
        renderer: Renderer,
        *,
        bos: str = "",
        eos: str = "",
        chatml: bool = False,
        tool_form: Form | None = None,
        notice: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._renderer = renderer
        self._tokens = {"bos_token": bos, "eos_token": eos}
        self._chatml = chatml
        self._tool_form = tool_form  # None where calls are in none that we read
        self._notice = notice
        self._noticed = False
        self._endless = 0
        self._stalled = False  # in the present request
        self._source = source or None
        self._tools: Sequence[Tool] = ()
        self._several: bool | None = None  # see `_takes_several`
        self._in_parts = False  # whether contents are to be lists of typed parts, as some models that see want them
        if not source:
            self._fall_back("the model has no chat template")
        elif len(source) > MAX_TEMPLATE_CHARS:
            self._source = None
            self._fall_back("the model's chat template is too long")

    def render(self, messages: Sequence[Message], think: bool | None = None, tools: Sequence[Tool] = ()) -> Rendered:
        """The conversation as text, ending where the answer begins. Never fails: at worst it is plain."""
        self._tools = tools
        in_words = bool(tools) or tool_turns.are_in(messages)
        if in_words and (with_tools := self._rendered_with_tools(messages, think)) is not None:
            return with_tools
        self._tools = ()
        if in_words:
            messages = tool_turns.in_words(messages, tools)
        if self._source is not None:
            attempts = _with_and_without_system(messages)
            reason = ""
            for attempt in attempts:
                try:
                    text = self._apply(attempt, think)
                    if attempt and attempt[-1].content.strip() not in text and not self._in_parts:
                        text = self._with_parts(attempt, think) or text
                    if attempt and attempt[-1].role == "user" and not _tells_of(attempt[-1].content, text):
                        raise TemplateFailed("it leaves the question out")
                except TemplateFailed as error:
                    reason = reason or str(error)
                    continue
                # a template without a system role refuses it or leaves it out; neither is what the user asked for
                if attempt is not attempts[-1] and attempt[0].content.strip() not in text:
                    continue
                return Rendered(text, in_words=in_words)
            self._fall_back(f"the model's chat template fails ({reason})")
        return replace(plain(messages, chatml=self._chatml), in_words=in_words)

    def _rendered_with_tools(self, messages: Sequence[Message], think: bool | None) -> Rendered | None:
        """As the template itself writes tools, their calls and results; None where it leaves one out, or fails."""
        if self._source is None or self._tool_form is None:
            return None
        if "tools" in self._source and "tool_calls" not in self._source:  # there, calls are a part of what was said
            messages = tool_turns.written(messages, self._tool_form)
        elif any(len(message.tool_calls) > 1 for message in messages) and not self._takes_several():
            messages = tool_turns.one_by_one(messages)
        for attempt in _with_and_without_system(messages):
            with contextlib.suppress(TemplateFailed):
                text = self._apply(attempt, think)
                if self._tells(text, attempt):
                    return Rendered(text)
        return None

    def _tells(self, text: str, messages: Sequence[Message]) -> bool:
        """Whether tools, calls and contents are in the rendered text: results may be there as JSON texts."""
        wanted = [tool.name for tool in self._tools]
        wanted += [call.name for message in messages for call in message.tool_calls]
        wanted += [message.content.strip() for message in messages if message.role in ("system", "tool", "user")]
        return all(each in text or json.dumps(each, ensure_ascii=False)[1:-1] in text for each in wanted)

    def _takes_several(self) -> bool:
        """Whether the template writes more than one call of a turn: others refuse the turn, or leave out the rest."""
        if self._several is None:
            calls = tuple(ToolCall("probe", f'{{"x": "probe_{number}"}}') for number in range(2))
            results = (Message("tool", "x") for _ in calls)
            self._several = False
            with contextlib.suppress(TemplateFailed):
                text = self._apply([Message("user", "x"), Message("assistant", "", (), calls), *results])
                self._several = "probe_0" in text and "probe_1" in text
        return self._several

    def _with_parts(self, messages: Sequence[Message], think: bool | None) -> str:
        """The conversation where contents are lists, from now on, if a text is only then in it; else ""."""
        self._in_parts = True
        with contextlib.suppress(TemplateFailed):
            text = self._apply(messages, think)
            if messages[-1].content.strip() in text and "'type': 'text'" not in text:  # not a list as Python prints it
                return text
        self._in_parts = False
        return ""

    def without_opening(self, messages: Sequence[Message], think: bool | None = None) -> str | None:
        """The conversation as text, without what opens the answer; None where the template cannot tell."""
        if self._source is None:
            return None
        try:
            return self._apply(messages, think, opening=False)
        except TemplateFailed:
            return None

    def next_request(self) -> None:
        """What is rendered from now on is for another answer: a template that took too long is tried again."""
        self._stalled = False

    def _apply(self, messages: Sequence[Message], think: bool | None = None, opening: bool = True) -> str:
        if self._source is None or self._stalled:
            raise TemplateFailed("it takes too long")
        variables: dict[str, Any] = {
            "messages": [
                {"role": message.role, "content": self._content(message), **more}
                for message, more in zip(messages, tool_turns.said(messages), strict=True)
            ],
            "add_generation_prompt": opening,
            "tools": tool_turns.declared(self._tools) or None,  # templates may count on its being there
            "documents": None,
            **self._tokens,
        }
        if think is not None:
            variables["enable_thinking"] = variables["thinking"] = think
        said = sum(len(message.content) for message in messages) + len(str(self._tools))
        said += sum(len(call.arguments) for message in messages for call in message.tool_calls)
        limit = 2 * said + 1_000_000
        try:
            text = self._in_either_way(self._source, variables, limit)
        except TemplateEndless:
            self._stalled = True
            self._endless += 1
            if self._endless == PATIENCE:  # else each turn would wait for it again
                self._source = None
            raise
        self._endless = 0
        return text

    def _in_either_way(self, source: str, variables: dict[str, Any], limit: int) -> str:
        """Rendered with all variables; where that fails, with those alone that are something."""
        failure: TemplateFailed | None = None
        for given in (variables, {name: value for name, value in variables.items() if value is not None}):
            try:
                return self._renderer.render(source, given, limit)
            except TemplateEndless:
                raise
            except TemplateFailed as error:
                failure = failure or error
        assert failure is not None, "it was tried"
        raise failure

    def _content(self, message: Message) -> str | list[dict[str, str]]:
        return [{"type": "text", "text": message.content}] if self._in_parts else message.content

    def _fall_back(self, why: str) -> None:
        """Say once that a plain form is used; what one conversation fails by need not fail the next."""
        if self._noticed:
            return
        self._noticed = True
        form = "ChatML" if self._chatml else "User:/Assistant:"
        self._notice(f"{why}: a plain {form} form is used, answers may be worse")


def _tells_of(content: str, text: str) -> bool:
    """Whether any word of `content` is in `text`: a template may change it, but not take all of it away."""
    words = content.split()
    return not words or any(word in text or json.dumps(word, ensure_ascii=False)[1:-1] in text for word in words)


def _with_and_without_system(messages: Sequence[Message]) -> list[Sequence[Message]]:
    """The conversation as it is, and for templates that know no system role."""
    return [messages, *([merge_system(messages)] if messages and messages[0].role == "system" else [])]


def merge_system(messages: Sequence[Message]) -> list[Message]:
    """The conversation with its system text at the head of the first user turn."""
    system, rest = messages[0].content, list(messages[1:])
    for index, message in enumerate(rest):
        if message.role == "user":
            rest[index] = Message("user", f"{system}\n\n{message.content}")
            return rest
    return [Message("user", system), *rest]


def plain(messages: Sequence[Message], *, chatml: bool) -> Rendered:
    """The conversation without a template of the model's: ChatML where its tokens exist, else bare names."""
    if chatml:
        turns = "".join(f"<|im_start|>{message.role}\n{message.content}{CHATML_END}\n" for message in messages)
        return Rendered(f"{turns}<|im_start|>assistant\n")
    names = {"system": "", "user": "User: ", "assistant": "Assistant: "}
    turns = "".join(f"{names.get(message.role, '')}{message.content}\n\n" for message in messages)
    return Rendered(f"{turns}Assistant:", stops=("\nUser:", "\nAssistant:"))
