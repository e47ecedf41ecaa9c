"""The models on this disk, and how they get there: names, pulls that are cut off, removal."""

from __future__ import annotations

import hashlib
import random
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_on_loopback import COMMIT, QUICK, HubOnLoopback, running
from installed_models import install, machine

from localai import hub_cache, library, naming, partial, pulling, removing, settings
from localai.domain.files import InstalledModel
from localai.errors import AccessDenied, DoesNotFit, HashMismatch, LocalaiError, NetworkError, NotFound, UsageError

pytestmark = pytest.mark.usefixtures("no_embedded")

REPO = "Qwen/Qwen3-0.6B-GGUF"
NAME = "Qwen3-0.6B-Q8_0.gguf"
CONTENT = b"GGUF" + random.Random(1).randbytes(2_000_000)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubOnLoopback]:
    with running() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        server.add(REPO, {NAME: CONTENT, "README.md": b"hi"}, sha256={"README.md": None})
        yield server


def pull(text: str) -> InstalledModel:
    return pulling.pull(pulling.plan_pull(text, machine()), retry=QUICK)


# ---------------------------------------------------------------------------------------------------------- pulling


def test_a_pull_ends_in_a_verified_listed_model(hub: HubOnLoopback) -> None:
    plan = pulling.plan_pull("qwen3-0.6b", machine())
    assert (plan.model, plan.repo, plan.commit, plan.variant.quantization) == ("qwen3-0.6b", REPO, COMMIT, "Q8_0")
    assert (plan.download_bytes, plan.already_bytes) == (len(CONTENT), 0)
    assert plan.plan is not None
    assert "Q8_0" in plan.why
    told: list[int] = []
    model = pulling.pull(plan, told.append)
    assert told[-1] == len(CONTENT)
    assert library.installed() == (model,)
    assert model.path.read_bytes() == CONTENT
    assert model.path == hub_cache.pointer_path(REPO, COMMIT, NAME)
    assert (model.model, model.repo, model.commit, model.source) == ("qwen3-0.6b", REPO, COMMIT, "hub")
    assert model.files[0].sha256 == hashlib.sha256(CONTENT).hexdigest()


@pytest.mark.parametrize(
    "text", ["qwen3-0.6b", "qwen3:0.6b", REPO, f"{REPO}:q8_0", f"hf.co/{REPO}:{NAME}", f"{REPO}@{COMMIT}"]
)
def test_an_installed_model_is_not_asked_for_again(hub: HubOnLoopback, text: str) -> None:
    model = pull("qwen3-0.6b")
    before = len(hub.requests())
    plan = pulling.plan_pull(text, machine())
    assert plan.already_installed == model
    assert pulling.pull(plan) == model
    assert len(hub.requests()) == before


def test_a_flipped_bit_is_not_listed_and_the_next_pull_mends_it(hub: HubOnLoopback) -> None:
    hub.fault(flip_at=1_000_000)
    with pytest.raises(HashMismatch):
        pull("qwen3-0.6b")
    assert library.installed() == ()
    assert pull("qwen3-0.6b").path.read_bytes() == CONTENT


CHILD = """
import sys
sys.path.insert(0, sys.argv[1])
from installed_models import machine
from localai import pulling
pulling.pull(pulling.plan_pull("qwen3-0.6b", machine()))
"""


def child() -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", CHILD, str(Path(__file__).parent)], stderr=subprocess.PIPE)


def test_killed_half_way_the_next_pull_fetches_the_rest_only(hub: HubOnLoopback) -> None:
    half = len(CONTENT) // 2
    hub.fault(hang_at=half)
    part = partial.partial_path(hub_cache.blob_path(REPO, hashlib.sha256(CONTENT).hexdigest()))
    pause = threading.Event()
    with child() as process:
        while not (part.exists() and part.stat().st_size == half):
            assert process.poll() is None
            pause.wait(0.01)
        process.send_signal(signal.SIGKILL)
    assert library.installed() == ()
    plan = pulling.plan_pull("qwen3-0.6b", machine())
    assert plan.already_bytes == half
    assert pulling.pull(plan).path.read_bytes() == CONTENT
    assert [seen.range for seen in hub.downloads()] == [None, f"bytes={half}-"]
    assert [seen.sent for seen in hub.downloads()][1] == len(CONTENT) - half


def test_two_pulls_at_once_make_one_good_file(hub: HubOnLoopback) -> None:
    gate = threading.Event()
    hub.fault(gate=gate)
    with child() as first, child() as second:
        pause = threading.Event()
        while len([seen for seen in hub.requests() if seen.path.startswith("/api/")]) < 2:
            pause.wait(0.01)
        gate.set()
        assert [first.wait(), second.wait()] == [0, 0]
    assert [model.path.read_bytes() for model in library.installed()] == [CONTENT]
    assert len(hub.downloads()) == 1


def test_what_another_tool_has_downloaded_is_hashed_and_not_fetched(hub: HubOnLoopback) -> None:
    blob = hub_cache.blob_path(REPO, hashlib.sha256(CONTENT).hexdigest())
    blob.parent.mkdir(parents=True)
    blob.write_bytes(CONTENT)
    plan = pulling.plan_pull("qwen3-0.6b", machine())
    assert plan.already_bytes == plan.download_bytes
    assert pulling.pull(plan).path.read_bytes() == CONTENT
    assert hub.downloads() == []


def test_shards_and_projector_come_together(hub: HubOnLoopback) -> None:
    shards = {f"big-Q4_K_M-0000{index}-of-00002.gguf": CONTENT[: 500_000 * index] for index in (1, 2)}
    hub.add("o/big-GGUF", {**shards, "mmproj-big-F16.gguf": CONTENT[:1000], "mmproj-big-F32.gguf": CONTENT[:2000]})
    model = pull("o/big-GGUF")
    assert [file.name for file in model.files] == sorted(shards)
    assert [file.path.read_bytes() for file in model.files] == list(shards.values())
    assert model.projector is not None
    assert model.projector.name == "mmproj-big-F16.gguf"
    assert (model.model, model.size_bytes) == ("o/big-GGUF", 1_501_000)
    assert removing.remove(model) == 1_501_000
    assert library.installed() == ()


def test_a_chosen_quantization_or_file(hub: HubOnLoopback) -> None:
    hub.add(
        "o/m", {"m-Q4_0.gguf": b"four", "m-Q8_0.gguf": b"eight", "sub/m-Q8_0.gguf": b"other", "m-Q2_K.gguf": b"two"}
    )
    assert pulling.plan_pull("o/m:q8_0", machine()).files[0].name == "m-Q8_0.gguf"
    assert pulling.plan_pull("o/m:sub/m-Q8_0.gguf", machine()).files[0].name == "sub/m-Q8_0.gguf"
    assert any("under 4 bits" in each for each in pulling.plan_pull("o/m:Q2_K", machine()).warnings)
    with pytest.raises(NotFound, match="has no Q6_K") as caught:
        pulling.plan_pull("o/m:Q6_K", machine())
    assert "Q4_0" in caught.value.hint
    with pytest.raises(NotFound) as caught:
        pulling.plan_pull("qwen3-0.6b:q4_k_m", machine())
    assert "localai pull unsloth/Qwen3-0.6B-GGUF:q4_k_m" in caught.value.hint


def test_ambiguous_files_are_asked_for_by_name(hub: HubOnLoopback) -> None:
    hub.add("o/m", {"a-Q8_0.gguf": b"1", "b-Q8_0.gguf": b"2"})
    with pytest.raises(NotFound, match="2 files"):
        pulling.plan_pull("o/m:q8_0", machine())


def test_what_does_not_fit_the_memory_is_in_the_plan(hub: HubOnLoopback) -> None:
    plan = pulling.plan_pull("qwen3-0.6b", machine(0.1))
    assert plan.plan is not None
    assert not plan.plan.fits


def test_a_disk_that_is_too_small(hub: HubOnLoopback, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(DoesNotFit) as caught:
        pulling.plan_pull("qwen3-0.6b", machine())
    assert caught.value.exit_code == 4
    assert hub.downloads() == []


def test_a_file_without_a_hash_is_refused(hub: HubOnLoopback) -> None:
    hub.add("o/m", {"m-Q4_0.gguf": b"1"}, sha256={"m-Q4_0.gguf": None})
    with pytest.raises(HashMismatch, match="no SHA-256"):
        pulling.plan_pull("o/m", machine())


def test_a_gated_repository(hub: HubOnLoopback, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add("o/m", {"m-Q4_0.gguf": b"1"}, gated=True, token="hf_right")
    with pytest.raises(AccessDenied, match="gated"):
        pull("o/m")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(AccessDenied, match="gated"):
        pull("o/m")
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    assert pull("o/m").path.read_bytes() == b"1"


@pytest.mark.parametrize(("text", "error"), [("o/none", NotFound), ("nosuch", NotFound), ("./x.gguf", UsageError)])
def test_what_cannot_be_pulled(hub: HubOnLoopback, text: str, error: type[LocalaiError]) -> None:
    with pytest.raises(error) as caught:
        pulling.plan_pull(text, machine())
    assert caught.value.hint


def test_a_repository_without_models(hub: HubOnLoopback) -> None:
    hub.add("o/m", {"model.safetensors": b"1"})
    with pytest.raises(NotFound, match="no GGUF"):
        pulling.plan_pull("o/m", machine())


def test_offline_and_without_a_hub(hub: HubOnLoopback, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = pulling.plan_pull("qwen3-0.6b", machine())
    monkeypatch.setenv("LOCALAI_OFFLINE", "1")
    with pytest.raises(NetworkError, match="offline"):
        pulling.plan_pull("qwen3-0.6b", machine())
    with pytest.raises(NetworkError, match="offline"):
        pulling.pull(plan)
    assert hub.downloads() == []


def test_a_hostile_name_writes_nothing(hub: HubOnLoopback, isolated: Path) -> None:
    hub.add("o/m", {"../../../../evil-Q4_0.gguf": b"1"})
    with pytest.raises(NetworkError, match="not safe"):
        pull("o/m")
    assert list(isolated.rglob("*evil*")) == []


# ------------------------------------------------------------------------------------------------- listing, finding


def test_only_whole_models_are_listed() -> None:
    changed, gone, whole = install("changed"), install("gone"), install("whole")
    changed.path.write_bytes(b"")
    gone.path.unlink()
    told: list[str] = []
    assert library.installed(told.append) == (whole,)
    assert len(told) == 1
    assert "changed" in told[0]


def test_finding_by_name_alias_repository_and_path() -> None:
    model = install("qwen3-0.6b", "Q8_0", repo=REPO)
    for text in (
        "qwen3-0.6b",
        "QWEN3-0.6B",
        "qwen3:0.6b",
        "qwen3:0.6b:q8_0",
        REPO,
        REPO.lower(),
        f"{REPO}:Q8_0",
        str(model.path),
    ):
        found = library.find(text)
        assert (found.model, found.path, found.name, found.why) == (model, model.path, "qwen3-0.6b", None), text


def test_a_file_of_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my model:1.gguf").write_bytes(b"GGUF")
    monkeypatch.chdir(tmp_path)
    for text in ("my model:1.gguf", "./my model:1.gguf", str(tmp_path / "my model:1.gguf")):
        found = library.find(text)
        assert (found.model, found.path, found.name) == (None, tmp_path / "my model:1.gguf", "my model:1")
    with pytest.raises(NotFound):
        library.find("./none.gguf")


def test_of_several_quantizations_the_last_used_else_the_largest() -> None:
    small, large = install("qwen3-0.6b", "Q4_0", 5), install("qwen3-0.6b", "Q8_0", 9)
    assert library.find("qwen3-0.6b").model == large
    library.touch(small)
    found = library.find("qwen3-0.6b")
    assert found.path == small.path
    assert "last one used" in (found.why or "")
    assert library.find("qwen3-0.6b:q8_0").model == large


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("qwen3-4b", "localai pull qwen3-4b"),
        ("llama3.2:3b", "localai pull llama3.2:3b"),
        ("owner/repo:q4_0", "localai pull owner/repo:q4_0"),
        ("my-modle", "my-model"),
        ("qwen3-4bb", "qwen3-4b"),
    ],
)
def test_what_is_not_installed_says_what_to_do(text: str, hint: str) -> None:
    install("my-model")
    with pytest.raises(NotFound) as caught:
        library.find(text)
    assert caught.value.exit_code == 3
    assert hint in caught.value.hint


def test_a_quantization_that_is_not_installed() -> None:
    install("qwen3-4b", "Q8_0")
    with pytest.raises(NotFound, match="is here as Q8_0"):
        library.find("qwen3-4b:q4_0")


@pytest.mark.parametrize("name", ["gemini-nano", "deepseek-v3"])
def test_models_that_cannot_be_had_say_why(name: str) -> None:
    with pytest.raises(NotFound) as caught:
        library.find(name)
    assert len(caught.value.message) > 30


def test_no_name_means_the_configured_the_last_used_or_the_best(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NotFound, match="no model is installed"):
        library.find()
    small = install("small", size=5)
    assert "only one" in (library.find().why or "")
    large = install("large", size=9)
    found = library.find()
    assert found.model == large
    assert "largest" in (found.why or "")
    library.touch(small)
    assert library.find().path == small.path
    settings.store("model", "large")
    assert library.find().model == large
    assert "default" in (library.find().why or "")
    monkeypatch.setenv("LOCALAI_MODEL", "nosuch")
    with pytest.raises(NotFound, match="LOCALAI_MODEL"):
        library.find()


def test_listing_and_removing_import_no_hub_client() -> None:
    install("a")
    script = (
        "import sys; from localai import library, removing; removing.remove(library.find('a').model);"
        "print('huggingface_hub' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


# --------------------------------------------------------------------------------------------------------- removing


def test_removing_frees_the_blob(hub: HubOnLoopback) -> None:
    model = pull("qwen3-0.6b")
    blob = model.path.resolve()
    assert removing.remove(model) == len(CONTENT)
    assert not blob.exists()
    assert library.installed() == ()
    assert pull("qwen3-0.6b").path.read_bytes() == CONTENT


def test_a_projector_that_another_model_needs_stays(hub: HubOnLoopback) -> None:
    hub.add("o/m", {"m-Q4_0.gguf": b"four", "m-Q8_0.gguf": b"eight", "mmproj-F16.gguf": b"eyes"})
    small, large = pull("o/m:q4_0"), pull("o/m:q8_0")
    assert removing.remove(small) == 4
    assert library.installed() == (large,)
    assert removing.remove(large) == 9


def test_a_file_that_is_only_recorded_stays() -> None:
    model = install("mine")
    assert removing.remove(model) == 0
    assert model.path.exists()
    assert library.installed() == ()


def test_meaning_keeps_the_longest_known_name() -> None:
    wanted = library.meaning("llama3.2:3b:q8_0@main")
    assert (wanted.selector, wanted.revision) == ("q8_0", "main")
    assert wanted.known is not None
    assert library.meaning("gemma3:12b").selector is None
    assert library.meaning("qwen3-4b@main:q8_0").selector == "q8_0"
    assert naming.parse("gemma3:12b").selector == "12b"


@pytest.mark.parametrize(
    ("text", "model", "selector"),
    [
        ("llama3.2:1b-instruct-q4_K_M", "llama-3.2-1b", "q4_K_M"),
        ("qwen3:4b-q8_0", "qwen3-4b", "q8_0"),
        ("qwen3:4b-instruct-2507-q4_K_M", "qwen3-4b-2507", "q4_K_M"),
        ("qwen3:4b-thinking-2507-fp16", "qwen3-4b-thinking-2507", "fp16"),
        ("gemma3:12b-it-qat", "gemma-3-12b", None),
        ("llama3.1:8b-instruct", "llama-3.1-8b", None),
        ("llama3.2:q8_0", "llama-3.2-3b", "q8_0"),
        ("qwen3-4b:8b-q4.gguf", "qwen3-4b", "8b-q4.gguf"),
    ],
)
def test_ollamas_tags_are_understood(text: str, model: str, selector: str | None) -> None:
    wanted = library.meaning(text)
    assert (wanted.model, wanted.selector) == (model, selector)


@pytest.mark.parametrize(
    "text",
    ["llama3.2:7b", "qwen3:1.5b-q4_K_M", "llama3.2:7b:q8_0", "llama3.1:8b-base", "qwen3:30b-a3b-thinking-2507-q4_K_M"],
)
def test_another_size_or_kind_is_not_taken_for_the_usual_one(text: str) -> None:
    assert library.meaning(text).known is None
    with pytest.raises(NotFound, match="there is no model") as told:
        pulling.plan_pull(text, machine())
    assert "did you mean" in told.value.hint
