"""`search`: what the Hub finds, how each quantization would run here, what it moves, and a Hub that lies or sleeps."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from conftest import CLOSED_PORT
from gguf_files import gguf_bytes
from hub_on_loopback import HubOnLoopback, running
from hypothesis import given
from hypothesis import strategies as st
from model_headers import named
from remote_models import file_of

from localai import catalog, gguf, ranges, searching, shapes
from localai.domain.units import KIB, MIB
from localai.errors import EngineError, NetworkError, UsageError
from localai.machines import hypothetical

HERE = hypothetical(16)


@pytest.fixture
def loopback(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubOnLoopback]:
    with running(storage=True) as served:
        monkeypatch.setenv("HF_ENDPOINT", served.url)
        yield served


def moved(served: HubOnLoopback) -> int:
    return sum(seen.sent for seen in served.downloads())


def both(name: str) -> dict[str, bytes]:
    return {f"{name}-{quant}.gguf": file_of(named(name), quant) for quant in ("Q4_K_M", "Q8_0")}


def test_each_quantization_is_known_before_any_download(loopback: HubOnLoopback) -> None:
    loopback.add("somebody/Llama-8B-GGUF", both("llama-3.1-8b"), downloads=5)
    loopback.add("somebody/MoE-30B-GGUF", both("qwen3-30b-a3b"), downloads=9)
    loopback.add("somebody/other", {"x.gguf": b"x"})
    loopback.add("somebody/Nothing-GGUF", {"README.md": b"x"})
    moe, dense = searching.search("gguf", HERE, 10)
    assert (moe.repo, dense.repo) == ("somebody/MoE-30B-GGUF", "somebody/Llama-8B-GGUF"), "the most downloaded first"
    assert (dense.architecture, dense.context_length, dense.basis) == ("llama", 131072, "header")
    assert dense.params_b == pytest.approx(8.03, rel=0.03)
    assert moe.active_params_b == pytest.approx(3.3, rel=0.1)
    assert [each.quantization for each in dense.variants] == ["Q4_K_M", "Q8_0"]
    small, large = (each.plan for each in dense.variants)
    assert small.memory.kv_cache_bytes == 1024 * MIB, "the header's own dimensions"
    assert small.memory.weights_bytes < large.memory.weights_bytes
    assert small.decode_tps is not None
    assert large.decode_tps is not None
    assert small.decode_tps.mid > large.decode_tps.mid
    assert (small.fits, moe.variants[1].plan.fits) == (True, False)
    assert dense.best in {"Q4_K_M", "Q8_0"}


def test_little_is_moved_and_nothing_twice(loopback: HubOnLoopback) -> None:
    loopback.add("somebody/MoE-30B-GGUF", both("qwen3-30b-a3b"))
    first = searching.search("moe", HERE, 5)
    assert len(loopback.downloads()) == 1
    assert moved(loopback) <= 128 * KIB
    assert searching.search("moe", HERE, 5) == first
    assert len(loopback.downloads()) == 1, "the beginning is kept by commit"


def test_a_model_of_the_catalog_needs_no_header(loopback: HubOnLoopback) -> None:
    known = catalog.resolve_name("qwen3-4b")
    assert known is not None
    loopback.add(known.repo, {"Qwen3-4B-Q4_K_M.gguf": file_of(named("qwen3-4b"), "Q4_K_M")})
    (found,) = searching.search("qwen3 4b", HERE, 5)
    assert (found.model, found.repo, found.basis) == ("qwen3-4b", known.repo, "catalog")
    assert not loopback.downloads()


def test_a_gated_one_is_marked_and_known_by_its_size(loopback: HubOnLoopback) -> None:
    loopback.add("somebody/Gated-GGUF", both("llama-3.1-8b"), gated=True, token="hf_x")
    (found,) = searching.search("gated", HERE, 5)
    assert (found.gated, found.basis, len(found.variants)) == (True, "size", 2)
    assert not loopback.downloads()


def test_the_projector_counts(loopback: HubOnLoopback) -> None:
    files = both("llama-3.1-8b")
    loopback.add("somebody/Plain-GGUF", files)
    loopback.add("somebody/Vision-GGUF", {**files, "mmproj-F16.gguf": b"\0" * 1_000_000})
    plain, vision = (searching.search(name, HERE, 1)[0].variants[0].plan for name in ("plain", "vision"))
    assert vision.memory.total_bytes - plain.memory.total_bytes == 1_000_000


NO_MODELS = [
    b"no model",
    b"GGUF" + b"\xff" * 100,
    b"GGUF\3\0\0\0" + b"\0" * 16,
    gguf_bytes({"general.architecture": "flux"}),
]


@pytest.mark.parametrize("content", NO_MODELS)
def test_a_file_that_is_no_model_still_has_its_size_and_is_not_advised(
    loopback: HubOnLoopback, content: bytes, in_process: Any
) -> None:
    loopback.add("somebody/Broken-GGUF", {"m-Q4_K_M.gguf": content})
    (found,) = searching.search("broken", HERE, 5)
    assert (found.basis, found.variants[0].size_bytes) == ("size", len(content))
    assert found.failure
    shown = in_process("search", "broken")
    assert shown.returncode == 0
    assert f"! {found.failure[:30]}" in shown.stdout
    assert "Q4_K_M" in shown.stdout
    assert "Next:" not in shown.stdout


def test_names_that_are_none_are_left_out(loopback: HubOnLoopback) -> None:
    names = ["../../etc/passwd", "a/b/c", "\x1b[2J/evil", "", "no-owner", None, 7, "-x/y", "somebody/\u202eevil"]
    loopback.hits = [{"id": name, "downloads": "many", "likes": -1, "gated": {}} for name in names]
    loopback.add("somebody/Good-GGUF", both("smollm2-135m"))
    (found,) = searching.search("good", HERE, 20)
    assert found.repo == "somebody/Good-GGUF"


def test_one_that_fails_does_not_hide_the_others(loopback: HubOnLoopback) -> None:
    loopback.hits = [{"id": "somebody/Gone-GGUF", "downloads": 7}]
    loopback.add("somebody/Good-GGUF", both("smollm2-135m"))
    gone, good = searching.search("good", HERE, 20)
    assert gone.failure is not None
    assert "does not exist" in gone.failure
    assert gone.variants == ()
    assert good.failure is None


def test_one_that_never_answers_is_left_behind(loopback: HubOnLoopback, monkeypatch: pytest.MonkeyPatch) -> None:
    loopback.add("somebody/Slow-GGUF", both("smollm2-135m"))
    monkeypatch.setattr(searching, "SECONDS", 0.3)
    loopback.listing_faults = [loopback.fault(hang_at=0)]
    (found,) = searching.search("slow", HERE, 5)
    assert found.failure == "it did not answer in time"


@pytest.mark.parametrize("answer", [{"a": 1}, "text", [1, 2], [{"no": "id"}], None])
def test_nonsense_is_a_network_error(loopback: HubOnLoopback, answer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hub_on_loopback._Handler.found", lambda self, query: self.send_json(answer))
    with pytest.raises(NetworkError):
        searching.search("x", HERE, 5)


@pytest.mark.parametrize("query", ["", "   ", "a\x00b", "x" * 300])
def test_a_query_that_is_none(query: str) -> None:
    with pytest.raises(UsageError):
        searching.search(query, HERE, 5)


# ------------------------------------------------------------------------------------------ the beginning of a file


@pytest.mark.parametrize("name", ["llama-3.1-8b", "qwen3-30b-a3b", "gemma-3-27b", "deepseek-v2-lite", "qwen3.5-4b"])
def test_the_beginning_tells_the_dimensions(name: str) -> None:
    content = file_of(named(name), "Q4_K_M")
    whole = gguf.parse(ranges._Kept("whole", content.size, bytes(bytes.__getitem__(content, slice(None)))))
    beginning = bytes(bytes.__getitem__(content, slice(0, ranges.BEGINNING)))
    found = shapes.shape_of_beginning(gguf.parse_beginning(ranges._Kept("part", len(beginning), beginning)), 10**10)
    true = shapes.shape(whole)
    for part in ("n_layers", "kv_heads", "key_length", "vocab_size", "context_length", "sliding_layers", "latent_kv"):
        assert getattr(found, part) == getattr(true, part), part


@given(st.binary(max_size=400), st.booleans())
def test_any_beginning_is_a_header_or_an_error(content: bytes, magic: bool) -> None:
    data = (b"GGUF\3\0\0\0" if magic else b"") + content
    try:
        found = gguf.parse_beginning(ranges._Kept("x", len(data), data))
    except EngineError:
        return
    assert found.tensors == ()


# ---------------------------------------------------------------------------------------------------- the command


def test_the_command(loopback: HubOnLoopback, in_process: Any) -> None:
    loopback.add("somebody/Small-GGUF", both("smollm2-135m"), downloads=12_345)
    loopback.add("somebody/Gated-GGUF", both("smollm2-135m"), gated=True, token="hf_x")
    shown = json.loads(in_process("search", "gguf", "--json").stdout)
    assert (shown["schema_version"], shown["query"]) == (1, "gguf")
    small = next(each for each in shown["models"] if each["repo"] == "somebody/Small-GGUF")
    assert {"total_bytes", "kv_cache_bytes"} <= set(small["variants"][0]["fit"]["memory"])
    assert small["variants"][0]["fit"]["fits"] is True
    done = in_process("search", "small", "gguf")
    assert done.returncode == 0
    assert "12.3k downloads" in done.stdout
    assert "Q8_0" in done.stdout
    assert "localai pull somebody/Small-GGUF" in done.stdout
    assert "gated" in in_process("search", "gated").stdout
    assert len(json.loads(in_process("search", "gguf", "-n", "1", "--json").stdout)["models"]) == 1
    assert in_process("search", "no-such-thing").returncode == 3
    assert in_process("search", " ").returncode == 2


def test_the_command_offline(loopback: HubOnLoopback, in_process: Any) -> None:
    done = in_process("--offline", "search", "qwen")
    assert (done.returncode, done.stdout) == (5, "")
    assert not loopback.requests()
    assert json.loads(in_process("--offline", "search", "qwen", "--json").stdout)["error"]["exit_code"] == 5


def test_a_hub_out_of_reach_is_told_at_once_and_one_that_stumbles_is_asked_again(
    loopback: HubOnLoopback, in_process: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = in_process("search", "qwen", env={"HF_ENDPOINT": CLOSED_PORT})
    assert refused.returncode == 5
    assert "Connection refused" in refused.stderr.splitlines()[0]
    statuses = iter((503, 404))
    monkeypatch.setattr(
        "hub_on_loopback._Handler.found", lambda self, query: self.refuse(next(statuses), "", retry_after="0")
    )
    told: list[str] = []
    with pytest.raises(NetworkError, match="no sensible answer about the search"):
        searching.search("x", HERE, 5, told.append)
    assert len(told) == 1
    assert "503" in told[0]
