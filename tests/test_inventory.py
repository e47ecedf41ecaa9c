"""What `list` tells: parameters and fit without reading headers again, and rows that can be read at any width."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path

import pytest
from conftest import Cli
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from installed_models import machine
from small_models import model_bytes

from localai import discovering, gguf, importing, inventory, library, records, render
from localai.commands import models as commands
from localai.domain.files import InstalledModel

pytestmark = pytest.mark.usefixtures("no_embedded")


@pytest.fixture
def model(tmp_path: Path) -> InstalledModel:
    (tmp_path / "m-Q4_0.gguf").write_bytes(model_bytes())
    (made,) = importing.take(discovering.discover_path(tmp_path / "m-Q4_0.gguf"))
    assert isinstance(made, InstalledModel)
    return made


def test_facts_are_read_once(model: InstalledModel, monkeypatch: pytest.MonkeyPatch) -> None:
    (entry,) = inventory.entries(library.installed(), machine())
    assert entry.plan is not None
    assert entry.plan.fits
    monkeypatch.setattr(gguf, "read_model", lambda paths: pytest.fail("read again"))
    assert inventory.entries([model], machine()) == (entry,)


def test_facts_of_other_bytes_are_not_believed(model: InstalledModel) -> None:
    before = inventory.facts_of(model)
    model.path.write_bytes(model_bytes("other", **{"llama.block_count": 4}))
    (changed,) = importing.take(discovering.discover_path(model.path))
    assert isinstance(changed, InstalledModel)
    after = inventory.facts_of(changed)
    assert before is not None
    assert after is not None
    assert (before.shape.n_layers, after.shape.n_layers) == (2, 4)


def test_a_model_whose_header_cannot_be_read_is_listed_all_the_same(model: InstalledModel) -> None:
    model.path.write_bytes(bytes(len(model_bytes())))
    next(records.folder().glob("*.facts")).unlink()
    (entry,) = inventory.entries(library.installed(), machine())
    assert (entry.facts, entry.plan, entry.params_b) == (None, None, None)
    assert "?" in commands.table([entry], 80)


def test_without_a_place_to_keep_facts_they_are_read_each_time(
    model: InstalledModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    next(records.folder().glob("*.facts")).unlink()

    def read_only(*_: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(records.settings, "write_atomically", read_only)
    for _ in range(2):
        assert inventory.facts_of(model) is not None


@hypothesis_settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(data=st.data())
def test_damaged_facts_are_read_anew(model: InstalledModel, data: st.DataObject) -> None:
    path = next(records.folder().glob("*.facts"))
    kept = json.loads(path.read_text())
    part = data.draw(st.sampled_from(["shape", "weights"]))
    name = data.draw(st.sampled_from(sorted(kept[part])))
    kept[part][name] = data.draw(st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=3) | st.just([None]))
    path.write_text(json.dumps(kept))
    inventory.entries([model], machine())
    path.unlink()
    records.keep_facts(model, {"shape": [], "weights": 7})
    assert inventory.facts_of(model) is not None


def test_rows_fit_eighty_columns_and_names_stay_whole(model: InstalledModel) -> None:
    facts = inventory.facts_of(model)
    names = ["short", "unsloth/Qwen3-Coder-30B-A3B-Instruct-GGUF", "模型/名字" * 12, "evil\x1b[2J\nname"]
    entries = []
    for name in names:
        made = InstalledModel(name, None, None, "UD-Q4_K_XL", model.files, None, None, "llama.cpp")
        entries.append(inventory.Entry(made, facts, inventory.entries([model], machine())[0].plan))
    text = commands.table(entries, 80)
    assert "\x1b" not in text
    lines = text.splitlines()
    for name in names[:3]:
        assert any(line.split()[0] == name for line in lines)
    assert all(len(line) <= 80 for line in lines if "UD-Q4_K_XL" in line)
    assert len({line.index("UD-Q4_K_XL") for line in lines if "UD-Q4_K_XL" in line}) == 1


@pytest.mark.parametrize(
    ("billions", "text"), [(0.1345, "134M"), (0.9999, "1B"), (7.615, "7.62B"), (235.0, "235B"), (None, "?")]
)
def test_parameters_as_models_are_named(billions: float | None, text: str) -> None:
    assert commands.params(billions) == text


def test_rm_asks_which_one_is_meant(in_process: Cli, tmp_path: Path) -> None:
    for quant, number in (("Q4_0", 1), ("Q8_0", 2)):
        (tmp_path / f"m-{quant}.gguf").write_bytes(model_bytes(str(number)))
        list(importing.take(discovering.discover_path(tmp_path / f"m-{quant}.gguf")))
    asked = in_process("rm", "m", "--yes")
    assert asked.returncode == 2
    assert "localai rm m:Q4_0, or m:Q8_0" in asked.stderr
    removed = in_process("rm", "m:q8_0", "--yes", "--json")
    assert json.loads(removed.stdout)["removed"]["quantization"] == "Q8_0"
    assert in_process("rm", "m").returncode == 2  # nobody to ask
    assert [model.quantization for model in library.installed()] == ["Q4_0"]


@pytest.mark.skipif(not hasattr(time, "tzset"), reason="POSIX sets the zone of a process")
@pytest.mark.parametrize(
    ("zone", "moment"), [("UTC", "2026-11-23 22:30"), ("XST-14", "2026-11-24 12:30"), ("XST+9", "2026-11-23 13:30")]
)
def test_a_moment_is_told_by_the_users_clock(zone: str, moment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("TZ", zone)
        time.tzset()
        assert render.local_time("2026-11-23T22:30:00.123456Z") == moment
    time.tzset()
    assert render.local_time("+999999-01-01T00:00:00Z") == "+999999-01-01T00"


def test_kept_facts_are_what_was_read(model: InstalledModel) -> None:
    kept, read = inventory.facts_of(model), inventory.read_facts(model)
    assert kept is not None
    assert asdict(kept) == asdict(read)
