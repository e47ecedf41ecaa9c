"""Models that see: what a picture becomes in the prompt and the cache, held against llama.cpp's own way of it."""

from __future__ import annotations

import ctypes
import hashlib
import io
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import vision_models
from conftest import Cli
from PIL import Image as Pillow
from real_model import plan
from small_models import projector_bytes
from vision_models import TEMPLATE, WIDTH, pixels

from localai import cards, gguf, loading, shapes
from localai.domain.files import InstalledFile, InstalledModel
from localai.domain.generation import AnswerEnd, GenerationRequest, Image, Message, Sampling
from localai.engine import library
from localai.engine.model import LlamaEngine, load
from localai.errors import ContextOverflow, EngineError, UsageError
from localai.library import Found

KINDS = ("llava", "qwen2vl", "gemma3")
MARK = b"<__media__>"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("models")
    for kind in KINDS:
        vision_models.pair(made / kind, kind)
    return made


def opened(folder: Path, kind: str, context: int = 1024) -> LlamaEngine:
    one_thread = replace(plan(context), threads=1)
    return load(folder / kind / f"{kind}.gguf", one_thread, projector=folder / kind / f"mmproj-{kind}.gguf")


@pytest.fixture(params=KINDS)
def engine(request: pytest.FixtureRequest, folder: Path) -> Iterator[LlamaEngine]:
    loaded = opened(folder, request.param)
    yield loaded
    loaded.close()


def picture(seed: int, width: int = 64, height: int = 48) -> Image:
    content = pixels(width, height, seed)
    return Image(f"{seed}.png", width, height, content, hashlib.sha256(content).hexdigest())


def asking(text: str, *seeds: int) -> Message:
    return Message("user", text, tuple(map(picture, seeds)))


def ask(engine: LlamaEngine, *messages: Message, tokens: int = 6) -> AnswerEnd:
    request = GenerationRequest(messages, Sampling(temperature=0), tokens)
    end = list(engine.generate(request, lambda: False))[-1]
    assert isinstance(end, AnswerEnd)
    return end


def logits(engine: LlamaEngine) -> list[float]:
    """Those of the last token that was evaluated."""
    size = engine._api.llama_vocab_n_tokens(engine._vocabulary.pointer)
    return list(engine._api.llama_get_logits_ith(engine._cache.pointer, -1)[:size])


def by_llama_cpp(engine: LlamaEngine, text: str, seeds: tuple[int, ...]) -> tuple[int, list[float]]:
    """A prompt (with marks) as mtmd's helper tokenizes and evaluates it: tokens, and the last one's logits."""
    api, mtmd = engine._api, library.mtmd()
    projector = engine._prompts.projector
    assert projector is not None
    chunks = mtmd.mtmd_input_chunks_init()
    bitmaps = [mtmd.mtmd_bitmap_init(64, 48, (ctypes.c_uint8 * (64 * 48 * 3))(*pixels(64, 48, seed))) for seed in seeds]
    raw = text.encode()
    given = mtmd.mtmd_input_text(text=raw, text_len=len(raw), add_special=True, parse_special=True)
    array = (ctypes.c_void_p * len(bitmaps))(*bitmaps)
    assert mtmd.mtmd_tokenize(projector._pointer, chunks, ctypes.byref(given), array, len(bitmaps)) == 0
    api.llama_memory_clear(api.llama_get_memory(engine._cache.pointer), True)
    past = ctypes.c_int32()
    assert (
        mtmd.mtmd_helper_eval_chunks(
            projector._pointer, engine._cache.pointer, chunks, 0, 0, 512, True, ctypes.byref(past)
        )
        == 0
    )
    found = logits(engine)
    count = mtmd.mtmd_helper_get_n_tokens(chunks)
    mtmd.mtmd_input_chunks_free(chunks)
    engine._cache.clear()
    return count, found


@pytest.mark.parametrize("seeds", [(1,), (1, 2), (3, 3)])
def test_a_prompt_with_pictures_is_what_llama_cpp_makes_of_it(engine: LlamaEngine, seeds: tuple[int, ...]) -> None:
    question = asking("What is it?", *seeds)
    end = ask(engine, question, tokens=1)  # the first token is drawn and not evaluated
    ours = logits(engine)
    text = f"<|im_start|>user\n{MARK.decode() * len(seeds)}What is it?<|im_end|>\n<|im_start|>assistant\n"
    count, theirs = by_llama_cpp(engine, text, seeds)
    assert end.usage.prompt_tokens == count == engine.count_tokens([question])
    assert ours == pytest.approx(theirs, abs=1e-3)


def test_other_pictures_other_answers_and_the_cache_is_never_wrong(engine: LlamaEngine) -> None:
    first = ask(engine, asking("What?", 1))
    seen = logits(engine)
    again = ask(engine, asking("What?", 1))
    assert again.text == first.text
    assert again.usage.cached_tokens == first.usage.prompt_tokens - 1
    other = ask(engine, asking("What?", 2))
    assert logits(engine) != pytest.approx(seen, abs=1e-3)
    assert other.usage.cached_tokens < first.usage.prompt_tokens - 10  # nothing of the other picture is kept
    ask(engine, asking("What?", 1))
    assert logits(engine) == pytest.approx(seen, abs=1e-3)
    talk = (asking("What?", 1), Message("assistant", first.text), asking("And this?", 3))
    longer = ask(engine, *talk)
    assert longer.usage.cached_tokens >= first.usage.prompt_tokens
    continued = logits(engine)
    engine.forget()
    assert ask(engine, *talk).usage.cached_tokens == 0
    assert logits(engine) == pytest.approx(continued, abs=1e-2)


def test_ctrl_c_while_it_looks_leaves_the_next_answer_as_ever(engine: LlamaEngine) -> None:
    fresh = ask(engine, asking("What?", 1)).text
    engine.forget()
    for calls in (1, 2, 3, 5, 9, 20):
        asked = iter(range(10**6))
        request = GenerationRequest((asking("What?", 2),), Sampling(temperature=0), 4)
        list(engine.generate(request, lambda limit=calls, asked=asked: next(asked) >= limit))
    assert ask(engine, asking("What?", 1)).text == fresh


def test_what_looks_like_a_mark_is_text(engine: LlamaEngine) -> None:
    plain = engine.count_tokens([Message("user", MARK.decode())])
    assert plain == len(MARK) + engine.count_tokens([Message("user", "")])
    assert engine.count_tokens([asking(MARK.decode(), 1)]) - engine.count_tokens([asking("", 1)]) == len(MARK)


def test_pictures_count_against_the_context(folder: Path) -> None:
    engine = opened(folder, "llava", 256)
    with pytest.raises(ContextOverflow, match=r"takes \d{3} tokens, the context has 256"):
        ask(engine, asking("What?", *range(20)))
    engine.close()


def test_a_template_that_wants_parts_and_one_that_drops_pictures(tmp_path: Path) -> None:
    wants = TEMPLATE.replace(
        "{{ m.content }}", "{% for p in m.content %}{% if p.type == 'text' %}{{ p.text }}{% endif %}{% endfor %}"
    )
    vision_models.pair(tmp_path / "llava", "llava", wants)
    engine = opened(tmp_path, "llava")
    assert engine.count_tokens([asking("What is it?", 1)]) == 46
    engine.close()
    vision_models.pair(
        tmp_path / "llava", "llava", TEMPLATE.replace("{{ m.content }}", "{{ m.content[-4:] | string }}")
    )
    engine = opened(tmp_path, "llava")
    with pytest.raises(EngineError, match="leaves images out"):
        ask(engine, asking("What is it?", 1))
    engine.close()


@pytest.mark.parametrize("damage", ["cut", "text", "other", "noise", "missing"])
def test_a_bad_projector_is_told(damage: str, folder: Path, tmp_path: Path, cli: Cli) -> None:
    model = tmp_path / "llava.gguf"
    model.write_bytes((folder / "llava" / "llava.gguf").read_bytes())
    whole = (folder / "llava" / "mmproj-llava.gguf").read_bytes()
    other = (folder / "llava" / "llava.gguf").read_bytes()
    missing = whole.replace(b"v.blk.0.attn_v.weight", b"v.blk.0.attn_x.weight")  # llama.cpp's mtmd crashes over it
    content = {
        "missing": missing,
        "cut": whole[:5000],
        "text": b"hello",
        "other": other,
        "noise": whole[:200] + os.urandom(400) + whole[600:],
    }
    (tmp_path / "mmproj-F16.gguf").write_bytes(content[damage])
    (tmp_path / "a.png").write_bytes(encoded())
    told = cli("run", "-m", str(model), "--image", str(tmp_path / "a.png"), "What?")
    assert told.returncode == 6
    assert told.stderr.startswith("error: ")
    assert len(told.stderr.splitlines()) == 2


def encoded(form: str = "PNG") -> bytes:
    held = io.BytesIO()
    Pillow.frombytes("RGB", (64, 48), pixels(64, 48, 1)).save(held, form)
    return held.getvalue()


def test_which_projector_a_model_has(folder: Path, tmp_path: Path) -> None:
    path = folder / "llava" / "llava.gguf"
    assert loading.projector_of(Found(None, path, "x")) == folder / "llava" / "mmproj-llava.gguf"
    file = InstalledFile(path.name, path, path.stat().st_size, "0" * 64)
    without = InstalledModel("m", "a/b", None, "F32", (file,), None, None, "hub")
    assert loading.projector_of(Found(without, path, "m")) is None
    with_one = replace(without, projector=replace(file, path=tmp_path / "p.gguf"))
    assert loading.projector_of(Found(with_one, path, "m")) == tmp_path / "p.gguf"
    shown = cards.card(str(path))
    assert shown.projector_bytes > 0
    assert shown.plan is not None
    assert shown.plan.memory.projector_bytes == shown.projector_bytes


def test_a_projector_of_another_model_beside_it_is_not_taken(folder: Path, tmp_path: Path) -> None:
    model, projector = folder / "llava" / "llava.gguf", folder / "llava" / "mmproj-llava.gguf"
    for name in ("sees-Q4_0.gguf", "writes-Q4_0.gguf", "mmproj-sees-f16.gguf"):
        (tmp_path / name).symlink_to(projector if "mmproj" in name else model)
    (tmp_path / "mmproj-wide-f16.gguf").write_bytes(projector_bytes(999))
    for name, own in {"sees-Q4_0.gguf": tmp_path / "mmproj-sees-f16.gguf", "writes-Q4_0.gguf": None}.items():
        assert loading.projector_of(Found(None, tmp_path / name, name)) == own
    told = gguf.read_header(projector)
    encoders = replace(told, metadata={**told.metadata, "clip.vision.projection_dim": 768})
    assert shapes.may_see_for(encoders, WIDTH)  # as LLaVA's say


def test_workers_take_no_images(folder: Path) -> None:
    path = folder / "llava" / "llava.gguf"
    prepared = loading.prepare(Found(None, path, "llava"), loading.LoadOptions())
    loading.refuse_blind(prepared)
    spread = replace(prepared, plan=replace(prepared.plan, workers=("10.0.0.2:50052",)))
    with pytest.raises(UsageError, match="--rpc"):
        loading.refuse_blind(spread)


def test_run_looks_at_images(cli: Cli, folder: Path, isolated: Path) -> None:
    (isolated / "photo é.jpg").write_bytes(encoded("JPEG"))
    words = ("run", "-m", str(folder / "llava" / "llava.gguf"), "--max-tokens", "4", "--temperature", "0", "-o", "json")
    plain = cli(*words, "What is it?")
    seen = cli(*words, "--image", "photo é.jpg", "What is it?")
    assert seen.returncode == 0, seen.stderr
    assert '"prompt_tokens": 46' in seen.stdout
    assert '"prompt_tokens": 30' in plain.stdout
    assert cli(*words, "--image", "nosuch.png", "hi").returncode == 3
    (isolated / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"\0" * 50)
    told = cli(*words, "--image", "bad.png", "hi")
    assert told.returncode == 2
    assert "bad.png" in told.stdout  # -o json: the error is an object
    blind = cli("run", "-m", "smollm2-135m", "--image", "photo é.jpg", "What is it?")
    assert blind.returncode == 2
    assert "projector" in blind.stderr
