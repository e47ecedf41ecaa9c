"""Vectors: those that a plain computation gives, alike alone and in a batch, and what is refused."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy
import pytest
import vector_models
from conftest import Cli
from real_model import model_file, plan
from vector_models import HEADS, LAYERS, Made

from localai import embeddings, gguf, library, shapes
from localai.domain.files import InstalledFile, InstalledModel
from localai.engine import embedding
from localai.engine.embedding import Embedder
from localai.errors import ContextOverflow, EngineError

TEXTS = ["the cat sleeps in the garden", "a red house", "dog", "le chat , the dog runs .", "nobody knows these words"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("models")
    vector_models.bert(made / "bert.gguf")
    vector_models.bert(made / "bert-cls.gguf", "CLS")
    vector_models.bert(made / "ranker.gguf", "RANK")
    vector_models.decoder(made / "qwen3.gguf", "LAST")
    vector_models.decoder(made / "chats.gguf")
    return made


def opened(path: Path, context: int = 512) -> Embedder:
    # one thread: two wait actively for each other, which takes long where tests run side by side
    return embedding.load(path, replace(plan(context), threads=1), shapes.pooling(gguf.read_header(path)))


@pytest.fixture(params=["bert.gguf", "bert-cls.gguf", "qwen3.gguf", "smollm2"])
def embedder(request: pytest.FixtureRequest, folder: Path) -> Iterator[Embedder]:
    loaded = opened(model_file() if request.param == "smollm2" else folder / request.param, 2048)
    yield loaded
    loaded.close()


def cosine(one: list[float], other: list[float]) -> float:
    return float(numpy.dot(one, other) / (math.hypot(*one) * math.hypot(*other)))


def test_a_batch_is_as_one_by_one_and_all_have_length_one(embedder: Embedder) -> None:
    together = embedder.embed(TEXTS * 14)  # several batches
    for text, row in zip(TEXTS, together, strict=False):
        (alone,) = embedder.embed([text])
        assert cosine(alone.vector, row.vector) > 0.999
        assert math.hypot(*row.vector) == pytest.approx(1)
        assert (len(row.vector), row.tokens) == (embedder.dimensions, len(embedder.tokens(text)))
        (plain,) = embedder.embed([text], normalize=False)
        assert cosine(plain.vector, alone.vector) > 0.999
        assert math.hypot(*plain.vector) != pytest.approx(1, abs=1e-3)
    assert together[0].vector == pytest.approx(together[5].vector, abs=0.01)
    assert cosine(together[0].vector, together[1].vector) < 0.999


def reference(made: Made, tokens: list[int]) -> numpy.ndarray:
    """The last hidden states of BERT for one text, in plain numpy."""

    def norm(x: numpy.ndarray, name: str) -> numpy.ndarray:
        scaled = (x - x.mean(-1, keepdims=True)) / numpy.sqrt(x.var(-1, keepdims=True) + 1e-12)
        return scaled * made[f"{name}.weight"] + made[f"{name}.bias"]

    def linear(x: numpy.ndarray, name: str) -> numpy.ndarray:
        return x @ made[f"{name}.weight"].T + made[f"{name}.bias"]

    x = made["token_embd.weight"][tokens] + made["token_types.weight"][0]
    x = norm(x + made["position_embd.weight"][: len(tokens)], "token_embd_norm")
    for i in range(LAYERS):
        q, k, v = (linear(x, f"blk.{i}.attn_{n}").reshape(len(x), HEADS, -1).swapaxes(0, 1) for n in "qkv")
        scores = numpy.exp(q @ k.swapaxes(1, 2) / math.sqrt(q.shape[-1]))
        seen = (scores / scores.sum(-1, keepdims=True) @ v).swapaxes(0, 1).reshape(x.shape)
        x = norm(x + linear(seen, f"blk.{i}.attn_output"), f"blk.{i}.attn_output_norm")
        up = linear(x, f"blk.{i}.ffn_up")
        gelu = up * (1 + numpy.tanh(math.sqrt(2 / math.pi) * (up + 0.044715 * up**3))) / 2
        x = norm(x + linear(gelu, f"blk.{i}.ffn_down"), f"blk.{i}.layer_output_norm")
    return x


@pytest.mark.parametrize("pooling", ["MEAN", "CLS"])
def test_an_encoder_gives_what_a_plain_computation_gives(pooling: str, tmp_path: Path) -> None:
    made = vector_models.bert(tmp_path / "bert.gguf", pooling)
    embedder = opened(tmp_path / "bert.gguf")
    for text, row in zip(TEXTS, embedder.embed(TEXTS, normalize=False), strict=True):
        tokens = embedder.tokens(text)
        assert tokens[0] == 2
        assert tokens[-1] == 3
        states = reference(made, tokens)
        expected = states.mean(0) if pooling == "MEAN" else states[0]
        assert row.vector == pytest.approx(expected.tolist(), abs=0.02)
    embedder.close()


def test_the_last_token_is_the_one_that_ends_the_text(folder: Path) -> None:
    embedder = opened(folder / "qwen3.gguf")
    assert embedder.tokens("hello")[-1] == embedder._vocabulary.eos
    assert embedder.tokens("hello <|im_end|>")[:-1].count(embedder._vocabulary.eos) == 0  # text, and no control token
    embedder.close()


@pytest.mark.parametrize("name", ["qwen3.gguf", "chats.gguf"])
def test_a_text_longer_than_a_batch_is_read_in_pieces(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder / name
    long = " ".join(f"word{number}" for number in range(180))
    pieces = opened(path, 2048)
    assert len(pieces.tokens(long)) > 512
    (first,) = pieces.embed([long])
    pieces.close()
    monkeypatch.setattr("localai.domain.embedding.EMBEDDING_STEP", 2048)
    monkeypatch.setattr("localai.engine.embedding.EMBEDDING_STEP", 2048)
    whole = opened(path, 2048)
    (second,) = whole.embed([long])
    whole.close()
    assert cosine(first.vector, second.vector) > 0.999


def test_what_is_too_long_is_told_with_both_counts_or_cut(folder: Path) -> None:
    embedder = opened(folder / "bert.gguf", 4096)
    assert embedder.context == 512  # there is no position beyond those that were learnt
    with pytest.raises(ContextOverflow, match=r"text 1 takes 602 tokens, the context has 512"):
        embedder.embed(["dog", "cat " * 600])
    cut = embedder.cut("cat " * 600)
    assert embedder.embed([cut])[0].tokens == 512
    embedder.close()


def test_ctrl_c_ends_it_inside_a_batch(folder: Path) -> None:
    embedder = opened(folder / "bert.gguf")
    asked = iter([False, False, True, *[True] * 1000])
    with pytest.raises(KeyboardInterrupt):
        embedder.embed(TEXTS, cancelled=lambda: next(asked))
    assert embedder.embed(["dog"])[0].tokens == 3
    embedder.close()
    embedder.close()


def test_a_model_that_ranks_or_chats_is_no_embedding_model(folder: Path, cli: Cli) -> None:
    with pytest.raises(EngineError, match="ranks"):
        opened(folder / "ranker.gguf")
    for name in ("bert.gguf", "qwen3.gguf"):
        told = cli("run", "-m", str(folder / name), "hi")
        assert told.returncode == 6
        assert "localai embed -m" in told.stderr
    told = cli("embed", "-m", "smollm2-135m", "one", "two")
    assert told.returncode == 0
    assert "not made for embeddings" in told.stderr


def installed(name: str, path: Path) -> InstalledModel:
    file = InstalledFile(path.name, path, path.stat().st_size, "0" * 64)
    return InstalledModel(name, None, None, "F32", (file,), None, None, "file")


def test_without_a_name_an_embedding_model_is_taken_and_never_for_a_chat(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chats = installed("smollm2-135m", model_file())
    vectors = replace(installed("qwen3-embedding-0.6b", folder / "qwen3.gguf"), last_used_at="2026-01-01T00:00:00Z")
    monkeypatch.setattr(library, "installed", lambda: (vectors, chats, installed("mine/bert", folder / "bert.gguf")))
    assert embeddings.find(None).name == "qwen3-embedding-0.6b"
    assert library.find(None).name == "smollm2-135m"


def test_the_command(cli: Cli, folder: Path, isolated: Path) -> None:
    words = ("embed", "-m", str(folder / "bert.gguf"))
    lines = [json.loads(line) for line in cli(*words, input="the cat\r\n\nle chat é\n").stdout.splitlines()]
    assert [line["index"] for line in lines] == [0, 2]
    assert {line["schema_version"] for line in lines} == {1}
    assert lines[1]["tokens"] == 5
    assert lines[0]["dimensions"] == len(lines[0]["embedding"]) == 64
    by_argument = json.loads(cli(*words, "the cat").stdout)
    assert by_argument["embedding"] == pytest.approx(lines[0]["embedding"], abs=1e-3)
    records = '{"id": "a", "body": "the cat"}\n\n{"id": 7, "body": "dog"}\n'
    told = cli(*words, "--input", "jsonl", "--field", "body", input=records).stdout.splitlines()
    assert [(json.loads(line)["id"], json.loads(line)["index"]) for line in told] == [("a", 0), (7, 2)]
    (isolated / "notes é.txt").write_text("the cat\nsleeps", "utf-8")
    of_file = json.loads(cli(*words, "--file", "notes é.txt").stdout)
    assert (of_file["file"], of_file["tokens"]) == ("notes é.txt", 5)
    prefixed = json.loads(cli(*words, "--prefix", "a red ", "cat").stdout)
    assert prefixed["tokens"] == 5


@pytest.mark.parametrize(
    ("words", "given", "code", "why"),
    [
        ((), "", 2, "no text"),
        (("--input", "jsonl"), '{"text": 3}', 2, "line 1"),
        (("--input", "jsonl"), '"a"\nnonsense', 2, "line 2"),
        (("--input", "xml"), "a", 2, "--input"),
        (("--file", "nosuch.txt"), "", 3, "nosuch.txt"),
        (("--on-overflow", "skip"), "a", 2, "--on-overflow"),
        ((), "cat " * 600, 7, "602 tokens"),
        (("--context", "0"), "a", 2, "--context"),
        (("--context", "100000000"), "a", 4, "--context 512 fits"),
    ],
)
def test_what_cannot_be_embedded_is_told(
    words: tuple[str, ...], given: str, code: int, why: str, cli: Cli, folder: Path
) -> None:
    told = cli("embed", "-m", str(folder / "bert.gguf"), *words, input=given)
    assert told.returncode == code
    assert why in told.stderr


def test_ctrl_c_ends_it_while_stdin_is_waited_for(folder: Path) -> None:
    words = [sys.executable, "-m", "localai", "embed", "-m", str(folder / "bert.gguf")]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("dog\n" * 64)  # a group
        process.stdin.flush()
        for _ in range(64):
            process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130


def test_without_an_embedding_model_the_command_that_brings_one_is_told(cli: Cli) -> None:
    told = cli("embed", "a text")
    assert told.returncode == 3
    assert "localai pull" in told.stderr
