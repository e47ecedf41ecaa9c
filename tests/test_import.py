"""Models that are on this disk already are taken in whole and verified, or not at all; nothing is ever moved."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from conftest import Cli
from small_models import hub_snapshot, model_bytes, ollama_store, projector_bytes, sha256, shard_bytes

from localai import boundary, catalog, copies, discovering, importing, library, records, removing
from localai.copies import How
from localai.domain.files import InstalledModel
from localai.errors import DoesNotFit, LocalaiError, NotFound, UsageError
from localai.foreign.found import LeftOut
from localai.importing import Duplicate

pytestmark = pytest.mark.usefixtures("no_embedded")

LIBRARY = "registry.ollama.ai/library"
COMMIT = "c0ffee0123456789c0ffee0123456789c0ffee01"


@pytest.fixture
def shelf(tmp_path: Path) -> Path:
    folder = tmp_path / "shelf"
    folder.mkdir()
    return folder


def taken(path: Path, how: How = How.REFERENCE, name: str | None = None) -> list[importing.Outcome]:
    return list(importing.take(discovering.discover_path(path, name), how))


def model_of(outcome: object) -> InstalledModel:
    assert isinstance(outcome, InstalledModel)
    return outcome


def tree(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_by_reference_hashed_and_listed(shelf: Path) -> None:
    path = shelf / "Mein Modell-Q4_0.gguf"
    path.write_bytes(model_bytes())
    model = model_of(taken(path)[0])
    assert (model.model, model.quantization, model.source, model.repo) == ("Mein Modell", "Q4_0", "file", None)
    assert (model.path, model.files[0].sha256) == (path, sha256(model_bytes()))
    assert library.installed() == (model,)
    assert library.find("mein modell").model == model
    assert library.find("Mein Modell:q4_0").model == model
    assert removing.remove(model) == 0
    assert path.exists()


@pytest.mark.parametrize("how", [How.COPY, How.LINK])
def test_a_copy_and_a_link_are_removed_with_the_model(shelf: Path, how: How) -> None:
    (shelf / "m-Q4_0.gguf").write_bytes(model_bytes())
    before = tree(shelf)
    model = model_of(taken(shelf, how)[0])
    assert copies.is_ours(model.path)
    assert model.path.read_bytes() == model_bytes()
    assert removing.remove(model) == (len(model_bytes()) if how is How.COPY else 0)
    assert list(copies.everything()) == []
    assert tree(shelf) == before


def test_a_link_across_disks_is_symbolic(shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def across(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", across)
    (shelf / "m-Q4_0.gguf").write_bytes(model_bytes())
    model = model_of(taken(shelf, How.LINK)[0])
    assert model.path.is_symlink()
    assert removing.remove(model) == 0
    assert (shelf / "m-Q4_0.gguf").exists()


def test_a_folder_with_shards_projectors_and_what_is_no_model(shelf: Path) -> None:
    for number in (1, 2):
        (shelf / f"big-Q4_0-0000{number}-of-00002.gguf").write_bytes(shard_bytes(number - 1))
    (shelf / "vision").mkdir()
    (shelf / "vision" / "sees-Q8_0.gguf").write_bytes(model_bytes("sees"))
    (shelf / "vision" / "mmproj-other-f16.gguf").write_bytes(projector_bytes(999))
    (shelf / "vision" / "mmproj-sees-f16.gguf").write_bytes(projector_bytes())
    (shelf / "not-Q4_0.gguf").write_bytes(b"GGUF no")
    outcomes = taken(shelf, How.COPY)
    discovery = discovering.discover_path(shelf)
    assert [each.path.name for each in discovery.left_out] == ["not-Q4_0.gguf"]
    big, sees = (model_of(each) for each in outcomes)
    assert [file.path.parent for file in big.files] == [big.path.parent] * 2
    assert sees.projector is not None
    assert sees.projector.name == "mmproj-sees-f16.gguf"


def test_one_shard_stands_for_all(shelf: Path) -> None:
    for number in (1, 2):
        (shelf / f"big-Q4_0-0000{number}-of-00002.gguf").write_bytes(shard_bytes(number - 1))
    assert len(model_of(taken(shelf / "big-Q4_0-00002-of-00002.gguf")[0]).files) == 2


def test_a_name_of_the_users(shelf: Path) -> None:
    (shelf / "m-Q4_0.gguf").write_bytes(model_bytes())
    assert model_of(taken(shelf, name="mine")[0]).model == "mine"
    (shelf / "n-Q4_0.gguf").write_bytes(model_bytes("n"))
    with pytest.raises(UsageError):
        taken(shelf, name="mine")
    with pytest.raises(UsageError):
        taken(shelf / "n-Q4_0.gguf", name="../x")


@pytest.mark.parametrize("name", ["mmproj-x.gguf", "x-00001-of-00003.gguf", "note.txt", "damaged-Q4_0.gguf"])
def test_what_cannot_be_imported_says_why(shelf: Path, name: str) -> None:
    content = {"mmproj-x.gguf": projector_bytes(), "x-00001-of-00003.gguf": shard_bytes(0, 3)}.get(name, b"hello")
    (shelf / name).write_bytes(content)
    with pytest.raises(LocalaiError) as caught:
        taken(shelf / name)
    assert caught.value.hint
    assert library.installed() == ()


def test_what_is_not_there() -> None:
    with pytest.raises(NotFound):
        discovering.discover_path(Path("none"))
    with pytest.raises(UsageError, match="winamp") as caught:
        discovering.discover_tools(["winamp"])
    assert "ollama, lmstudio" in caught.value.hint


def test_the_same_bytes_are_taken_once_and_the_cost_is_told(shelf: Path) -> None:
    (shelf / "a-Q4_0.gguf").write_bytes(model_bytes())
    (shelf / "b-Q4_0.gguf").write_bytes(model_bytes())
    os.link(shelf / "a-Q4_0.gguf", shelf / "c-Q4_0.gguf")
    preview = list(importing.preview(discovering.discover_path(shelf)))
    assert library.installed() == ()
    first, *others = taken(shelf)
    assert model_of(first).model == "a"
    costs = [each.costs_bytes for each in others if isinstance(each, Duplicate)]
    assert costs == [len(model_bytes()), 0]
    assert [each.costs_bytes for each in preview if isinstance(each, Duplicate)] == costs
    again = taken(shelf / "a-Q4_0.gguf")[0]
    assert isinstance(again, Duplicate)
    assert again.costs_bytes == 0


def test_from_ollama_with_the_catalogs_names(tmp_path: Path) -> None:
    root = ollama_store(
        tmp_path / "o",
        {f"{LIBRARY}/llama3.2/3b": model_bytes(), f"{LIBRARY}/mine/latest": model_bytes("m")},
        projector_bytes(),
    )
    before = tree(root)
    found = discovering.discover_tools(["ollama"], roots={"ollama": [root]})
    models = [model_of(each) for each in importing.take(found)]
    known = catalog.resolve_name("llama3.2:3b")
    assert known is not None
    assert {model.model for model in models} == {known.id, "mine"}
    assert all(model.source == "ollama" and model.projector for model in models)
    assert library.find("llama3.2:3b").model in models
    assert tree(root) == before


def test_a_damaged_blob_of_ollamas_is_left_out(tmp_path: Path) -> None:
    root = ollama_store(tmp_path / "o", {f"{LIBRARY}/mine/latest": model_bytes()})
    blob = root / "blobs" / f"sha256-{sha256(model_bytes())}"
    blob.write_bytes(model_bytes()[:-1] + b"x")
    (outcome,) = importing.take(discovering.discover_tools(["ollama"], roots={"ollama": [root]}))
    assert isinstance(outcome, LeftOut)
    assert "damaged" in outcome.reason
    assert library.installed() == ()


def test_from_the_hub_cache_by_reference_with_commit_and_hash(tmp_path: Path) -> None:
    snapshot = hub_snapshot(tmp_path / "hf" / "hub", "o/m-GGUF", COMMIT, {"m-Q4_0.gguf": model_bytes()})
    (model,) = (model_of(each) for each in importing.take(discovering.discover_tools(["hf"])))
    assert (model.repo, model.commit, model.source) == ("o/m-GGUF", COMMIT, "hf")
    assert library.find("o/m-GGUF:q4_0").model == model
    assert removing.remove(model) == 0  # what another program downloaded stays
    assert (snapshot / "m-Q4_0.gguf").exists()


def test_a_file_that_changes_while_it_is_read_is_left_out(shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = shelf / "m-Q4_0.gguf"
    path.write_bytes(model_bytes())

    def growing(file: Path, progress: object = None) -> str:
        with path.open("ab") as stream:
            stream.write(b"more")
        return "0" * 64

    monkeypatch.setattr(importing, "sha256_of", growing)
    (outcome,) = taken(path)
    assert isinstance(outcome, LeftOut)
    assert library.installed() == ()


def test_a_copy_that_does_not_fit_is_refused_before_the_first_byte(
    shelf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (shelf / "m-Q4_0.gguf").write_bytes(model_bytes())
    usage = copies.shutil.disk_usage("/")
    monkeypatch.setattr(copies.shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(DoesNotFit):
        taken(shelf, How.COPY)
    assert list(copies.everything()) == []


@pytest.mark.parametrize(
    "name", ["a\nb-Q4_0.gguf", "x" * 245 + "-Q4_0.gguf"[:5] + ".gguf", "con.gguf", "é\x1b[2J-Q4_0.gguf"]
)
def test_hostile_file_names_are_copied_under_safe_ones(shelf: Path, name: str) -> None:
    (shelf / name).write_bytes(model_bytes())
    model = model_of(taken(shelf / name, How.COPY)[0])
    assert model.path.name.isprintable()
    assert model.path.parent.parent == copies.folder()
    assert library.find(model.model).model == model


def test_discard_touches_nothing_of_others(shelf: Path) -> None:
    mine = shelf / "m"
    mine.write_bytes(b"x")
    for path in (mine, copies.folder() / ".." / ".." / "x"):
        with pytest.raises(UsageError):
            copies.discard(path)
    assert mine.exists()


def test_a_removal_that_was_cut_off_can_be_done_again(shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in (1, 2):
        (shelf / f"big-Q4_0-0000{number}-of-00002.gguf").write_bytes(shard_bytes(number - 1))
    model = model_of(taken(shelf, How.COPY)[0])
    discard = copies.discard

    def killed(path: Path) -> int:
        if path == model.files[1].path:
            raise KeyboardInterrupt
        return discard(path)

    with monkeypatch.context() as patched:
        patched.setattr(copies, "discard", killed)
        with pytest.raises(KeyboardInterrupt):
            removing.remove(model)
    assert library.installed() == ()
    assert library.to_remove("big") == model
    assert removing.remove(model) == model.files[1].size_bytes
    assert records.read_all() == ()
    assert list(copies.everything()) == []


def test_a_folder_that_may_not_be_read_is_told(shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def closed(path: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("localai.foreign.found.os.scandir", closed)
    found = discovering.discover_tools(["ollama", "hf"], roots={"ollama": [shelf], "hf": [shelf]})
    assert [each.path for each in found.left_out] == [shelf, shelf]
    assert "Permission denied" in found.left_out[0].reason


@pytest.fixture
def stores(tmp_path: Path, shelf: Path) -> dict[str, str]:
    """Every program's store with the same model, each in a home of its own."""
    home = tmp_path / "home"
    ollama_store(home / ".ollama/models", {f"{LIBRARY}/tiny/latest": model_bytes()})
    studio = home / ".lmstudio/models/pub/tiny-GGUF"
    studio.mkdir(parents=True)
    (studio / "tiny-Q4_0.gguf").write_bytes(model_bytes())
    flat = home / ".cache/llama.cpp"
    flat.mkdir(parents=True)
    (flat / "other-Q8_0.gguf").write_bytes(model_bytes("other"))
    return {"HOME": str(home), "OLLAMA_MODELS": str(home / ".ollama/models")}


def test_the_command_takes_all_programs_and_reports_duplicates(in_process: Cli, stores: dict[str, str]) -> None:
    dry = in_process("import", "--from", "all", "--dry-run", "--json", env=stores)
    assert dry.returncode == 0, dry.stderr
    plan = json.loads(dry.stdout)
    assert plan["dry_run"] is True
    assert {each["model"] for each in plan["candidates"]} == {"tiny", "other"}
    done = in_process("import", "--from", "all", "--json", env=stores)
    report = json.loads(done.stdout)
    assert {(each["model"], each["source"]) for each in report["imported"]} == {
        ("tiny", "ollama"),
        ("other", "llama.cpp"),
    }
    assert report["duplicate_bytes"] == len(model_bytes()) == plan["duplicate_bytes"]
    assert report["duplicates"][0]["same_as"] == "tiny"


@pytest.mark.parametrize("arguments", [[], ["x", "--from", "ollama"], ["x", "--link", "--copy"], ["--from", "winamp"]])
def test_wrong_usage_exits_2(in_process: Cli, arguments: list[str]) -> None:
    assert in_process("import", *arguments).returncode == 2


def test_the_command_by_hand(in_process: Cli, shelf: Path) -> None:
    (shelf / "evil\x1b[2J-Q4_0.gguf").write_bytes(model_bytes())
    assert in_process("import", str(shelf)).returncode == 0
    listed = json.loads(in_process("list", "--json").stdout)["models"]
    mine = next(each for each in listed if each["source"] == "file")
    assert mine["params_b"] == pytest.approx(0.0, abs=0.001)
    assert mine["fit"]["fits"] is True
    gone = in_process("rm", mine["model"], "--yes")
    assert gone.returncode == 0
    assert "stays where it is" in gone.stderr
    assert "\x1b" not in gone.stderr


def test_a_folder_of_models_that_are_here_needs_no_room(shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (shelf / "m-Q4_0.gguf").write_bytes(model_bytes())
    taken(shelf, How.COPY)
    usage = copies.shutil.disk_usage("/")
    monkeypatch.setattr(copies.shutil, "disk_usage", lambda path: usage._replace(free=1000))
    assert [type(each) for each in taken(shelf, How.COPY)] == [Duplicate]
    (shelf / "n-Q4_0.gguf").write_bytes(model_bytes("other"))  # as large, and new
    with pytest.raises(DoesNotFit):
        taken(shelf / "n-Q4_0.gguf", How.COPY)
    assert len(list(copies.everything())) == 1


@pytest.mark.parametrize("how", [How.COPY, How.LINK])
def test_a_model_held_by_reference_can_be_taken_in(shelf: Path, how: How) -> None:
    (shelf / "m-Q4_0.gguf").write_bytes(model_bytes())
    taken(shelf, name="mine")
    placed = model_of(taken(shelf, how)[0])
    assert (placed.model, copies.is_ours(placed.path)) == ("mine", True)
    assert library.installed() == (placed,)
    assert [type(each) for each in taken(shelf, how)] == [Duplicate]
    (shelf / "m-Q4_0.gguf").unlink()
    assert library.find("mine").path.read_bytes() == model_bytes()


def test_a_name_for_what_is_here_under_another_is_refused(shelf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (shelf / "m-Q4_0.gguf").write_bytes(model_bytes())
    taken(shelf)
    for more in ([], ["--dry-run"], ["--copy"]):
        code = boundary.run(["import", str(shelf), "--name", "mine", *more])
        assert code == (0 if more == ["--copy"] else 2)  # which takes it in anew, under that name
        assert ("localai alias mine m" in capsys.readouterr().err) == (code == 2)
    assert [model.model for model in library.installed()] == ["mine"]
