"""Imports point one way: fronts, services, adapters, leaves."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import localai

PACKAGE = Path(localai.__file__).parent

FRONT, SERVICE, ADAPTER, LEAF = "front", "service", "adapter", "leaf"
ORDER = [LEAF, ADAPTER, SERVICE, FRONT]

LAYERS = {
    FRONT: {
        "__main__",
        "boundary",
        "cli",
        "commands",
        "server",
        "repl",
        "room",
        "chat_model",
        "slash",
        "line_editor",
        "terminal",
        "answer_view",
        "markdown",
        "render",
        "schema",
        "interrupt",
    },
    SERVICE: {
        "hardware",
        "measurement",
        "experience",
        "past_runs",
        "recording",
        "roofline",
        "fitting",
        "calibrating",
        "tuning",
        "benching",
        "catalog",
        "estimate",
        "placement",
        "parallelism",
        "alternatives",
        "batch",
        "record_input",
        "record_output",
        "record_template",
        "experts",
        "scoring",
        "recommend",
        "library",
        "references",
        "refusing",
        "inventory",
        "discovering",
        "importing",
        "verifying",
        "pruning",
        "removing",
        "manifests",
        "portable",
        "choosing",
        "pulling",
        "updating",
        "packing",
        "chat",
        "presets",
        "answer_schema",
        "documents",
        "images",
        "sessions",
        "kept_states",
        "kept_turns",
        "speculating",
        "loading",
        "holding",
        "serial_engine",
        "background",
        "embeddings",
        "cards",
        "measuring",
        "remote",
        "searching",
        "shapes",
        "architectures",
        "sizes",
        "speed",
        "buffers",
        "tiers",
        "machines",
        "machine_file",
        "workers",
        "doctor",
        "checks",
    },
    ADAPTER: {
        "probes",
        "hub",
        "hub_client",
        "hub_errors",
        "hub_cache",
        "claims",
        "locks",
        "embedded",
        "transfer",
        "source",
        "lanes",
        "ranges",
        "records",
        "record_format",
        "aliases",
        "history",
        "clipboard",
        "copies",
        "foreign",
        "partial",
        "alongside",
        "readers",
        "gguf",
        "gguf_reader",
        "engine",
        "wire",
        "warm",
    },
    LEAF: {
        "languages",
        "domain",
        "settings",
        "errors",
        "quantization",
        "naming",
        "tensor_types",
        "json_file",
        "threads",
        "__init__",
    },
}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def layer_of(name: str) -> str:
    """The layer of a module by the first part of its name inside the package."""
    return next(layer for layer, names in LAYERS.items() if name.split(".")[0] in names)


def imported(path: Path) -> set[str]:
    """Names inside the package that a module imports, wherever in it: `engine.model`, `errors`, ..."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "localai":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("localai."):
            found.add((node.module or "").removeprefix("localai."))
        elif isinstance(node, ast.Import):
            found |= {alias.name.removeprefix("localai.") for alias in node.names if alias.name.startswith("localai.")}
    return found - {"__version__"}


@pytest.mark.parametrize("path", modules(), ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_imports_point_down(path: Path) -> None:
    own = layer_of(path.relative_to(PACKAGE).with_suffix("").as_posix().replace("/", "."))
    for name in imported(path):
        assert ORDER.index(layer_of(name)) <= ORDER.index(own), f"{path.name} ({own}) imports {name} ({layer_of(name)})"


def test_heavy_libraries_have_one_home() -> None:
    homes = {
        "llama_cpp": "engine/",
        "huggingface_hub": "hub",
        "pynvml": "probes/",
        "fastapi": "server/",
        "uvicorn": "server/",
        "rich": "render/",
    }
    homes |= dict.fromkeys(("pypdf", "lxml", "mammoth", "PIL"), "readers/")
    for path in modules():
        place = path.relative_to(PACKAGE).as_posix()
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                home = homes.get(name.split(".")[0])
                assert home is None or place.startswith(home), f"{place} imports {name}: its home is {home}"


def test_only_render_prints() -> None:
    for path in modules():
        name = path.relative_to(PACKAGE).with_suffix("").as_posix().replace("/", ".")
        if name == "__main__" or name.startswith("render."):
            continue
        calls = {
            ast.unparse(node.func)
            for node in ast.walk(ast.parse(path.read_text("utf-8")))
            if isinstance(node, ast.Call)
        }
        assert "print" not in calls, path
        if layer_of(name) in (FRONT, SERVICE):  # an adapter may be a child's main program, and its parent reads it
            assert not calls & {"sys.stdout.write", "sys.stdout.buffer.write", "sys.stderr.write"}, path


def test_help_imports_no_heavy_library() -> None:
    script = (
        "import sys; sys.argv=['localai','--help']\n"
        "from localai.__main__ import main; main()\n"
        "heavy={'llama_cpp','huggingface_hub','numpy','rich','jinja2','psutil','prompt_toolkit','httpx2','lxml','mammoth','PIL'}&set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, timeout=60)
