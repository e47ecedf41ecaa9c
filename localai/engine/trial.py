"""A projector tried in a process of its own: llama.cpp's mtmd looks for no missing tensor, and crashes over some files.

`python -m localai.engine.trial MODEL PROJECTOR` reads the projector and builds its graph, computing nothing: a second
for one of a gigabyte, before a picture takes several.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from localai.errors import EngineError

MOST_SECONDS = 120
_HINT = "it must be the one that belongs to the model: localai pull brings both"


def try_out(model: Path, projector: Path) -> None:
    """Raise EngineError for a projector that llama.cpp cannot read, or that would end the process."""
    command = [sys.executable, "-P", "-m", "localai.engine.trial", str(model), str(projector)]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=MOST_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise EngineError(f"the projector {projector.name} takes too long to read", _HINT) from error
    told = done.stdout.decode("utf-8", "replace").partition("\n")[0]
    if told != "ready":
        raise EngineError(f"llama.cpp cannot use the projector {projector.name}: {told or 'it crashes'}", _HINT)


def main() -> None:
    """In the child: "ready", or why not, on stdout; nothing where llama.cpp crashes."""
    from localai.engine import library

    try:
        api, mtmd = library.api(), library.mtmd()
        library.on_fatal(tell)
        parameters = api.llama_model_default_params()
        parameters.vocab_only = True
        model = api.llama_model_load_from_file(os.fsencode(sys.argv[1]), parameters)
        of_projector = mtmd.mtmd_context_params_default()
        of_projector.use_gpu = False
        of_projector.print_timings = False
        library.forget_log()
        ready = model and mtmd.mtmd_init_from_file(os.fsencode(sys.argv[2]), model, of_projector)
        tell("ready" if ready else library.reason() or "it gives no reason")
    except EngineError as error:
        tell(error.message)


def tell(text: str) -> None:
    """Write a line and end the process: what was loaded need not be freed."""
    os.write(1, " ".join(text.split()).encode("utf-8", "replace") + b"\n")
    os._exit(0)


if __name__ == "__main__":
    main()
