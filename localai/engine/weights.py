"""A model's file read into memory by llama.cpp, and why where it cannot be."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from localai.domain.plan import Plan
from localai.engine import library
from localai.engine.rendering import Renderer
from localai.errors import DoesNotFit, EngineError

_MMAP, _NO_MMAP = 1, 0  # enum llama_load_mode


def check_magic(path: Path) -> None:
    """Raise EngineError for a file that cannot be read or is no GGUF file at all."""
    try:
        with path.open("rb") as stream:
            magic = stream.read(4)
    except OSError as error:
        raise EngineError(
            f"cannot read {path}: {error.strerror}", "localai list shows the models on this disk"
        ) from error
    if magic != b"GGUF":
        raise EngineError(f"{path.name} is not a GGUF model file", "localai pull MODEL fetches one")


def open_for_text(
    undo: ExitStack,
    path: Path,
    plan: Plan,
    progress: Callable[[float], None] | None,
    cancelled: Callable[[], bool] | None,
) -> tuple[Any, Any, Renderer]:
    """llama.cpp's functions, its model of `path`, and the renderer of its prompts; `undo` ends the two again.

    Raises as `check_magic` and `load_model` do.
    """
    check_magic(path)
    renderer = Renderer()  # starts while the model is read
    undo.callback(renderer.close)
    api = library.api()
    model = load_model(api, path, plan, progress, cancelled)
    undo.callback(api.llama_model_free, model)
    return api, model, renderer


def load_model(
    api: Any,
    path: Path,
    plan: Plan,
    progress: Callable[[float], None] | None,
    cancelled: Callable[[], bool] | None,
) -> Any:
    """llama.cpp's model of `path`, to be freed. Raises as `read_model`, and for one without a vocabulary."""
    model = read_model(api, path, plan, progress, cancelled)
    if api.llama_model_has_encoder(model) or not api.llama_vocab_type(api.llama_model_get_vocab(model)):
        api.llama_model_free(model)
        raise EngineError(
            f"{path.name} is not a model that chats or makes embeddings", "localai recommend names some that do"
        )
    return model


def read_model(
    api: Any,
    path: Path,
    plan: Plan,
    progress: Callable[[float], None] | None,
    cancelled: Callable[[], bool] | None,
) -> Any:
    """llama.cpp's model of `path` whatever kind it is, which the caller frees.

    `progress` is told the share that is read. Raises EngineError for a corrupt or unsupported file, DoesNotFit when
    memory is refused, KeyboardInterrupt when `cancelled` says so.
    """
    raised: list[BaseException] = []

    def go_on(share: float, _: object) -> bool:
        try:
            if progress is not None:
                progress(share)
            return not (cancelled is not None and cancelled())
        except BaseException as error:  # noqa: BLE001 - an exception cannot pass through C; it is raised again behind it
            raised.append(error)
            return False

    callback = api.llama_progress_callback(go_on)
    parameters = api.llama_model_default_params()
    parameters.n_gpu_layers = plan.gpu_layers
    kept = library.experts_on_cpu(plan.cpu_expert_layers)
    parameters.tensor_buft_overrides = ctypes.addressof(kept) if kept is not None else None
    parameters.load_mode = _MMAP if plan.use_mmap else _NO_MMAP
    parameters.use_extra_bufts = plan.repack
    parameters.progress_callback = callback
    library.forget_log()
    model = api.llama_model_load_from_file(os.fsencode(path), parameters)
    if not model:
        if raised:
            raise raised[0]
        if cancelled is not None and cancelled():
            raise KeyboardInterrupt
        if library.out_of_memory():
            raise DoesNotFit(
                f"there is not enough memory for {path.name}: {library.reason()}",
                "take a smaller model or quantization: localai recommend",
            )
        raise EngineError(
            f"llama.cpp cannot load {path.name}: {library.reason() or 'it gives no reason'}",
            "localai verify tells whether it is damaged; a model newer than the engine needs a newer llama-cpp-python",
        )
    return model
