"""Cache and compute buffers as llama.cpp itself reckons them, for models whose closed forms are known to be inexact."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from localai import gguf
from localai.buffers import UBATCH
from localai.domain.shape import Shape
from localai.engine import oracle
from localai.engine.oracle import HeaderFile
from localai.errors import LocalaiError
from localai.estimate import SMALL_KV_TYPE, SMALL_UBATCH, Measure, halves

# Architectures whose compute buffer the closed form gives within 5 % (docs/estimation.md has the table).
_CLOSED_FORM = frozenset(
    {
        "gemma2",
        "gemma3",
        "glm4",
        "granite",
        "llama",
        "minicpm3",
        "mistral3",
        "olmo2",
        "phi3",
        "qwen2",
        "qwen3",
        "smollm3",
        "starcoder2",
    }
)
# Which of a layer's rows share their room in llama.cpp depends on more than the closed form knows; up to this width two
# of the embedding's are 32 MiB at most.
_WIDEST = 8192


def is_exact(shape: Shape) -> bool:
    """Whether the closed forms are enough: a dense transformer of a kind that they were held against llama.cpp for."""
    return (
        shape.architecture in _CLOSED_FORM
        and (shape.embedding_length or 0) <= _WIDEST
        and not shape.expert_count
        and not shape.latent_kv
        and not shape.recurrent_state_bytes
    )


def measure_for(shape: Shape, files: Sequence[HeaderFile], asked: oracle.Oracle | None = None) -> Measure | None:
    """What `estimate.plan` asks for contexts of this model; None where the closed forms are exact anyway.

    `asked` is who is asked where somebody has been got ready.
    """
    return None if is_exact(shape) else _Measured(tuple(files), asked)


def measure_here(shape: Shape, paths: Sequence[Path]) -> Measure | None:
    """`measure_for` of a model whose files are here. Raises NotFound or EngineError."""
    return None if is_exact(shape) else measure_for(shape, header_files(paths))


def header_files(paths: Sequence[Path]) -> tuple[HeaderFile, ...]:
    """The files of a model that is here, as the oracle takes them. Raises NotFound or EngineError."""
    headers = [gguf.read_header(path) for path in paths]
    return tuple(
        HeaderFile(path, header.data_offset, header.file_size, header)
        for path, header in zip(paths, headers, strict=True)
    )


_LONGEST_CONTEXT = 2**31 - 1  # llama.cpp counts tokens in 32 bits: more would come round to a few


class _Measured:
    """Asks for a context and all the shorter ones that a plan tries; silent once llama.cpp has refused.

    All that a plan tries where that does not fit (another cache type, a smaller micro-batch) is one more question.
    """

    def __init__(self, files: tuple[HeaderFile, ...], asked: oracle.Oracle | None) -> None:
        self._files = files
        self._known: dict[tuple[int, str, int], tuple[int, int]] = {}
        self._refused = False
        self._oracle = asked

    def __call__(self, context: int, kv_type: str, ubatch: int) -> tuple[int, int] | None:
        if (context, kv_type, ubatch) not in self._known and not self._refused and context <= _LONGEST_CONTEXT:
            more = [(kv_type, ubatch)]
            if self._known:
                more += [(each, tokens) for each in (kv_type, SMALL_KV_TYPE) for tokens in (UBATCH, SMALL_UBATCH)]
            wanted = [(each, *how) for how in dict.fromkeys(more) for each in halves(context)]
            wanted = [each for each in wanted if each not in self._known]
            try:
                self._oracle = self._oracle or oracle.Oracle()
                found = self._oracle.measure(self._files, [oracle.Setting(*each) for each in wanted])
            except LocalaiError:
                self._refused, self._oracle = True, None
                return None
            for each, reading in zip(wanted, found, strict=True):
                self._known[each] = (reading.kv_cache_bytes, reading.compute_bytes)
        return self._known.get((context, kv_type, ubatch))
