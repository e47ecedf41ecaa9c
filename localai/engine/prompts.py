"""From a conversation to the tokens of a prompt: the model's template, its vocabulary, and what is too long."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from localai.domain.generation import ANSWER_RESERVE, GenerationRequest, Message, Tool
from localai.engine import thinking, tool_turns
from localai.engine import tools as tool_calls
from localai.engine.rendering import Renderer
from localai.engine.templates import CHATML_END, ChatTemplate
from localai.engine.vocabulary import Vocabulary, unused_character
from localai.errors import ContextOverflow, EngineError

if TYPE_CHECKING:
    from localai.engine.vision import Projector

_SLICE = 65_536  # characters tokenized at a time, a few milliseconds

Beginning = Callable[[str], tuple[str, list[int]]]  # the longest known beginning of a text, and its tokens


@dataclass(frozen=True, slots=True)
class Prompt:
    """A rendered conversation: its text (with borders in it), its tokens, the strings that end an answer.

    What goes on a `plain` one has no thoughts to be told from it. `tool_form` is how calls are asked for.
    """

    text: str
    tokens: list[int]
    stops: tuple[str, ...]
    plain: bool = False
    tool_form: tool_calls.Form = tool_calls.IN_WORDS


class Prompts:
    """Makes the prompts of a loaded model.

    `beginning`, where it is given, knows what was said before (see `transcript`) by the model's own tokens, which need
    not be those that its text would be split into.
    """

    def __init__(self, api: Any, model: Any, renderer: Renderer, notice: Callable[[str], None]) -> None:
        plain, for_tools = _sources(api, model)
        source = plain or for_tools
        self.vocabulary = Vocabulary(api, model, plain + for_tools)
        self.vocabulary.show((*thinking.MARKERS, *tool_calls.MARKERS))
        self._made_for = int(api.llama_model_n_ctx_train(model))
        self._template, self._form = self._made(source, renderer, notice)
        self._with_tools, self._form_with_tools = self._template, self._form
        if for_tools and for_tools != source:
            self._with_tools, self._form_with_tools = self._made(for_tools, renderer, notice)
        self._border = unused_character([plain, for_tools])
        self._opening = thinking.opening(source)
        self.projector: Projector | None = None

    def _made(
        self, source: str, renderer: Renderer, notice: Callable[[str], None]
    ) -> tuple[ChatTemplate, tool_calls.Form | None]:
        """A template of the model's, and the form in which it has tools called."""
        vocabulary = self.vocabulary
        form = tool_calls.form(source, lambda mark: vocabulary.single(mark) is not None)
        template = ChatTemplate(
            source,
            renderer,
            bos=vocabulary.text(vocabulary.bos),
            eos=vocabulary.text(vocabulary.eos),
            chatml=vocabulary.single(CHATML_END) is not None,
            tool_form=form,
            notice=notice,
        )
        return template, form

    def prompt(
        self,
        messages: Sequence[Message],
        think: bool | None,
        beginning: Beginning = lambda text: ("", []),
        tools: Sequence[Tool] = (),
    ) -> Prompt:
        """The conversation rendered, the opening of the answer included.

        `beginning` is asked for the longest known beginning of the rendered text, and the tokens it stands for.
        """
        contents = [message.content for message in messages]
        if any(self._border in content for content in contents):
            self._border = unused_character(contents)
        template, form = self._template, self._form
        if tools or tool_turns.are_in(messages):
            template, form = self._with_tools, self._form_with_tools
        rendered = template.render(self._safe(messages), think, [self._safe_tool(tool) for tool in tools])
        pictures = sum(len(message.images) for message in messages)
        if self.projector is not None and self.projector.count(rendered.text) != pictures:
            raise EngineError(
                "the model's chat template leaves images out", "ask without images, or take another model"
            )
        text, tokens = beginning(rendered.text)
        if text:
            tokens = tokens + self._encode(rendered.text[len(text) :])
        else:
            tokens = self.vocabulary.with_bos(self._encode(rendered.text))
        form = form if form is not None and not rendered.in_words else tool_calls.IN_WORDS
        return Prompt(rendered.text, tokens or [max(self.vocabulary.bos, 0)], rendered.stops, tool_form=form)

    def next_request(self) -> None:
        """What is asked for from now on is for another answer; see `ChatTemplate`."""
        for template in (self._template, self._with_tools):
            template.next_request()

    def held(self, grammar: str, text: str, think: bool | None) -> str:
        """The `grammar` of an answer to the prompt `text`, with room for thoughts where they are asked for."""
        return thinking.after_thoughts(grammar, text, self._opening if think else "")

    def _safe(self, messages: Sequence[Message]) -> list[Message]:
        """The messages with what stands for their pictures before their texts, which cannot become control tokens."""
        safe = []
        for message in messages:
            if message.images and self.projector is None:
                raise EngineError("the model has no projector: it cannot see", "take one that can: localai recommend")
            pictures = "".join(map(self.projector.mark, message.images)) if self.projector else ""
            calls = tuple(tool_turns.safe_call(call, self._protected) for call in message.tool_calls)
            name = self._protected(message.name) if message.name else ""
            safe.append(Message(message.role, pictures + self._protected(message.content), (), calls, name))
        return safe

    def _protected(self, content: str) -> str:
        return self.vocabulary.protected(content, self._border)

    def _safe_tool(self, tool: Tool) -> Tool:
        return tool_turns.safe(tool, self._protected)

    def requested(self, request: GenerationRequest, beginning: Beginning = lambda text: ("", [])) -> Prompt:
        """The prompt of a request: its conversation with its tools, or its raw text, whose control tokens count."""
        if request.raw is None:
            tools = () if request.tool_choice == "none" else request.tools
            return self.prompt(request.messages, request.think, beginning, tools)
        tokens = self.vocabulary.with_bos(self.vocabulary.tokenize(request.raw))
        return Prompt(request.raw, tokens or [max(self.vocabulary.bos, 0)], (), plain=True)

    def grammar(self, request: GenerationRequest, prompt: Prompt) -> tuple[str | None, int | None]:
        """What the answer to `prompt` is held to, and the token from which on; None for the beginning.

        Calls of tools where they must be, and from their opening on where they may be; with a schema they are either.
        """
        answer, form, free = request.grammar, prompt.tool_form, request.tool_choice == "auto"
        if not request.tools or request.tool_choice == "none":
            return answer if answer is None or prompt.plain else self.held(answer, prompt.text, request.think), None
        if free and answer is None:
            trigger = self.vocabulary.single(form.opening) if form.triggers and not form.bare else None
            free_calls = None if trigger is None else tool_calls.grammar(form, request.tools, "", request.one_call)
            return free_calls, trigger
        calls = tool_calls.grammar(form, request.tools, "" if free else request.tool_choice, request.one_call)
        if form is tool_calls.HARMONY:  # its calls and its answers have headers of their own
            answer = answer and thinking.after_thoughts(answer, prompt.text)
            return tool_calls.or_answer(calls, answer) if free and answer else calls, None
        both = tool_calls.or_answer(calls, answer) if free and answer else calls
        return self.held(both, prompt.text, request.think), None

    def _encode(self, text: str) -> list[int]:
        def encode(part: str) -> list[int]:
            return self.vocabulary.encode(part, self._border)

        return self.projector.encode(text, encode) if self.projector else encode(text)

    def opening_length(self, messages: Sequence[Message], think: bool | None, prompt: Prompt) -> int:
        """How many of the prompt's last tokens only open the answer; 0 where that cannot be told.

        A later prompt of the same conversation may well have something else there (thoughts are left out of it).
        """
        closed = self._template.without_opening(self._safe(messages), think)
        if closed is None or not prompt.text.startswith(closed):
            return 0
        opening = self._encode(prompt.text[len(closed) :])
        return len(opening) if opening and prompt.tokens[-len(opening) :] == opening else 0

    def refuse_far_too_long(
        self, request: GenerationRequest, context: int, cancelled: Callable[[], bool] = lambda: False
    ) -> None:
        """Refuse what is far longer than the context without tokenizing it whole, which takes seconds and a gigabyte.

        Asks `cancelled` on the way and raises KeyboardInterrupt. Raises ContextOverflow.
        """
        texts = [request.raw or "", *(message.content for message in request.messages)]
        texts += [call.arguments for message in request.messages for call in message.tool_calls]
        if request.tool_choice != "none":
            texts += [f"{tool.description} {tool.parameters}" for tool in request.tools]
        length = sum(map(len, texts))
        if length <= _SLICE * 4:
            return
        seen = tokens = 0
        for text in texts:
            for start in range(0, len(text), _SLICE):
                if cancelled():
                    raise KeyboardInterrupt
                part = text[start : start + _SLICE]
                tokens += len(self.vocabulary.tokenize(part, parse_special=False))
                seen += len(part)
                if tokens > context * 2:
                    raise self.overflow(None, f"about {tokens * length // seen}", context, 0)

    def refuse_too_long(self, prompt: Prompt, context: int, request: GenerationRequest) -> None:
        """Raise ContextOverflow for a prompt that does not leave room for an answer."""
        total = len(prompt.tokens)
        if total + max(1, request.reserve) > context:
            raise self.overflow(total, f"{total}", context, request.max_tokens or ANSWER_RESERVE)

    def overflow(self, needed: int | None, told: str, context: int, answer: int) -> ContextOverflow:
        """What is to be said of an input of `told` tokens (`needed`, where they were counted)."""
        if needed is not None and needed + answer <= self._made_for:
            hint = f"ask for a larger context (--context {needed + answer}), or shorten the input"
        else:
            hint = f"shorten the input, or take a model made for more than {self._made_for} tokens"
        return ContextOverflow(f"the input takes {told} tokens, the context has {context}", hint, needed)


def _sources(api: Any, model: Any) -> tuple[str, str]:
    """The model's chat template, and the one for conversations with tools, where its makers wrote a second one.

    "" for none. llama.cpp tells the bare name of a form, for some models whose header has no template.
    """
    found = [
        (api.llama_model_chat_template(model, name) or b"").decode("utf-8", "replace") for name in (None, b"tool_use")
    ]
    plain, for_tools = (text if "{" in text else "" for text in found)
    return plain, for_tools
