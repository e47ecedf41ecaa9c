"""The header reader: sound files as the `gguf` package reads them, hostile ones refused in bounded time and memory."""

from __future__ import annotations

import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf as reference
import numpy as np
import pytest
from gguf_files import ARRAY, STRING, UINT64, Typed, gguf_bytes, text, write
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from localai import gguf, gguf_reader
from localai.errors import EngineError, NotFound
from localai.gguf_reader import Skipped
from localai.tensor_types import TENSOR_TYPES

META = {"general.architecture": "llama", "llama.block_count": 2, "general.name": "tiny"}
TENSORS = [("token_embd.weight", "Q8_0", (64, 10)), ("blk.0.attn_q.weight", "Q4_K", (256, 4)), ("norm", "F32", (7,))]


class Bytes:
    """A byte source over bytes, which counts what it is asked for."""

    def __init__(self, content: bytes, size: int | None = None) -> None:
        self.name = "bytes"
        self.content = content
        self.size = len(content) if size is None else size
        self.read = 0

    def read_at(self, offset: int, length: int) -> bytes:
        found = self.content[offset : offset + length]
        self.read += len(found)
        return found


def refused(content: bytes, words: str) -> None:
    with pytest.raises(EngineError, match=words) as caught:
        gguf.parse(Bytes(content))
    assert "\n" not in caught.value.message
    assert caught.value.hint
    assert caught.value.exit_code == 6


# -------------------------------------------------------------------------------------------------------- sound


def test_the_tensor_types_are_the_gguf_packages() -> None:
    theirs = {kind.name: (int(kind), *size) for kind, size in reference.GGML_QUANT_SIZES.items()}
    # Q8_1 never stands in a file; gguf 0.19 still has its old size (40), ggml-common.h says 2 + 2 + 32.
    ours = {kind.name: (n, kind.block, kind.size_bytes) for n, kind in TENSOR_TYPES.items() if kind.name != "Q8_1"}
    common = ours.keys() & theirs.keys()
    assert len(common) >= 30
    assert {name: ours[name] for name in common} == {name: theirs[name] for name in common}


def test_a_small_file(tmp_path: Path) -> None:
    path = write(tmp_path, gguf_bytes(META, TENSORS))
    header = gguf.read_header(path)
    assert header.version == 3
    assert dict(header.metadata) == META
    assert [(tensor.name, tensor.type, tensor.dimensions) for tensor in header.tensors] == TENSORS
    assert [tensor.size_bytes for tensor in header.tensors] == [680, 576, 28]
    assert [tensor.offset for tensor in header.tensors] == [0, 704, 1280]
    assert [tensor.elements for tensor in header.tensors] == [640, 1024, 7]
    assert header.file_size == path.stat().st_size
    assert header.data_offset + 1280 + 32 == header.file_size


def test_version_2_an_empty_file_and_another_alignment() -> None:
    assert gguf.parse(Bytes(gguf_bytes({}, version=2))).tensors == ()
    content = gguf_bytes({"general.alignment": 256}, TENSORS, alignment=256)
    assert gguf.parse(Bytes(content)).data_offset % 256 == 0


def test_long_arrays_are_stepped_over_unless_asked_for() -> None:
    words = [f"token {number}" for number in range(5000)]
    content = gguf_bytes({"tokenizer.ggml.tokens": words, "short": [1, 2], "scores": list(range(5000)), "last": "x"})
    header = gguf.parse(Bytes(content))
    assert header.metadata["tokenizer.ggml.tokens"] == Skipped("string", 5000)
    assert header.metadata["scores"] == Skipped("int32", 5000)
    assert (header.metadata["short"], header.metadata["last"]) == ((1, 2), "x")
    kept = gguf.parse(Bytes(content), keep={"tokenizer.ggml.tokens", "scores"})
    assert kept.metadata["tokenizer.ggml.tokens"] == tuple(words)
    assert kept.metadata["scores"] == tuple(range(5000))


def test_a_very_long_string_is_stepped_over() -> None:
    content = gguf_bytes({"long": "x" * (gguf_reader.STRING_LIMIT + 1), "after": True})
    header = gguf.parse(Bytes(content))
    assert dict(header.metadata) == {"long": Skipped("string", gguf_reader.STRING_LIMIT + 1), "after": True}


def test_text_that_is_not_utf8_is_marked() -> None:
    assert gguf.parse(Bytes(gguf_bytes({"name": b"caf\xe9"}))).metadata["name"] == "caf\ufffd"


def test_the_gguf_packages_writer_and_reader_agree(tmp_path: Path) -> None:
    path = tmp_path / "written.gguf"
    writer = reference.GGUFWriter(path, "llama")
    writer.add_block_count(2)
    writer.add_head_count_kv([2, 4])
    writer.add_rope_freq_base(10000.0)
    writer.add_token_list(["a", "é", "𝄞"])
    writer.add_bool("llama.flag", True)
    writer.add_uint64("llama.big", 2**40)
    writer.add_int8("llama.negative", -3)
    writer.add_float64("llama.precise", 0.1)
    writer.add_tensor("token_embd.weight", np.zeros((10, 64), np.float16))
    writer.add_tensor("q", np.zeros((4, 34), np.uint8), raw_dtype=reference.GGMLQuantizationType.Q8_0)
    writer.add_tensor("norm", np.zeros((5,), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    header, theirs = gguf.read_header(path), reference.GGUFReader(path)
    values = {name: field.contents() for name, field in theirs.fields.items() if not name.startswith("GGUF.")}
    assert {key: list(item) if isinstance(item, tuple) else item for key, item in header.metadata.items()} == values
    assert header.data_offset == theirs.data_offset
    assert [
        (tensor.name, tensor.type, list(tensor.dimensions), tensor.size_bytes, header.data_offset + tensor.offset)
        for tensor in header.tensors
    ] == [(t.name, t.tensor_type.name, t.shape.tolist(), int(t.n_bytes), int(t.data_offset)) for t in theirs.tensors]
    del theirs


# ------------------------------------------------------------------------------------------------------- shards


def shard(folder: Path, number: int, count: int, tensor: str) -> Path:
    meta = {**META, "split.no": number, "split.count": count}
    return write(folder, gguf_bytes(meta, [(tensor, "F32", (8,))]), f"m-{number + 1:05}-of-{count:05}.gguf")


def test_shards_are_one_model(tmp_path: Path) -> None:
    paths = [shard(tmp_path, 0, 2, "a"), shard(tmp_path, 1, 2, "b")]
    header = gguf.read_model(paths)
    assert [tensor.name for tensor in header.tensors] == ["a", "b"]
    assert header.file_size == sum(path.stat().st_size for path in paths)


def test_a_count_of_shards_that_is_a_text_is_shown_and_not_obeyed(tmp_path: Path) -> None:
    path = write(tmp_path, gguf_bytes({"general.architecture": "llama", "split.count": "\x1b[2J" * 9}))
    with pytest.raises(EngineError) as caught:
        gguf.read_model([path])
    assert caught.value.message.isprintable()


def test_shards_together_are_bounded_as_one_file_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [shard(tmp_path, 0, 2, "a"), shard(tmp_path, 1, 2, "b")]
    more = [gguf.read_header(path) for path in paths]
    assert set(gguf.as_later_shard(more[1]).metadata) == {"split.no", "split.count"}
    monkeypatch.setattr(gguf, "TENSORS_LIMIT", 1)
    assert gguf.read_header(paths[0]).tensors
    with pytest.raises(EngineError, match="2 tensors, more than any model has"):
        gguf.read_model(paths)


def test_shards_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    first, second = shard(tmp_path, 0, 2, "a"), shard(tmp_path, 1, 2, "b")
    for paths, words in (
        ([first], "one of 2 shards, but 1"),
        ([second, first], "not shard 1 of 2"),
        ([first, first], "not shard 2 of 2"),
    ):
        with pytest.raises(EngineError, match=words):
            gguf.read_model(paths)
    with pytest.raises(EngineError, match="repeats the tensor"):
        gguf.read_model([first, shard(tmp_path, 1, 2, "a")])
    with pytest.raises(NotFound):
        gguf.read_model([])


# ------------------------------------------------------------------------------------------------------ hostile


def test_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        gguf.read_header(tmp_path / "absent.gguf")
    with pytest.raises(NotFound):
        gguf.read_header(tmp_path)
    with pytest.raises(EngineError, match="not a GGUF file"):
        gguf.read_header(write(tmp_path, b"PK\3\4 not a model at all, but a zip file"))
    with pytest.raises(EngineError, match="not a GGUF file"):
        gguf.read_header(write(tmp_path, b""))


def preamble(tensors: int, keys: int, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, keys)


HOSTILE: list[tuple[str, bytes, str]] = [
    ("version 1", gguf_bytes(META, version=1), "version is 1"),
    ("version 99", gguf_bytes(META, version=99), "version is 99"),
    ("big-endian", b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
    ("2^63 tensors", preamble(2**63, 0), "more than any model"),
    ("2^64 - 1 keys", preamble(0, 2**64 - 1), "more than any model"),
    ("a 2^63 key", preamble(0, 1) + struct.pack("<Q", 2**63) + b"x" * 64, "key's name is"),
    ("a key beyond the end", preamble(0, 1) + struct.pack("<Q", 60_000) + b"x" * 64, "cut off"),
    ("an empty key", gguf_bytes({"": 1}), "no name"),
    ("a doubled key", gguf_bytes([("a", 1), ("a", 2)]), "'a' is there twice"),
    ("an unknown type", gguf_bytes({"a": Typed(13, b"\0" * 8)}), "the type 13"),
    ("a 2^63 string", gguf_bytes({"a": Typed(STRING, struct.pack("<Q", 2**63) + b"x" * 64)}), "cut off"),
    ("a 2^63 array", gguf_bytes({"a": Typed(ARRAY, struct.pack("<IQ", 4, 2**63))}), "cut off"),
    ("2^63 strings", gguf_bytes({"a": Typed(ARRAY, struct.pack("<IQ", STRING, 2**63))}), "more than any vocabulary"),
    (
        "a string in an array beyond the end",
        gguf_bytes({"a": Typed(ARRAY, struct.pack("<IQ", STRING, 2000) + text("x" * 9) + struct.pack("<Q", 2**62))}),
        "cut off",
    ),
    ("an array of arrays", gguf_bytes({"a": Typed(ARRAY, struct.pack("<IQ", ARRAY, 1))}), "arrays in an array"),
    ("many empty arrays", gguf_bytes({"a": Typed(ARRAY, struct.pack("<IQ", 99, 5000))}), "the type 99"),
    ("alignment 0", gguf_bytes({"general.alignment": 0}), "alignment"),
    ("alignment 3", gguf_bytes({"general.alignment": 3}), "alignment"),
    ("alignment of text", gguf_bytes({"general.alignment": "32"}), "alignment"),
    ("alignment 2^40", gguf_bytes({"general.alignment": Typed(UINT64, struct.pack("<Q", 2**40))}), "alignment"),
    ("a doubled tensor", gguf_bytes(META, [("a", "F32", (8,)), ("a", "F32", (8,))]), "tensor 'a' is there twice"),
    ("a long tensor name", gguf_bytes(META, [("x" * 64, "F32", (8,))]), "tensor's name is 64"),
    ("five dimensions", gguf_bytes(META, [("a", "F32", (1, 1, 1, 1, 1))]), "5 dimensions"),
    ("2^62 dimensions", preamble(1, 0) + text("a") + struct.pack("<I", 2**31), "dimensions"),
    ("a 2^64 product", gguf_bytes(META, [("a", "F32", (2**32, 2**32))], data=False), "impossible dimensions"),
    ("a dimension of nothing", gguf_bytes(META, [("a", "F32", (4, 0, 2))]), "impossible dimensions"),
    ("half a block", gguf_bytes(META, [("a", "Q4_K", (255, 2))]), "no multiple of its block"),
    (
        "an unknown tensor type",
        preamble(1, 0) + text("a") + struct.pack("<IQIQ", 1, 8, 4242, 0),
        "the type 4242",
    ),
    (
        "tensors on top of each other",
        preamble(2, 0) + b"".join(text(name) + struct.pack("<IQIQ", 1, 8, 0, 0) for name in "ab") + b"\0" * 200,
        "begins at 0, not at 32",
    ),
    ("data beyond the end", gguf_bytes(META, TENSORS, data=False), "cut off"),
    ("a control character in a key", gguf_bytes([("\x1b]0;x\x07", 1), ("\x1b]0;x\x07", 2)]), r"'\\x1b\]0;x\\x07'"),
]


@pytest.mark.parametrize(("content", "words"), [each[1:] for each in HOSTILE], ids=[each[0] for each in HOSTILE])
def test_hostile_files_are_refused_with_a_reason(content: bytes, words: str) -> None:
    refused(content, words)


def test_a_file_cut_anywhere_is_refused() -> None:
    content = gguf_bytes({**META, "list": ["a", "b"], "numbers": [1, 2, 3]}, TENSORS)
    gguf.parse(Bytes(content))
    end = gguf.parse(Bytes(content)).data_offset + 1280 + 28
    for length in range(end):
        with pytest.raises(EngineError):
            gguf.parse(Bytes(content[:length]))
    gguf.parse(Bytes(content[:end]))  # the padding after the last tensor may be absent


def strings(count: int, length: int) -> bytes:
    return struct.pack("<IQ", STRING, count) + text(b"x" * length) * count


MONSTERS: dict[str, Callable[[], bytes]] = {
    "text without end": lambda: gguf_bytes({f"key {n}": "x" * 900_000 for n in range(60)}),
    "many long keys": lambda: gguf_bytes({f"{n:05}" + "k" * 60_000: 1 for n in range(800)}),
    "small arrays without end": lambda: gguf_bytes({f"{n}": Typed(ARRAY, strings(1000, 30)) for n in range(600)}),
    "numbers without end": lambda: gguf_bytes({f"{n}": list(range(1024)) for n in range(2000)}),
    "wide characters": lambda: gguf_bytes({f"{n}": ("x" * 1_000_000 + "𝄞") for n in range(60)}),
    "a million windows": lambda: gguf_bytes({"a": Typed(ARRAY, strings(1100, 300_000))}),
}


@pytest.mark.parametrize("name", MONSTERS)
def test_memory_and_reading_are_bounded(name: str) -> None:
    source = Bytes(MONSTERS[name]())
    tracemalloc.start()
    try:
        with pytest.raises(EngineError):
            gguf.parse(source)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 180 * 1024**2
    assert source.read <= gguf_reader.HEADER_LIMIT + 2 * gguf_reader.CHUNK


def test_only_the_header_of_a_large_file_is_read(tmp_path: Path) -> None:
    content = gguf_bytes(META, TENSORS)
    source = Bytes(content, size=10**15)
    gguf.parse(source)
    assert source.read <= gguf_reader.CHUNK


SEED = gguf_bytes({**META, "list": ["a", "bc"], "flags": [True, False], "rate": 0.5}, TENSORS)


@settings(max_examples=400, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(
        st.tuples(
            st.integers(0, len(SEED) - 1),
            st.one_of(
                st.binary(min_size=1, max_size=8),
                st.sampled_from([b"\xff" * 8, b"\0" * 8, struct.pack("<Q", 2**63), struct.pack("<I", 9)]),
            ),
        ),
        min_size=1,
        max_size=4,
    ),
    st.integers(0, 64),
)
@example([(4, b"\x03\0\0\0")], 0)
def test_a_mutated_file_is_read_or_refused(changes: list[tuple[int, bytes]], cut: int) -> None:
    content = bytearray(SEED)
    for position, patch in changes:
        content[position : position + len(patch)] = patch
    try:
        header = gguf.parse(Bytes(bytes(content[: len(content) - cut])))
    except EngineError as error:
        if not error.hint or "\n" in error.message:
            raise AssertionError from error
        return
    end = max((header.data_offset + t.offset + t.size_bytes for t in header.tensors), default=0)
    assert end <= header.file_size


_VALUES: st.SearchStrategy[Any] = st.one_of(
    st.integers(0, 2**32 - 1),
    st.booleans(),
    st.text(max_size=30),
    st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=20),
    st.lists(st.text(max_size=8), min_size=1, max_size=8),
)
_SHAPES = st.tuples(
    st.sampled_from([(kind.name, kind.block) for kind in TENSOR_TYPES.values()]),
    st.integers(1, 4),
    st.lists(st.integers(1, 5), max_size=3),
)


@settings(max_examples=80)
@given(st.dictionaries(st.text(min_size=1, max_size=20), _VALUES, max_size=6), st.lists(_SHAPES, max_size=5))
def test_what_is_written_is_read(metadata: dict[str, Any], shapes: list[Any]) -> None:
    metadata.pop("general.alignment", None)
    tensors = [(f"t{n}", kind, (block * rows, *rest)) for n, ((kind, block), rows, rest) in enumerate(shapes)]
    header = gguf.parse(Bytes(gguf_bytes(metadata, tensors)))
    assert {k: list(v) if isinstance(v, tuple) else v for k, v in header.metadata.items()} == metadata
    assert [(t.name, t.type, t.dimensions) for t in header.tensors] == tensors
