"""Presets: the built-in ones are whole in both languages, the user's own are kept safely, inputs are not templates."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest
from conftest import Cli
from hypothesis import given
from hypothesis import strategies as st

from localai import answer_schema, presets
from localai.errors import NotFound, UsageError

BUILT_IN = ("basic", "correct", "document-analyst", "invoice", "keywords", "pro", "summarize", "translate")
MINIMAL = '[text.en]\nuser = "Say {word}: {input}"\nrequired = ["word"]\n'


def test_the_built_in_presets_are_there_in_english_and_french() -> None:
    found = presets.every()
    assert tuple(each.name for each in found) == BUILT_IN
    for each in found:
        assert tuple(each.texts) == ("en", "fr")
        english, french = each.texts["en"], each.texts["fr"]
        assert english.description
        assert french.description
        assert english.system != french.system
        assert set(english.variables) == set(french.variables)
        assert english.required == french.required
        assert each.sampling["temperature"] <= 0.3
        if each.schema:
            answer_schema.from_text(each.schema, each.name)


@pytest.mark.parametrize("language", ["en", "fr"])
@pytest.mark.parametrize("name", BUILT_IN)
def test_no_placeholder_is_left(name: str, language: str) -> None:
    preset = presets.find(name)
    text = preset.text(language)
    filled = presets.fill(preset, text, dict.fromkeys(text.required, "VALUE"), "THE INPUT")
    assert "THE INPUT" in filled.user
    assert "{" not in filled.user + (filled.system or "")
    for required in text.required:
        assert "VALUE" in filled.user + (filled.system or ""), required


@given(st.text(max_size=40), st.text(max_size=40))
def test_what_is_put_in_is_never_looked_through(value: str, content: str) -> None:
    preset = presets._parse("mine", '[text.en]\nuser = "<{word}|{input}>"\nrequired = ["word"]\n', None)
    filled = presets.fill(preset, preset.text("en"), {"word": value + "{input}"}, content + "{word}{0}{{")
    assert filled.user == f"<{value}{{input}}|{content}{{word}}{{0}}{{{{>"


def test_an_input_that_the_texts_do_not_mention_follows_them() -> None:
    preset = presets._parse("mine", '[text.en]\nuser = "Be brief."\n', None)
    assert presets.fill(preset, preset.text(), {}, "Why?").user == "Be brief.\n\nWhy?"


def test_the_locale_chooses_the_language() -> None:
    preset = presets.find("summarize")
    assert preset.text(None, {"LANG": "fr_FR.UTF-8"}).language == "fr"
    assert preset.text(None, {"LC_ALL": "de_DE", "LANG": "fr_FR"}).language == "en"
    assert preset.text("fr", {"LANG": "en_GB"}).language == "fr"
    for word in ("FR", "fr_FR", "French", "français"):
        assert preset.text(word, {"LANG": "en_GB"}).language == "fr"
    for word in ("de", "German", "nonsense"):
        with pytest.raises(UsageError):
            preset.text(word)


def test_variables_are_checked() -> None:
    preset = presets.find("translate")
    with pytest.raises(UsageError, match="needs language"):
        presets.fill(preset, preset.text("en"), {}, "hi")
    with pytest.raises(UsageError, match="no variable 'tone'"):
        presets.fill(preset, preset.text("en"), {"language": "French", "tone": "x"}, "hi")
    assert "into French" in presets.fill(preset, preset.text("en"), {"LANGUAGE": "French"}, "hi").user
    with pytest.raises(UsageError):
        presets.given_variables(["language"])
    assert presets.given_variables(["a=b=c", "d="]) == {"a": "b=c", "d": ""}


def test_nearest_names_are_offered() -> None:
    with pytest.raises(NotFound) as caught:
        presets.find("sumarise")
    assert "summarize" in caught.value.hint


@pytest.mark.parametrize("name", ["../evil", "/tmp/evil", "Evil", "e vil", "", ".", "a" * 65, "con:", "x\n"])
def test_a_name_that_could_write_elsewhere_is_refused(name: str, isolated: Path) -> None:
    with pytest.raises(UsageError):
        presets.create(name, MINIMAL)
    with pytest.raises(NotFound):
        presets.remove(name)
    assert not list(isolated.rglob("*.toml"))


def test_a_preset_of_ones_own_is_private_and_stands_in_for_a_built_in_one() -> None:
    before = os.umask(0)
    try:
        path = presets.create("summarize", MINIMAL)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert presets.find("summarize").source == "user"
    with pytest.raises(UsageError, match="already"):
        presets.create("summarize", MINIMAL)
    presets.remove("summarize")
    assert presets.find("summarize").source == "built-in"
    with pytest.raises(UsageError, match="built in"):
        presets.remove("summarize")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "not toml [",
        "text = 3",
        "[text.en]\nuser = 3",
        "[text.en]\nuser = '{nobody}'",
        "[text.en]\nuser = 'x'\nsurprise = 1",
        "[text.en]\nuser = 'x'\nrequired = ['input']",
        "[text.en]\nuser = 'x'\n[sampling]\ntemperature = 99",
        "[text.en]\nuser = 'x'\n[sampling]\nseed = 1",
        "schema = 3\n[text.en]\nuser = 'x'",
        "[text.'../x']\nuser = 'x'",
    ],
)
def test_a_damaged_preset_is_told_and_the_others_stay(text: str) -> None:
    with pytest.raises(UsageError):
        presets.create("mine", text)
    folder = presets.folder()
    folder.mkdir(parents=True)
    (folder / "mine.toml").write_text(text)
    damaged: list[str] = []
    assert len(presets.every(damaged.append)) == len(BUILT_IN)
    assert "mine.toml" in damaged[0]
    with pytest.raises(UsageError):
        presets.find("mine")
    presets.remove("mine")


def test_the_commands(in_process: Cli) -> None:
    listed = json.loads(in_process("presets", "list", "--json", env={"LANG": "fr_FR.UTF-8", "LC_ALL": ""}).stdout)
    assert [each["name"] for each in listed["presets"]] == list(BUILT_IN)
    assert {each["language"] for each in listed["presets"]} == {"fr"}
    made = in_process("presets", "new", "mine", "--from", "translate")
    assert made.returncode == 0
    shown = json.loads(in_process("presets", "show", "mine", "--json", "--language", "en").stdout)
    assert (shown["source"], shown["required"]) == ("user", ["language"])
    assert "{language}" in shown["system"]
    assert in_process("presets", "edit", "nobodys", env={"EDITOR": "", "VISUAL": ""}).returncode == 3
    edited = in_process("presets", "edit", "mine", env={"EDITOR": "", "VISUAL": ""})
    assert edited.returncode == 2
    assert "terminal" in edited.stderr
    edited = in_process("presets", "edit", "mine", env={"EDITOR": "sed -i s/translate/render/"})  # needs no terminal
    assert edited.returncode == 0
    assert "You render into" in in_process("presets", "show", "mine", "--language", "English").stdout
    assert in_process("presets", "rm", "mine").returncode == 2
    removed = in_process("presets", "rm", "mine", "--yes", "--json")
    assert json.loads(removed.stdout)["removed"] == "mine"
    assert in_process("presets", "show", "mine").returncode == 3


def test_one_that_cannot_be_removed_is_told(cli: Cli, bound_by_permissions: list[str]) -> None:
    path = presets.create("mine", MINIMAL)
    path.parent.chmod(0o500)
    told = cli("presets", "rm", "mine", "--yes", under=bound_by_permissions)
    path.parent.chmod(0o700)
    assert told.returncode == 1
    assert told.stderr.startswith(f"error: cannot remove {path}: ")
    assert "Traceback" not in told.stderr


def test_the_starter_is_a_preset(in_process: Cli) -> None:
    assert in_process("presets", "new", "mine").returncode == 0
    assert "{tone}" in in_process("presets", "show", "mine").stdout


def test_run_with_a_preset(cli: Cli, in_process: Cli) -> None:
    missing = in_process("run", "--preset", "translate", "hi")
    assert missing.returncode == 2
    assert "language" in missing.stderr
    unknown = in_process("run", "--preset", "sumarize", "hi")
    assert unknown.returncode == 3
    assert "summarize" in unknown.stderr
    assert in_process("run", "--var", "a=b", "hi").returncode == 2
    words = ("run", "-m", "smollm2-135m", "--preset", "keywords", "--language", "fr")
    told = cli(*words, input="Le chat dort dans le jardin de la maison rouge, {input}.", timeout=120)
    assert told.returncode == 0, told.stderr
    words = json.loads(told.stdout)
    assert all(isinstance(word, str) for word in words)
