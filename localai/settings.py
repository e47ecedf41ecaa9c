"""Where things are kept and what the user has set; read when asked, never at import.

A value comes from a flag, else the environment (`LOCALAI_<NAME>`), else the config file, else its default.
"""

from __future__ import annotations

import errno
import os
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from localai.errors import LocalaiError, NotFound, UsageError

APP = "localai"


@dataclass(frozen=True, slots=True)
class Folders:
    """The folders of `localai` itself: `config` (the user's choices), `data` (records), `cache` (can be lost)."""

    config: Path
    data: Path
    cache: Path

    @property
    def config_file(self) -> Path:
        return self.config / "config.toml"


def folders(environ: Mapping[str, str] = os.environ) -> Folders:
    """The folders by the platform's custom, or all three under `LOCALAI_HOME` where that is set.

    Raises UsageError where neither can be told: a user without a home, as in a container.
    """
    if home := environ.get("LOCALAI_HOME"):
        root = Path(os.path.abspath(os.path.expanduser(home)))
        return Folders(root / "config", root / "data", root / "cache")
    import platformdirs

    try:
        return Folders(
            Path(platformdirs.user_config_dir(APP, appauthor=False)),
            Path(platformdirs.user_data_dir(APP, appauthor=False)),
            Path(platformdirs.user_cache_dir(APP, appauthor=False)),
        )
    except RuntimeError as error:
        raise UsageError("this user has no home folder", "export HOME=/a/folder/that/can/be/written") from error


def private_folder(path: Path) -> Path:
    """Make `path`, and what is missing above it, for this user only (0700), whatever the umask.

    One that others may look into is closed to them. Raises OSError, also for a folder that is another user's.
    """
    for each in (*reversed(path.parents), path):
        if not each.exists():
            each.mkdir(mode=0o700, exist_ok=True)
    if os.name == "posix":
        status = path.stat()
        if status.st_uid != os.geteuid() != 0:
            raise PermissionError(errno.EPERM, "it belongs to another user", str(path))
        if status.st_mode & 0o077:
            path.chmod(0o700)
    return path


def hub_cache(environ: Mapping[str, str] = os.environ) -> Path:
    """The Hugging Face cache, found by huggingface_hub's own rules without importing it."""
    if explicit := environ.get("HF_HUB_CACHE") or environ.get("HUGGINGFACE_HUB_CACHE"):
        return _expanded(explicit)
    return hf_home(environ) / "hub"


def hf_home(environ: Mapping[str, str] = os.environ) -> Path:
    """The folder of huggingface_hub's cache, and of its token, by its own rules."""
    if home := environ.get("HF_HOME"):
        return _expanded(home)
    return _expanded(environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"


def _expanded(text: str) -> Path:
    return Path(os.path.expanduser(os.path.expandvars(text)))  # Path's own way raises for a user whom nobody knows


# ---------------------------------------------------------------------------------------------------- the keys


def _boolean(text: str) -> bool:
    match text.strip().lower():
        case "1" | "true" | "yes" | "on":
            return True
        case "0" | "false" | "no" | "off" | "":
            return False
    raise ValueError("expected true or false")


def _number(kind: Callable[[str], Any], low: float, high: float) -> Callable[[str], Any]:
    def parse(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            raise ValueError(f"expected {'a whole number' if kind is int else 'a number'}") from None
        if not low <= value <= high:
            raise ValueError(f"expected {low:,.15g} to {high:,.15g}")
        return value

    return parse


_UNITS = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def seconds(text: str) -> float:
    """A duration: a number of seconds, or with units (500ms, 90s, 5m, 1h30m, 7d); less than 0 is for ever.

    Raises ValueError.
    """
    number = r"\d{1,12}(?:\.\d{0,9})?"
    found = re.fullmatch(rf"\s*(-?)({number}\s*|(?:{number}\s*(?:ms|s|m|h|d)\s*){{1,5}})", text.lower())
    if found is None:
        raise ValueError("expected a duration such as 90s, 5m or 1h30m; -1 is for ever")
    parts = re.findall(rf"({number})\s*(ms|s|m|h|d|)", found[2])
    return float(f"{found[1]}1") * sum(float(value) * _UNITS[unit] for value, unit in parts)


def duration(text: str) -> str:
    """A duration as it was written, checked."""
    seconds(text)
    return text.strip()


@dataclass(frozen=True, slots=True)
class Key:
    """One setting: what it is called, what it does, how its text is read."""

    name: str
    help: str
    parse: Callable[[str], Any]

    @property
    def variable(self) -> str:
        return f"LOCALAI_{self.name.upper()}"


KEYS: dict[str, Key] = {
    key.name: key
    for key in (
        Key("model", "the model that chat and run use when none is named", str),
        Key("offline", "true forbids every connection", _boolean),
        Key("plain", "true: chat writes whole lines and nothing over, for screen readers", _boolean),
        Key("system", "the system text of chat and run", str),
        Key("context", "tokens of context to plan for", _number(int, 1, 2**31 - 1)),
        Key("gpu_layers", "layers to put on the GPU instead of the plan's", _number(int, 0, 10_000)),
        Key("threads", "CPU threads instead of the plan's", _number(int, 1, 4096)),
        Key("temperature", "0 is greedy; higher is more varied", _number(float, 0, 10)),
        Key("top_k", "draw from the k likeliest tokens; 0 is all", _number(int, 0, 2**31 - 1)),
        Key("top_p", "draw from the likeliest tokens that add up to p", _number(float, 0, 1)),
        Key("min_p", "drop tokens under this share of the likeliest", _number(float, 0, 1)),
        Key("repeat_penalty", "1 is none; higher repeats less", _number(float, 0.01, 10)),
        Key("max_tokens", "the longest answer, in tokens", _number(int, 1, 2**31 - 1)),
        Key("speculate", "false: never guess at tokens ahead", _boolean),
        Key("keep_alive", "run, chat and map start a server that keeps the model so long (5m)", duration),
        Key("port", "the port of serve instead of 11435", _number(int, 0, 65535)),
        Key("kept_state_mb", "MiB on disk to resume conversations at once; 0: none", _number(int, 0, 2**31 - 1)),
    )
}


@dataclass(frozen=True, slots=True)
class Setting:
    """A setting's value and where it comes from: default, file or environment."""

    key: Key
    value: Any
    source: str


def key(name: str) -> Key:
    """The key of that name (`-` and `_` are the same). Raises NotFound with the names there are."""
    found = KEYS.get(name.replace("-", "_"))
    if found is None:
        raise NotFound(f"there is no setting called {name!r}", f"the settings are: {', '.join(KEYS)}")
    return found


def read_file(path: Path) -> dict[str, Any]:
    """The config file's values, checked; {} where there is no file. Raises UsageError with file and reason."""
    values = {}
    for name, value in _toml(path).items():
        if name not in KEYS:
            raise UsageError(f"{path}: there is no setting called {name!r}", f"take it out; there is {', '.join(KEYS)}")
        text = str(value).lower() if isinstance(value, bool) else str(value)
        try:
            values[name] = KEYS[name].parse(text)
        except ValueError as error:
            raise UsageError(f"{path}: {name}: {error}, not {text!r}", f"localai config unset {name}") from error
    return values


def _toml(path: Path) -> dict[str, Any]:
    """What stands in the config file; {} where there is none. Raises UsageError for what is no TOML."""
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"cannot read {path}: {error}", "mend or remove that file") from error


def load(environ: Mapping[str, str] = os.environ) -> dict[str, Setting]:
    """Every setting by name, from the environment, the config file or its default. Raises UsageError."""
    from_file = read_file(folders(environ).config_file)
    result = {}
    for name, each in KEYS.items():
        if text := environ.get(each.variable):  # empty means unset, as by custom
            try:
                result[name] = Setting(each, each.parse(text), "environment")
            except ValueError as error:
                raise UsageError(f"{each.variable}: {error}, not {text!r}", f"unset {each.variable}") from error
        elif name in from_file:
            result[name] = Setting(each, from_file[name], "file")
        else:
            result[name] = Setting(each, False if name == "offline" else None, "default")
    return result


def offline(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether every connection is forbidden: by `--offline`, the setting, or `HF_HUB_OFFLINE`."""
    hub_says = environ.get("HF_HUB_OFFLINE", "").strip().upper() in {"1", "ON", "YES", "TRUE"}
    return hub_says or bool(load(environ)["offline"].value)


def store(name: str, text: str | None) -> Path:
    """Write one setting (None removes it) into the config file, whose comments and order stay.

    Raises NotFound for an unknown name, UsageError for a bad value or file, LocalaiError where it cannot be written.
    """
    import tomlkit
    from filelock import FileLock

    each = key(name)
    path = folders().config_file
    _toml(path)  # a file that is broken is told of, and not written over; a bad value can be mended
    try:
        value = None if text is None else each.parse(text)
    except ValueError as error:
        raise UsageError(f"{each.name}: {error}, not {text!r}", f"{each.name}: {each.help}") from error
    try:
        private_folder(path.parent)
        with FileLock(path.with_suffix(".lock"), mode=0o600):
            document = tomlkit.parse(path.read_text("utf-8")) if path.exists() else tomlkit.document()
            if value is None:
                document.pop(each.name, None)
            else:
                document[each.name] = value
            write_atomically(path, tomlkit.dumps(document).encode())
    except OSError as error:
        raise not_kept(path, error) from error
    return path


def not_kept(path: Path, error: OSError) -> LocalaiError:
    """What is told where the disk does not take one of our own small files, or does not let go of it."""
    do = "free some space there" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "check its owner and permissions"
    return LocalaiError(
        f"cannot write {path}: {error.strerror or error}", f"{do}, or set LOCALAI_HOME to a folder elsewhere"
    )


def write_atomically(path: Path, content: bytes, mode: int = 0o600) -> None:
    """Replace `path` by `content` so that a reader, or a crash, sees the old or the new, never a part.

    `mode` is what the umask leaves of it.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
