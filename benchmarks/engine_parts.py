"""What `benchmarks/engine.py` measures besides the bare loop: guessing ahead, resuming, cold start, memory."""

from __future__ import annotations

import os
import random
import string
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from statistics import median
from time import perf_counter, sleep
from typing import Any
from unittest import mock

import psutil

from localai import kept_states, library, loading
from localai.chat import Conversation
from localai.domain.generation import AnswerEnd, AnswerText, GenerationRequest, Message, Sampling
from localai.domain.plan import Plan
from localai.domain.units import MIB
from localai.engine import model
from localai.engine.speculation import ROWS, Speculation

TEXT = (
    "The committee met on Tuesday to discuss the annual budget for the library. Members agreed that the reading room"
    " needs new lamps and that the roof has to be repaired before winter. Mrs. Keller proposed to ask the city for"
    " help. The treasurer explained that only four thousand euros remain for this year, and that the rest must come"
    " from donations. A letter to all members will be sent in October, and the next meeting is on the third of May."
)
CODE = '''def total(prices, discount):
    """The sum of all prices, less the discount."""
    result = 0
    for price in prices:
        result = result + price
    if discount > 0:
        result = result - result * discount
    return result
'''
TASKS = {
    "repeat": f"Repeat the following text exactly:\n\n{TEXT}",
    "correct": f"Correct the spelling and write the whole text again:\n\n{TEXT.replace('the ', 'teh ')}",
    "edit code": f"Rename the variable result to amount and write the whole function again:\n\n{CODE}",
    "summarize": f"Summarize in two sentences, in the words of the text:\n\n{TEXT}",
    "tell": "Tell a long story of a dragon and a baker.",
}


def answered(engine: model.LlamaEngine, text: str, tokens: int) -> AnswerEnd:
    engine.forget()
    request = GenerationRequest((Message("user", text),), Sampling(temperature=0), tokens)
    end = list(engine.generate(request, lambda: False))[-1]
    assert isinstance(end, AnswerEnd)
    return end


def with_and_without(path: Path, plan: Plan, pairs: int, text: str, tokens: int) -> list[tuple[AnswerEnd, AnswerEnd]]:
    """Answers with guesses and without, of one loaded model.

    Of two, one can be 5 % quicker than the other from load to exit, by the pages that its weights lie in.
    """
    engine = model.load(path, replace(plan, outputs=ROWS))
    guessing, plain = engine._speculation, Speculation(engine._cache, plan, None)
    found = []
    for pair in range(pairs + 1):
        ends = {}
        for way in (guessing, plain) if pair % 2 else (plain, guessing):
            engine._speculation = way
            ends[way] = answered(engine, text, tokens)
        found.append((ends[guessing], ends[plain]))
    engine._speculation = guessing
    engine.close()
    return found[1:]  # the first warms up


def ratio(pairs: Sequence[tuple[AnswerEnd, AnswerEnd]]) -> float:
    """How many times as fast the answers with guesses were written, the median of the pairs."""
    return median((one.timings.decode_tps or 0.0) / (other.timings.decode_tps or 1.0) for one, other in pairs)


def speculation(path: Path, plan: Plan, pairs: int, tokens: int = 128) -> list[dict[str, Any]]:
    """Decode speed with guesses over that without, for tasks where it pays and one where it cannot."""
    rows = []
    for task, text in TASKS.items():
        found = with_and_without(path, plan, pairs, text, tokens)
        with_tps, without_tps = (
            median(each.timings.decode_tps or 0.0 for each in way) for way in zip(*found, strict=True)
        )
        same = all(one.text == other.text for one, other in found)
        rows.append({"model": path.name, "task": task, "with_tps": with_tps, "without_tps": without_tps,
                     "guessed": found[-1][0].usage.guessed_tokens, "ratio": ratio(found),
                     "same_text": same})  # fmt: skip
    return rows


class Copying:
    """A sampler that writes a given text whatever the logits are: what a model does that copies its prompt."""

    def __init__(self, tokens: Sequence[int]) -> None:
        self._left: Iterator[int] = iter(tokens)

    def draw(self, context: object, row: int) -> int:
        return next(self._left)

    def __enter__(self) -> Copying:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def copying(path: Path, plan: Plan, pairs: int) -> dict[str, Any]:
    """Decode speed with guesses over that without, for a random model that is made to copy its prompt."""
    letters = "".join(random.Random(7).choices(string.ascii_letters, k=300))  # a token each, no three of them twice
    engine = model.load(path, plan)
    tokens = engine.prompt_tokens((Message("user", letters),))[-200:]
    engine.close()
    with mock.patch.object(model, "Sampler", side_effect=lambda *_: Copying(tokens)):
        found = with_and_without(path, plan, pairs, letters, 128)
    return {"model": path.name, "task": "copy (forced)", "ratio": ratio(found)}


def resuming(pairs: int, tokens: int = 4000) -> dict[str, Any]:
    """Time to the first token of a resumed conversation, over reading it again."""
    found = library.find("smollm2-135m")
    prepared = loading.prepare(found, loading.LoadOptions(context=8192))
    ratios, restored_s, read_s, size = [], [], [], 0

    def first(conversation: Conversation, started: float) -> float:
        for event in conversation.ask("And now?"):
            if isinstance(event, AnswerText):
                return perf_counter() - started
        raise SystemExit("there was no answer")

    with tempfile.TemporaryDirectory() as home, mock.patch.dict(os.environ, {"LOCALAI_HOME": home}):
        for _ in range(pairs):
            loaded = loading.load(prepared)
            conversation = Conversation(loaded.engine, sampling=Sampling(temperature=0), max_tokens=8)
            turn = (Message("user", TEXT), Message("assistant", TEXT))
            conversation.recall(turn)
            while loaded.engine.count_tokens(conversation.messages) < tokens:
                conversation.recall((*conversation.messages, *turn))
            turns = conversation.messages
            read = first(conversation, perf_counter())
            kept_states.leave(loaded, 1)
            size = kept_states.path(1).stat().st_size
            loaded = loading.load(prepared)
            conversation = Conversation(loaded.engine, sampling=Sampling(temperature=0), max_tokens=8)
            conversation.recall(turns)
            started = perf_counter()
            if problem := kept_states.restore(1, loaded):
                raise SystemExit(problem)
            restored = first(conversation, started)
            loaded.engine.close()
            ratios.append(restored / read)
            restored_s.append(restored)
            read_s.append(read)
    return {"tokens": tokens, "resumed_s": median(restored_s), "read_again_s": median(read_s),
            "ratio": median(ratios), "file_bytes": size}  # fmt: skip


def first_byte_s(command: Sequence[str]) -> tuple[float, float]:
    """Seconds to the first byte on stdout, and to the end."""
    started = perf_counter()
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdout is not None
        process.stdout.read(1)
        first = perf_counter() - started
        process.stdout.read()
    return first, perf_counter() - started


def cold_start(path: Path, tools: Path | None, pairs: int) -> dict[str, Any]:
    """Seconds from the start of the process to the end of an answer of one token; of `llama-cli` too where it is."""
    prompt = "Name the capital of France."
    ours = [sys.executable, "-m", "localai", "run", "-m", str(path), "--max-tokens", "1", prompt]
    cli = tools / "llama-cli" if tools and (tools / "llama-cli").exists() else None
    theirs = [str(cli), "-m", str(path), "-p", prompt, "-n", "1", "-st", "--no-warmup"]
    first, whole, other, ratios = [], [], [], []
    for pair in range(pairs + 1):
        reference = first_byte_s(theirs)[1] if cli and pair % 2 else None
        began, ended = first_byte_s(ours)
        if cli and reference is None:
            reference = first_byte_s(theirs)[1]
        if pair:
            first.append(began)
            whole.append(ended)
            if reference is not None:
                other.append(reference)
                ratios.append(ended / reference)
    return {"first_token_s": median(first), "whole_s": median(whole),
            "llama_cli_s": median(other) if other else None, "ratio": median(ratios) if ratios else None}  # fmt: skip


def peak_memory(path: Path, context: int = 4096, answer: int = 64) -> dict[str, Any]:
    """Peak of the resident memory of `run` and its children, less what llama.cpp takes for the same in a bare loop.

    `planned_bytes` are the buffers that llama.cpp allocates. It holds more than those where it repacks weights: the
    pages of the mapped originals stay until the system wants them back.
    """
    plan = loading.prepare(library.find(str(path)), loading.LoadOptions(context=context)).plan
    command = [sys.executable, "-m", "localai", "run", "-m", str(path), "-c", str(context), "--max-tokens", str(answer)]
    ours = peak_rss([*command, TASKS["tell"]])
    script = str(Path(__file__).with_name("bare_loop.py"))
    bare = [sys.executable, script, str(path), str(context), str(answer)]
    theirs = peak_rss(bare) - peak_rss([*bare[:-1], "0"])  # without a model: Python and the library themselves
    return {"model": path.name, "peak_bytes": ours, "llama_cpp_peak_bytes": theirs,
            "planned_bytes": plan.memory.total_bytes, "beyond_mib": (ours - theirs) / MIB}  # fmt: skip


def peak_rss(command: Sequence[str]) -> int:
    """The most bytes that a process and its children held at once, looked at every 5 ms."""
    peak = 0
    with psutil.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        while process.poll() is None:
            with suppress(psutil.Error):
                tree = [process, *process.children(recursive=True)]
                peak = max(peak, sum(each.memory_info().rss for each in tree))
            sleep(0.005)
    if process.returncode:
        raise SystemExit(f"{command[0]} ended with {process.returncode}")
    return peak
