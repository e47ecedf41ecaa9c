"""Errors as a user meets them: two lines, an exit code, never a bare traceback."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Cli

from localai import boundary, errors


def leaves(kind: type[errors.LocalaiError]) -> list[type[errors.LocalaiError]]:
    return [kind, *(leaf for child in kind.__subclasses__() for leaf in leaves(child))]


@pytest.mark.parametrize("kind", leaves(errors.LocalaiError))
def test_every_error_has_its_code_and_hint(
    kind: type[errors.LocalaiError], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(arguments: object) -> int:
        raise kind("what happened", "what to do")

    monkeypatch.setattr(boundary, "invoke", fail)
    assert boundary.run(["list"]) == int(kind.exit_code)
    assert capsys.readouterr().err == "error: what happened\nhint: what to do\n"
    assert boundary.run(["list", "--json"]) == int(kind.exit_code)
    told = json.loads(capsys.readouterr().out)
    assert told["schema_version"] == 1
    assert told["error"] == {
        "code": kind.code,
        "exit_code": int(kind.exit_code),
        "message": "what happened",
        "hint": "what to do",
    }


def test_the_codes_are_the_documented_ones() -> None:
    readme = (Path(__file__).parent.parent / "README.md").read_text("utf-8")
    documented = {int(code) for row in re.findall(r"^\| ([\d /]+) \|", readme, re.M) for code in row.split(" / ")}
    assert documented == {int(code) for code in errors.ExitCode}


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(arguments: object) -> int:
        raise ZeroDivisionError("boom")

    monkeypatch.setattr(boundary, "invoke", fail)
    assert boundary.run(["list"]) == 1
    told = capsys.readouterr().err
    assert "Traceback" in told
    assert "boom" in told


@pytest.mark.parametrize(
    "arguments",
    [
        ("--nosuch",),
        ("nosuch",),
        ("run", "--temperature", "hot", "hi"),
        ("run", "--temperature", "-1", "hi"),
        ("run", "--output", "xml", "hi"),
        ("pull",),
        ("rm",),
        ("show",),
        ("recommend", "--vram", "8"),
        ("recommend", "--ram", "nan"),
        ("recommend", "--ram", "-3"),
        ("recommend", "--task", "chatt"),  # told before the machine is measured
        ("recommend", "--language", "klingon"),
        ("recommend", "--limit", "0"),
        ("import",),
        ("import", "/x", "--from", "all"),
        ("config", "nosuch"),
        ("run",),
        ("chat", "--seed", "x"),
    ],
    ids=" ".join,
)
def test_wrong_usage_is_two_lines_and_exit_2(in_process: Cli, arguments: tuple[str, ...]) -> None:
    result = in_process(*arguments)
    assert result.returncode == 2
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert lines[0].startswith("error: ")
    assert lines[1].startswith("hint: ")
    assert len(lines) == 2


@pytest.mark.parametrize(
    ("words", "message", "near"),
    [
        (("serch", "x"), "no such command 'serch'", "search"),
        (("list", "--jsn"), "no such option: --jsn", "--json"),
        (("presets", "lst"), "no such command 'lst'", "list"),
    ],
)
def test_what_is_nearly_right_is_offered(in_process: Cli, words: tuple[str, ...], message: str, near: str) -> None:
    said, hint = in_process(*words).stderr.splitlines()
    assert said == f"error: {message}"
    assert re.match(rf"hint: did you mean ([a-z-]+, )*{near}(, [a-z-]+)*\? localai .*--help shows the usage$", hint)


def test_wrong_usage_under_json_is_an_object(in_process: Cli) -> None:
    result = in_process("recommend", "--json", "--limit", "none")
    assert result.returncode == 2
    assert json.loads(result.stdout)["error"]["exit_code"] == 2
    assert result.stderr == ""


@pytest.mark.parametrize("words", [("-o", "ndjson"), ("--output=ndjson",)])
def test_an_error_among_events_is_a_line(cli: Cli, words: tuple[str, ...]) -> None:
    result = cli("run", *words, "-m", "nosuch", "hi")
    assert result.returncode == 3
    (line,) = result.stdout.splitlines()
    told = json.loads(line)
    assert told["event"] == "error"
    assert told["error"]["exit_code"] == 3


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["list", "--json"], True),
        (["run", "--output", "json", "hi"], True),
        (["run", "-o", "ndjson"], True),
        (["run", "--output=json"], True),
        (["run", "--output", "text"], False),
        (["run", "--", "--json"], False),
        (["run", "-ojson"], True),
        ([], False),
    ],
)
def test_json_is_seen_in_words_that_may_not_parse(words: list[str], expected: bool) -> None:
    assert boundary.wants_json(words) is expected


def test_switches_work_anywhere_but_after_the_dashes() -> None:
    assert boundary.hoist(["run", "--debug", "hi", "--", "--offline"]) == (
        ["run", "hi", "--", "--offline"],
        {"--debug"},
    )


def test_help_is_a_command_too(in_process: Cli) -> None:
    assert boundary.hoist(["help"])[0] == ["--help"]
    assert boundary.hoist(["help", "config", "set"])[0] == ["config", "set", "--help"]
    assert boundary.hoist(["run", "help"])[0] == ["run", "help"]
    assert boundary.hoist(["version"])[0] == ["--version"]
    assert in_process("help", "ps").stdout == in_process("ps", "--help").stdout
    assert in_process("help", "nosuch").returncode == 2


def test_resume_alone_means_the_last_conversation() -> None:
    assert boundary.hoist(["chat", "--resume"])[0] == ["chat", "--resume=last"]
    assert boundary.hoist(["chat", "--resume", "--private"])[0] == ["chat", "--resume=last", "--private"]
    for words in (["chat", "--resume", "3"], ["chat", "--", "--resume"], ["map", "x", "--resume"]):
        assert boundary.hoist(words)[0] == words


@pytest.mark.parametrize("arguments", [("--debug", "show", "nosuch"), ("show", "nosuch", "--debug")], ids=str)
def test_debug_shows_the_traceback_of_an_error(cli: Cli, arguments: tuple[str, ...]) -> None:
    result = cli(*arguments)
    assert result.returncode == 3
    assert "Traceback" in result.stderr
    assert "Traceback" not in cli("show", "nosuch").stderr


def test_version_imports_nothing(cli: Cli) -> None:
    assert cli("--version").stdout.startswith("localai 0.")
    script = (
        "import sys; before = set(sys.modules); sys.argv = ['localai', '--version']\n"
        "from localai.__main__ import main; main()\n"
        "assert not {m.split('.')[0] for m in set(sys.modules) - before} - {'localai', '__future__'}"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)


def test_without_a_terminal_a_bare_localai_is_the_help(cli: Cli) -> None:
    result = cli()
    assert result.returncode == 0
    assert result.stdout == cli("--help").stdout
    assert "recommend" in result.stdout


@pytest.mark.parametrize(
    "arguments", [("config", "list"), ("--help",), ("run", "--help"), ("--version",), ("list", "--json")], ids=" ".join
)
def test_a_closed_pipe_ends_quietly(cli: Cli, isolated: Path, arguments: tuple[str, ...]) -> None:
    read, write = os.pipe()
    os.close(read)
    process = subprocess.Popen(
        [sys.executable, "-m", "localai", *arguments], stdout=write, stderr=subprocess.PIPE, text=True
    )
    os.close(write)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 141
    assert told == ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize(
    "arguments", [("config", "list"), ("list", "--json"), ("run", "--help"), ("--version",)], ids=" ".join
)
def test_a_full_disk_under_stdout_is_told(cli: Cli, arguments: tuple[str, ...]) -> None:
    with open("/dev/full", "w") as full:
        process = subprocess.run(
            [sys.executable, "-m", "localai", *arguments], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert process.returncode == 1
    assert process.stderr.splitlines()[0] == "error: cannot write the output: No space left on device"
    assert "Traceback" not in process.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_under_stderr_changes_no_exit_code(cli: Cli) -> None:
    with open("/dev/full", "w") as full:
        process = subprocess.run([sys.executable, "-m", "localai", "show", "nosuch"], stdout=full, stderr=full)
    assert process.returncode == 3


@pytest.mark.parametrize("locale", ["C", "fr_FR.ISO-8859-1", "fr_FR.UTF-8", "nosuch"])
def test_any_locale_will_do(cli: Cli, locale: str) -> None:
    for arguments in (["--help"], ["config", "list"], ["show", "naïveté-\udce9"]):
        result = cli(*arguments, env={"LC_ALL": locale, "LANG": locale})
        assert "Traceback" not in result.stderr
        assert max(len(line) for line in result.stdout.splitlines() or [""]) <= 80


def test_help_fits_80_columns(in_process: Cli) -> None:
    for command in ("", "run", "chat", "pull", "recommend", "config", "config set", "show"):
        shown = in_process(*command.split(), "--help", env={"COLUMNS": "80"}).stdout
        assert max(len(line) for line in shown.splitlines()) <= 80
        assert "range>" not in shown  # a name says more than a type


@pytest.mark.parametrize("group", ["", "presets", "sessions", "config"])
def test_what_each_command_does_is_said_whole(in_process: Cli, group: str) -> None:
    shown = in_process(*group.split(), "--help", env={"COLUMNS": "80"}).stdout.partition("Commands:")[2]
    lines = [line for line in shown.splitlines() if line.startswith("  ") and not line.startswith("   ")]
    assert len(lines) > 4
    assert [line for line in lines if line.endswith("...")] == []


def test_reports_fit_80_columns(in_process: Cli) -> None:
    for command in (
        "hardware",
        "recommend --ram 64 --vram 24",
        "list",
        "show smollm2-135m",
        "config list",
        "hardware --machines",
        "presets list",
    ):
        shown = in_process(*command.split(), env={"COLUMNS": "80"}).stdout
        assert max(len(line) for line in shown.splitlines() if "/" not in line) <= 80, command


def test_every_command_that_a_hint_names_exists() -> None:
    import localai
    from localai.cli import COMMANDS

    for path in Path(localai.__file__).parent.rglob("*.py"):
        for quoted in re.findall(r'"[^"\n]*"', path.read_text("utf-8")):
            for name in re.findall(r"(?<!inject )\blocalai ([a-z-]{2,})\b(?! is| has| names)", quoted):
                assert name in COMMANDS or name in PROSE, f"{path.name}: {quoted}"


PROSE = {"again", "and", "fastapi", "is", "itself", "runs", "asks", "keeps", "needs"}  # words of prose after the name
