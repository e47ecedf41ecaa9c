"""`show` of models on the Hub: what it moves, what it says, and what it does where the Hub is not there."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import random_models
import typer
from conftest import CLOSED_PORT
from gguf_files import Typed, gguf_bytes, size_of
from hub_on_loopback import COMMIT, Fault, HubOnLoopback, running
from model_headers import Model, metadata, named, tensors
from remote_models import Sparse, file_of, vocabulary
from small_models import model_bytes, projector_bytes

from localai import cards, gguf, hub, library, loading, pulling, ranges, remote, shapes
from localai.commands import models
from localai.domain.files import RemoteFile
from localai.domain.units import MIB
from localai.errors import AccessDenied, EngineError, NetworkError, NotFound, UsageError
from localai.machines import hypothetical

REPO = "somebody/Some-GGUF"


@pytest.fixture
def loopback(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubOnLoopback]:
    monkeypatch.setattr(cards.hardware, "detect", lambda: hypothetical(64))  # the real one's free memory changes
    with running(storage=True) as served:
        monkeypatch.setenv("HF_ENDPOINT", served.url)
        yield served


def small(quantization: str = "Q4_K_M") -> Sparse:
    return file_of(named("smollm2-135m"), quantization)


def shards(model: Model, count: int) -> dict[str, Sparse]:
    """A model in Q8_0 with a vocabulary and as many merges, in so many files."""
    table, files = tensors(model, "Q8_0"), {}
    for number in range(count):
        part = table[number * len(table) // count : (number + 1) * len(table) // count]
        facts = {"split.no": number, "split.count": count, "split.tensors.count": len(table)}
        tokens = vocabulary(model.vocabulary)
        words = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.tokens": tokens, "tokenizer.ggml.merges": tokens}
        facts = {**metadata(model), **words, **facts} if number == 0 else facts
        header = gguf_bytes(facts, part, data=False)
        size = len(header) + sum(-(-size_of(kind, dims) // 32) * 32 for _, kind, dims in part)
        files[f"Some-Q8_0-{number + 1:05}-of-{count:05}.gguf"] = Sparse(header, size)
    return files


def moved(hub_server: HubOnLoopback) -> int:
    return sum(seen.sent for seen in hub_server.downloads())


# ------------------------------------------------------------------------------------------------------- the service


def test_a_30b_model_is_known_from_its_header_alone(loopback: HubOnLoopback) -> None:
    model = named("qwen3-30b-a3b")
    loopback.add(REPO, {"Some-Q4_K_M.gguf": file_of(model, "Q4_K_M"), "Some-Q8_0.gguf": file_of(model, "Q8_0")})
    card = cards.card(REPO, context=8192)
    requests = loopback.downloads()
    assert moved(loopback) < 16 * MIB
    assert len(requests) <= 5
    assert {seen.path.rpartition("/")[2] for seen in requests} == {"Some-Q4_K_M.gguf"}, "one header says it all"
    assert (card.basis, card.source, card.architecture) == ("header", "hub", "qwen3moe")
    for variant, quantization in zip(card.variants, ("Q4_K_M", "Q8_0"), strict=True):
        exact = sum(size_of(kind, dims) for _, kind, dims in tensors(model, quantization))
        assert variant.quantization == quantization
        assert variant.plan is not None
        assert variant.plan.memory.weights_bytes == pytest.approx(exact, rel=1e-4)
        assert variant.plan.memory.kv_cache_bytes == 768 * MIB


def test_the_model_that_is_built_in_is_not_hashed_for_another(loopback: HubOnLoopback, monkeypatch: Any) -> None:
    loopback.add(REPO, {"Some-Q4_K_M.gguf": small()})
    monkeypatch.setattr(library.embedded, "find", lambda: pytest.fail("100 MB are hashed at the first time"))
    assert cards.card(REPO).basis == "header"


def test_asking_again_reads_nothing_again(loopback: HubOnLoopback) -> None:
    loopback.add(REPO, {"Some-Q4_K_M.gguf": small()})
    first = cards.card(REPO)
    seen = len(loopback.downloads())
    assert cards.card(REPO) == first
    assert len(loopback.downloads()) == seen
    loopback.repos[REPO].replace({"Some-Q4_K_M.gguf": small("Q8_0")}, "f" * 40)
    assert cards.card(REPO).variants[0].size_bytes != first.variants[0].size_bytes
    assert len(loopback.downloads()) > seen


def test_a_damaged_copy_is_fetched_anew(loopback: HubOnLoopback, isolated: Path) -> None:
    loopback.add(REPO, {"Some-Q4_K_M.gguf": small()})
    first = cards.card(REPO)
    (kept,) = (isolated / "localai" / "cache" / "headers").iterdir()
    kept.write_bytes(kept.read_bytes()[:1000])
    assert cards.card(REPO) == first


def test_one_file_has_its_fit_at_the_top(loopback: HubOnLoopback) -> None:
    loopback.add(REPO, {"Some-Q4_K_M.gguf": small(), "Some-Q8_0.gguf": small("Q8_0")})
    card = cards.card(f"{REPO}:q8_0", context=2048)
    assert [each.quantization for each in card.variants] == ["Q8_0"]
    assert card.plan is not None
    assert card.plan.memory.weights_bytes == sum(
        size_of(kind, dims) for _, kind, dims in tensors(named("smollm2-135m"), "Q8_0")
    )
    with pytest.raises(NotFound) as caught:
        cards.card(f"{REPO}:q2_k")
    assert "Q4_K_M, Q8_0" in caught.value.hint


def test_every_shard_is_read(loopback: HubOnLoopback) -> None:
    files = shards(named("smollm2-135m"), 3)
    loopback.add(REPO, {f"big/{name}": file for name, file in files.items()})
    card = cards.card(REPO)
    assert card.variants[0].size_bytes == sum(map(len, files.values()))
    assert card.plan is not None
    table = tensors(named("smollm2-135m"), "Q8_0")
    assert card.plan.memory.weights_bytes == sum(size_of(kind, dims) for _, kind, dims in table)
    assert len(loopback.downloads()) == 4, "the first has a vocabulary"
    assert moved(loopback) < 3 * MIB


def test_a_large_model_in_many_shards_moves_little(loopback: HubOnLoopback) -> None:
    model, count = named("qwen3-235b-a22b"), 6
    table = tensors(model, "Q8_0")
    loopback.add(REPO, shards(model, count))
    card = cards.card(REPO, 8192)
    assert card.plan is not None
    assert card.plan.memory.weights_bytes == sum(size_of(kind, dims) for _, kind, dims in table)
    assert (card.plan.fits, moved(loopback) < 16 * MIB, len(loopback.downloads()) <= 5 + count) == (False, True, True)


def test_a_projector_is_part_of_the_card(loopback: HubOnLoopback) -> None:
    loopback.add(REPO, {"Some-Q4_K_M.gguf": small(), "mmproj-F16.gguf": b"\0" * 3_000_000})
    card = cards.card(REPO)
    assert card.projector_bytes == 3_000_000
    assert card.plan is not None
    assert card.plan.memory.projector_bytes == 3_000_000
    assert {seen.path.rpartition("/")[2] for seen in loopback.downloads()} == {"Some-Q4_K_M.gguf"}


def test_what_is_asked_for_is_what_is_told(loopback: HubOnLoopback, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a context of the user's own an f16 cache and 512 at a time stay, though less would fit; and that is said."""
    monkeypatch.setattr(cards.hardware, "detect", lambda: hypothetical(9))
    loopback.add(REPO, {"Some-Q4_K_M.gguf": file_of(named("llama-3.1-8b"), "Q4_K_M")})
    card = cards.card(REPO, context=16384)
    assert card.plan is not None
    assert (card.plan.fits, card.plan.kv_type, card.plan.ubatch) == (False, "f16", 512)
    assert card.plan.memory.kv_cache_bytes == 2048 * MIB
    assert card.instead is not None
    assert card.instead.context is not None
    fitting = cards.card(REPO, context=card.instead.context).plan
    assert fitting is not None
    assert fitting.fits, "what is offered fits when it is asked for"


def test_what_is_installed_is_shown_with_what_else_there_is(loopback: HubOnLoopback, monkeypatch: Any) -> None:
    model, eye = model_bytes("one", **{"general.file_type": 7}), projector_bytes()
    loopback.add(REPO, {"m-Q4_0.gguf": model_bytes("other"), "m-Q8_0.gguf": model, "mmproj-F16.gguf": eye})
    plan = pulling.plan_pull(f"{REPO}:q8_0", hypothetical(64))
    assert plan.plan is not None
    assert plan.plan.memory.projector_bytes == len(eye)
    pulling.pull(plan)
    card = cards.card(REPO)
    assert [(each.quantization, each.installed) for each in card.variants] == [("Q8_0", True), ("Q4_0", False)]
    assert all(each.plan and each.plan.memory.projector_bytes for each in card.variants)
    assert (card.commit, card.variants[0].size_bytes) == (COMMIT, len(model))
    pulling.pull(pulling.plan_pull(f"{REPO}:q4_0", hypothetical(64)))
    monkeypatch.setenv("HF_ENDPOINT", CLOSED_PORT)
    assert {(each.quantization, each.installed) for each in cards.card(REPO).variants} == {
        ("Q8_0", True),
        ("Q4_0", True),
    }


def test_a_model_in_shards_is_whole_by_the_path_of_any(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cards.hardware, "detect", lambda: hypothetical(64))
    first = random_models.write(tmp_path, random_models.TINY["plain"], shards=3)
    whole = cards.card(str(first))
    assert whole.plan is not None
    header = gguf.read_model(sorted(tmp_path.glob("*.gguf")))
    assert whole.plan.memory.weights_bytes == shapes.weights(header).total_bytes
    assert whole.variants[0].size_bytes == header.file_size
    second = first.with_name(first.name.replace("00001-of", "00002-of"))
    assert cards.card(str(second)) == whole
    second.unlink()
    with pytest.raises(EngineError, match="3 shards, but 2 are here"):
        cards.card(str(first))


def test_an_alias_of_a_file_that_is_gone(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(model_bytes())
    library.keep_alias("mine", str(tmp_path / "m.gguf"))
    (tmp_path / "m.gguf").unlink()
    with pytest.raises(NotFound, match="there is no file"):
        cards.card("mine")


def test_a_cache_that_the_model_cannot_have_is_refused(tmp_path: Path) -> None:
    path = random_models.write(tmp_path, random_models.TINY["plain"])  # heads of 16: half a block
    with pytest.raises(UsageError, match="blocks of 32"):
        cards.card(str(path), kv_type="q8_0")
    with pytest.raises(UsageError, match="blocks of 32"):
        loading.prepare(library.find(str(path)), loading.LoadOptions(kv_type="q4_0"))
    assert cards.card(str(path), kv_type="bf16").plan is not None


def test_the_shape_and_weights_of_one_file(loopback: HubOnLoopback, tmp_path: Path) -> None:
    content = small()
    loopback.add(REPO, {"Some-Q4_K_M.gguf": content})
    found = hub.repository(REPO)
    path = tmp_path / "same.gguf"
    path.write_bytes(bytes.__getitem__(content, slice(None)))
    with path.open("r+b") as stream:
        stream.truncate(content.size)
    header = gguf.read_header(path)
    assert remote.remote_shape(REPO, found.commit, found.files) == (shapes.shape(header), shapes.weights(header))


def test_the_token_goes_to_the_hub_only(loopback: HubOnLoopback, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    loopback.add(REPO, {"Some-Q4_K_M.gguf": small()}, token="hf_secret")
    cards.card(REPO)
    assert loopback.storage is not None
    assert {seen.authorization for seen in loopback.requests() if "/resolve/" in seen.path} == {"Bearer hf_secret"}
    assert {seen.authorization for seen in loopback.storage.requests()} == {None}


@pytest.mark.parametrize(
    "fault", [{"drop_at": 70_000}, {"status": 503}, {"ignore_range": True, "times": 9}, {"reset": True, "drop_at": 9}]
)
def test_a_hitch_is_overcome(loopback: HubOnLoopback, fault: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranges.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(ranges, "WINDOWS", (1 << 16, 1 << 20))
    loopback.add(REPO, {"Some-Q4_K_M.gguf": small()})
    loopback.fault(**fault)
    assert cards.card(REPO).params_b == pytest.approx(0.1345, abs=0.001)


@pytest.mark.parametrize("fault", [{"status": 503}, {"content_range": "bytes 5-9/10"}, {"hang_at": 0, "status": 500}])
def test_a_hub_that_stays_broken_is_said_so(
    loopback: HubOnLoopback, fault: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranges.time, "sleep", lambda seconds: None)
    loopback.add(REPO, {"Some-Q4_K_M.gguf": small()})
    loopback.fault(times=99, **fault)
    with pytest.raises(NetworkError):
        cards.card(REPO)


@pytest.mark.parametrize("where", ["the list", "the bytes"])
def test_that_the_hub_is_asked_again_is_told(
    loopback: HubOnLoopback, where: str, in_process: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranges.time, "sleep", lambda seconds: None)
    loopback.add(REPO, {"Some-Q4_K_M.gguf": small()})
    if where == "the list":
        loopback.listing_faults = [Fault(status=503, retry_after="0")]
    else:
        loopback.fault(status=503, retry_after="0")
    done = in_process("show", REPO, "--json")
    assert (done.returncode, json.loads(done.stdout)["basis"]) == (0, "header")
    assert "503" in done.stderr
    assert "asking again in 0.0 s" in done.stderr


def test_the_shards_of_a_model_are_read_at_the_same_time(loopback: HubOnLoopback) -> None:
    """Each request waits until all the shards' are there; one that fails is told of, whichever it is."""
    files = shards(named("smollm2-135m"), 3)
    loopback.add(REPO, files)
    assert loopback.storage is not None
    gates = [loopback.fault(gate=threading.Event()) for _ in files]

    def open_gates() -> None:
        assert loopback.storage is not None
        if loopback.storage.wait_for_requests(len(files)):
            for gate in gates:
                assert gate.gate is not None
                gate.gate.set()

    opener = threading.Thread(target=open_gates)
    opener.start()
    assert cards.card(REPO).params_b == pytest.approx(0.1345, abs=0.001)
    opener.join()
    second = list(files)[1]
    loopback.add("somebody/Broken-GGUF", {**files, second: b"no model at all" * 100})
    with pytest.raises(EngineError, match="00002-of-00003"):
        cards.card("somebody/Broken-GGUF")


@pytest.mark.parametrize(("kind", "each"), [("gpt2", 41), ("llama", 25)])
def test_how_long_a_header_will_be_is_seen_from_its_vocabulary(kind: str, each: int) -> None:
    facts = {"tokenizer.ggml.model": kind, "tokenizer.ggml.tokens": vocabulary(100_000)}
    content = gguf_bytes(facts)
    at = content.index(b"tokenizer.ggml.tokens")
    assert ranges.expected_bytes(content[:1000]) == at + each * 100_000
    assert ranges.expected_bytes(content[: at + 30]) == 0, "the count is cut off"
    assert ranges.expected_bytes(gguf_bytes({**facts, "tokenizer.ggml.model": "new"})[:1000]) == 0
    absurd = Typed(9, (8).to_bytes(4, "little") + b"\xff" * 8)
    assert ranges.expected_bytes(gguf_bytes({**facts, "tokenizer.ggml.tokens": absurd})) <= 16 * MIB
    merges = gguf_bytes({**facts, "tokenizer.ggml.merges": vocabulary(50_000)})
    at = merges.index(b"tokenizer.ggml.merges")
    assert ranges.expected_bytes(merges[: at + 1000]) == at + 18 * 50_000, "the last of them tell best"


def test_a_hostile_header_costs_little(loopback: HubOnLoopback, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranges, "FETCH_LIMIT", 4 * MIB)
    far = Typed(8, (60 * MIB).to_bytes(8, "little"))  # a string of 60 MiB, whose end would have to be read
    loopback.add(REPO, {"Some-Q4_K_M.gguf": Sparse(gguf_bytes({"a": far}), 10**11)})
    with pytest.raises(EngineError):
        cards.card(REPO)
    assert moved(loopback) <= 5 * MIB
    loopback.add(REPO, {"Some-Q4_K_M.gguf": b"no model at all" * 100})
    with pytest.raises(EngineError):
        cards.card(REPO)


def test_what_is_kept_stays_under_its_limit(loopback: HubOnLoopback, isolated: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(ranges, "CACHE_LIMIT", 3 * MIB)
    folder = isolated / "localai" / "cache" / "headers"
    for number in range(4):
        loopback.add(f"{REPO}-{number}", {"Some-Q4_K_M.gguf": small()})
        cards.card(f"{REPO}-{number}")
    assert 0 < sum(each.stat().st_size for each in folder.iterdir()) <= 3 * MIB


def test_a_gated_repository_says_so(loopback: HubOnLoopback) -> None:
    loopback.add(REPO, {"Some-Q4_K_M.gguf": small()}, gated=True, token="hf_other")
    with pytest.raises(AccessDenied, match="gated"):
        cards.card(REPO)
    assert not loopback.downloads()


def test_a_repository_without_models(loopback: HubOnLoopback) -> None:
    loopback.add(REPO, {"README.md": b"nothing"})
    with pytest.raises(NotFound, match="no GGUF"):
        cards.card(REPO)
    with pytest.raises(NotFound):
        cards.card("nobody/nothing")


def test_a_catalog_model_is_read_where_the_hub_is_there(loopback: HubOnLoopback) -> None:
    repo = cards.catalog.resolve_name("qwen3-4b")
    assert repo is not None
    loopback.add(repo.repo, {"Qwen3-4B-Q4_K_M.gguf": file_of(named("qwen3-4b"), "Q4_K_M")})
    card = cards.card("qwen3-4b")
    assert (card.basis, card.model, card.warning) == ("header", "qwen3-4b", None)
    assert card.license == "Apache-2.0"


def test_a_catalog_model_that_the_hub_does_not_have_is_told_from_the_catalog(loopback: HubOnLoopback) -> None:
    """A Hub of one's own has some models; what is known of the others is known all the same."""
    card = cards.card("qwen3-4b", 8192)
    assert card.basis == "catalog"
    assert card.warning is not None
    assert "does not exist" in card.warning
    assert card.plan is not None
    for asked_for in ("Qwen/Qwen3-4B-GGUF", "qwen3-4b@v9"):
        with pytest.raises(NotFound):
            cards.card(asked_for)


def test_a_catalog_model_without_the_hub_is_told_from_the_catalog() -> None:
    card = cards.card("qwen3-4b")
    assert card.basis == "catalog"
    assert card.warning is not None
    assert "cannot reach" in card.warning
    assert len(card.variants) > 1
    with pytest.raises(NetworkError):
        cards.card("nobody/nothing")


@pytest.mark.parametrize("name", [model.id for model in cards.catalog.load() if model.shape is None])
def test_a_model_whose_dimensions_nobody_gives_has_cautious_ones(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cards.hardware, "detect", lambda: hypothetical(64))
    card = cards.card(name)
    assert card.basis == "catalog"
    assert all(each.plan and each.plan.fits for each in card.variants)


def test_the_cache_type_and_the_context_are_planned_with(loopback: HubOnLoopback) -> None:
    loopback.add(REPO, {"Some-Q4_K_M.gguf": small()})
    wide, narrow = cards.card(REPO, 4096), cards.card(REPO, 4096, "q8_0")
    assert wide.plan is not None
    assert narrow.plan is not None
    assert narrow.plan.memory.kv_cache_bytes == wide.plan.memory.kv_cache_bytes // 2 * 34 // 32


def test_a_name_from_the_hub_is_never_a_path(loopback: HubOnLoopback, isolated: Path) -> None:
    found = RemoteFile("a/../../b c\u202e.gguf", 1, None)
    path = ranges._kept_path(REPO, "f" * 40, found.name)
    assert path.parent == isolated / "localai" / "cache" / "headers"
    assert path.name.isascii()


# -------------------------------------------------------------------------------------------------------- the command


def test_the_command(loopback: HubOnLoopback, in_process: Any) -> None:
    loopback.add(REPO, {"Some-Q4_K_M.gguf": small(), "Some-Q8_0.gguf": small("Q8_0")})
    done = in_process("show", REPO, "--context", "2048", "--json")
    shown = json.loads(done.stdout)
    assert (done.returncode, shown["schema_version"], shown["best"]) == (0, 1, "Q8_0")
    assert shown["fit"] == shown["variants"][1]["fit"], "of a repository, that of what pull takes"
    assert [set(each) >= {"quantization", "file", "size_bytes", "fit"} for each in shown["variants"]] == [True, True]
    one = json.loads(in_process("show", f"{REPO}:Q4_K_M", "--context", "2048", "--json").stdout)
    assert one["fit"]["memory"]["kv_cache_bytes"] == 23040 * 2048
    narrow = json.loads(
        in_process("show", f"{REPO}:Q4_K_M", "--context", "2048", "--kv-type", "Q8_0", "--json").stdout
    )["fit"]
    parts = ("weights_bytes", "kv_cache_bytes", "compute_bytes", "projector_bytes")
    assert narrow["memory"]["kv_cache_bytes"] == 23040 * 2048 // 2 * 34 // 32
    assert narrow["memory"]["total_bytes"] == sum(narrow["memory"][part] for part in parts)
    assert (narrow["fits"], narrow["kv_type"], narrow["cpu_expert_layers"]) == (True, "q8_0", 0)
    assert all(narrow[speed]["low"] < narrow[speed]["mid"] for speed in ("decode_tps", "prompt_tps"))
    assert in_process("show", REPO, "--check").returncode == 0
    loopback.add("somebody/Huge-GGUF", {"Huge-F16.gguf": file_of(named("qwen3-235b-a22b"), "F16")})
    refused = in_process("show", "somebody/Huge-GGUF", "--check")
    assert (refused.returncode, "Instead: " in refused.stdout) == (4, True)
    text = in_process("show", REPO).stdout
    assert f"Speeds are predicted ({narrow['decode_tps']['basis']})." in text
    assert "Q8_0" in text
    assert f"localai pull {REPO}\n" in text
    assert f"localai pull {REPO}:q8_0\n" in in_process("show", f"{REPO}:q8_0").stdout


def test_the_command_offline_and_its_exit_codes(in_process: Any) -> None:
    done = in_process("--offline", "show", "qwen3-4b")
    assert done.returncode == 0
    assert "warning: looking up" in done.stderr
    assert in_process("--offline", "show", REPO).returncode == 5
    assert in_process("show", REPO, "--kv-type", "q9").returncode == 2
    assert (
        in_process("--offline", "show", "qwen3-235b-a22b-2507:q4_k_m", "--context", "262144", "--check").returncode == 4
    )


def test_a_model_for_embeddings_is_told_by_how_fast_it_reads(cli: Any) -> None:
    fit = json.loads(cli("--offline", "show", "bge-m3:q8_0", "--json").stdout)["fit"]
    shown = cli("--offline", "show", "bge-m3:q8_0").stdout
    assert "READS/S" in shown
    assert f"{fit['prompt_tps']['low']:.0f}-{fit['prompt_tps']['high']:.0f}" in shown
    assert "READS/S" not in cli("--offline", "show", "qwen3-4b").stdout


def test_check_is_about_the_file_that_is_here(monkeypatch: pytest.MonkeyPatch) -> None:
    card = cards.card("smollm2-135m")
    shown, *others = card.variants
    assert shown.plan is not None
    assert any(each.plan and each.plan.fits for each in others)
    refused = replace(card, variants=(replace(shown, plan=replace(shown.plan, fits=False)), *others))
    monkeypatch.setattr(cards, "card", lambda *_: refused)
    with pytest.raises(typer.Exit) as ended:
        models.show("smollm2-135m", check=True)
    assert ended.value.exit_code == 4
