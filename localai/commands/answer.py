"""How an answer of `run` is written: as text, as one JSON object or as events; and its figures in one line."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from localai import render, schema
from localai.domain.generation import AnswerEnd, AnswerText, GenerationRequest, PromptProgress, ThinkingText
from localai.interrupt import Interrupts
from localai.loading import Loaded

if TYPE_CHECKING:
    from localai.answer_schema import AnswerSchema

OUTPUTS = ("text", "json", "ndjson")


def write_answer(
    loaded: Loaded, request: GenerationRequest, output: str, interrupts: Interrupts, held: AnswerSchema | None = None
) -> AnswerEnd:
    """Generate, and write each event where it belongs: the answer on stdout, all else on stderr.

    An answer that is held to a schema is written once it is complete and checked. Raises SchemaIncomplete.
    """
    stream, status, thinking = render.AnswerStream(), render.Status(), render.ThinkingStream()
    events = output == "ndjson"
    if events:
        render.event("start", {"model": loaded.name})
    end: AnswerEnd | None = None
    try:
        for event in loaded.engine.generate(request, interrupts.requested):
            match event:
                case PromptProgress(done, total):
                    status.show(f"reading the prompt: {done} of {total} tokens")
                case ThinkingText(text):
                    status.clear()
                    if events:
                        render.event("thinking", {"text": text})
                    elif output == "text":
                        thinking.write(text)
                case AnswerText(text):
                    status.clear()
                    if events:
                        render.event("text", {"text": text})
                    elif output == "text" and held is None:
                        thinking.end()
                        stream.write(text)
                case AnswerEnd():
                    end = event
    finally:  # also of what goes wrong: no terminal stays dim
        status.clear()
        thinking.end()
    assert end is not None, "an engine ends with AnswerEnd"
    if held is not None and end.finish_reason != "interrupted":
        held.check(end.text, cut=end.finish_reason == "length")
        if output == "text":
            stream.write(end.text)
    whole: dict[str, Any] = schema.answer(loaded.name, end)
    if events:
        render.event("end", whole)
    elif output == "json":
        render.json_object(whole)
    else:
        stream.end()
    return end


def warning(end: AnswerEnd, loaded: Loaded) -> str:
    """What to say of an answer that a limit of tokens has cut (which, and how to have more), or of thoughts without
    one; "" where there is nothing to say.
    """
    if end.finish_reason != "length":
        silent = end.finish_reason == "stop" and end.thinking and not end.text
        return "warning: no answer follows the thoughts; --no-think asks for none" if silent else ""
    tokens, context = end.usage.completion_tokens, loaded.engine.context
    more = "--max-tokens allows more"
    if end.usage.prompt_tokens + tokens >= context:
        flag = "--context allows more" if context < (loaded.prepared.context_length or 0) else "the model has no more"
        more = f"the context of {context:,} tokens is full: {flag}"
    if end.thinking and not end.text:
        return f"warning: no answer, its {tokens:,} tokens of thoughts are cut off; {more}, --no-think asks for none"
    return f"warning: the answer is cut off after {render.count(tokens, 'token')}; {more}"


def stats_line(end: AnswerEnd) -> str:
    """Tokens and speeds of one answer, in one line."""
    usage, timings = end.usage, end.timings
    parts = [
        render.count(usage.prompt_tokens, "prompt token")
        + (f" ({usage.cached_tokens:,} cached)" if usage.cached_tokens else "")
        + (f" at {timings.prompt_tps:.1f}/s" if timings.prompt_tps else ""),
        render.count(usage.completion_tokens, "answer token")
        + (f" ({usage.guessed_tokens:,} guessed ahead)" if usage.guessed_tokens else "")
        + (f" at {timings.decode_tps:.1f}/s" if timings.decode_tps else ""),
        f"first token after {timings.first_token_ms:.0f} ms" if timings.first_token_ms is not None else "no token",
        f"loaded in {timings.load_ms:.0f} ms",
    ]
    return "; ".join(parts)
