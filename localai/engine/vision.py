"""A vision model's projector: pictures to embeddings in the prompt, by llama.cpp's mtmd library.

In a prompt's tokens a picture is a run of one negative number, as many times as it takes cells of the KV cache: the
same picture is the same run, so that a conversation's prefix is found again whatever it holds. What the model's
makers put around a picture (`<start_of_image>`) are ordinary tokens before and after it.
"""

from __future__ import annotations

import ctypes
import os
import re
import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from localai.domain.generation import Image
from localai.domain.plan import Placement, Plan
from localai.engine import library
from localai.errors import DoesNotFit, EngineError

_TEXT, _IMAGE = 0, 1  # enum mtmd_input_chunk_type
_ASKED_EVERY = 8  # nodes of the projector's graph between two questions whether to go on
_MOST_KEPT = 32  # pictures of a conversation
_MOST_PREPARED = 8  # of which the pixels are kept as the model wants them


@dataclass(frozen=True, slots=True)
class _Part:
    """A part of a picture as the model sees it: in so many cells of the KV cache. `positions` differ from `cells` where
    rows and columns count (M-RoPE).
    """

    sha256: str
    cells: int
    positions: int


@dataclass(frozen=True, slots=True)
class _Seen:
    """A picture in tokens, mtmd's chunk that each negative number stands for, and mtmd's memory that holds these."""

    tokens: list[int]
    chunk: dict[int, Any]
    memory: Any


class Projector:
    """The projector of a loaded model, to be closed before the model is freed. Raises EngineError, DoesNotFit."""

    def __init__(self, api: Any, model: Any, path: Path, plan: Plan) -> None:
        self._mtmd = library.mtmd()
        self._marker = f"<image-{secrets.token_hex(8)}-"  # no text that anybody writes becomes a picture
        self._marked = re.compile(re.escape(self._marker) + "([0-9a-f]{64})>")
        self._images: dict[str, Image] = {}
        self._seen: dict[str, _Seen] = {}
        self._parts: dict[int, _Part] = {}
        self._cancelled: Callable[[], bool] = lambda: False
        self._stopped = False
        self._raised: BaseException | None = None
        self._nodes = 0
        self._asked = api.ggml_backend_sched_eval_callback(self._go_on)
        self._step = max(1, min(plan.ubatch, plan.batch))
        parameters = self._mtmd.mtmd_context_params_default()
        parameters.use_gpu = plan.placement is not Placement.CPU
        parameters.print_timings = False
        parameters.n_threads = plan.threads
        parameters.warmup = False  # buffers are made with the first picture
        parameters.cb_eval = self._asked
        library.forget_log()
        self._pointer = self._mtmd.mtmd_init_from_file(os.fsencode(path), model, parameters)
        if not self._pointer:
            self._pointer = None
            error = DoesNotFit if library.out_of_memory() else EngineError
            raise error(
                f"llama.cpp cannot load the projector {path.name}: {library.reason() or 'it gives no reason'}",
                "it must be the one that belongs to the model: localai pull brings both",
            )
        if not self._mtmd.mtmd_support_vision(self._pointer):
            self.close()
            raise EngineError(f"{path.name} is not a projector for images", "localai recommend names models that see")
        self.turns_positions = bool(self._mtmd.mtmd_decode_use_mrope(self._pointer))

    # --------------------------------------------------------------------------------------------- in the prompt

    def mark(self, image: Image) -> str:
        """The text that stands for a picture in a rendered conversation."""
        self._images.pop(image.sha256, None)
        self._images[image.sha256] = image
        while len(self._images) > _MOST_KEPT:
            del self._images[next(iter(self._images))]
        return f"{self._marker}{image.sha256}>"

    def encode(self, text: str, encode: Callable[[str], list[int]]) -> list[int]:
        """The tokens of a rendered text with marks in it; `encode` is for what stands between them."""
        tokens: list[int] = []
        for index, part in enumerate(self._marked.split(text)):
            tokens += self._look(part).tokens if index % 2 else encode(part) if part else []
        return tokens

    def count(self, text: str) -> int:
        """How many pictures a rendered text holds."""
        return len(self._marked.findall(text))

    def _look(self, sha256: str) -> _Seen:
        if (known := self._seen.get(sha256)) is not None:
            return known
        if (image := self._images.get(sha256)) is None:
            raise EngineError(f"the conversation has more than {_MOST_KEPT} images", "ask about fewer")
        if len(self._seen) >= _MOST_PREPARED:
            self._forget(next(iter(self._seen)))
        seen = self._seen[sha256] = self._prepared(image)
        return seen

    def _prepared(self, image: Image) -> _Seen:
        """The picture cut and scaled as the model wants it; nothing is evaluated yet."""
        mtmd = self._mtmd
        pixels = (ctypes.c_uint8 * len(image.pixels)).from_buffer_copy(image.pixels)
        bitmap = mtmd.mtmd_bitmap_init(image.width, image.height, pixels)
        chunks = mtmd.mtmd_input_chunks_init()
        marker = mtmd.mtmd_default_marker()
        text = mtmd.mtmd_input_text(text=marker, text_len=len(marker), add_special=False, parse_special=True)
        library.forget_log()
        code = mtmd.mtmd_tokenize(self._pointer, chunks, ctypes.byref(text), (ctypes.c_void_p * 1)(bitmap), 1)
        mtmd.mtmd_bitmap_free(bitmap)
        if code:
            mtmd.mtmd_input_chunks_free(chunks)
            raise EngineError(
                f"the model cannot look at {image.name}: {library.reason() or f'mtmd_tokenize returned {code}'}",
                "scale it to about 1000 × 1000 pixels",
            )
        tokens: list[int] = []
        by_number: dict[int, Any] = {}
        for index in range(mtmd.mtmd_input_chunks_size(chunks)):
            chunk = mtmd.mtmd_input_chunks_get(chunks, index)
            count = mtmd.mtmd_input_chunk_get_n_tokens(chunk)
            if mtmd.mtmd_input_chunk_get_type(chunk) == _TEXT:
                length = ctypes.c_size_t()
                found = mtmd.mtmd_input_chunk_get_tokens_text(chunk, ctypes.byref(length))
                tokens += found[: length.value]
                continue
            number = -2 - (int(image.sha256[:8], 16) + index) % (2**31 - 2)
            by_number[number] = chunk
            self._parts[number] = _Part(image.sha256, count, mtmd.mtmd_input_chunk_get_n_pos(chunk))
            tokens += [number] * count
        return _Seen(tokens, by_number, chunks)

    def _forget(self, sha256: str) -> None:
        self._mtmd.mtmd_input_chunks_free(self._seen.pop(sha256).memory)

    # ---------------------------------------------------------------------------------------------- in the cache

    def split(self, tokens: Sequence[int], step: int) -> Iterator[Sequence[int]]:
        """Prompt tokens in parts to be evaluated in turn: up to `step` ordinary ones, or a picture's run."""
        start = 0
        while start < len(tokens):
            end, first = start + 1, tokens[start]
            if first < 0:
                end = start + self._parts[first].cells
            while first >= 0 and end < len(tokens) and tokens[end] >= 0 and end - start < step:
                end += 1
            yield tokens[start:end]
            start = end

    def border(self, tokens: Sequence[int], length: int) -> int:
        """`length`, or where a picture begins that the first so many of `tokens` would cut through."""
        start = length
        while 0 < start < len(tokens) and tokens[length] < 0 and tokens[start - 1] == tokens[length]:
            start -= 1
        return length - (length - start) % self._parts[tokens[length]].cells if start < length else length

    def shift(self, tokens: Sequence[int]) -> int:
        """How far positions are ahead of (or behind) the number of tokens after these."""
        if not self.turns_positions:
            return 0
        runs = (self._parts[part[0]] for part in self.split(tokens, len(tokens) or 1) if part[0] < 0)
        return sum(part.positions - part.cells for part in runs)

    def evaluate(self, context: Any, run: Sequence[int], position: int, cancelled: Callable[[], bool]) -> int:
        """Put a part of a picture into the llama.cpp `context`; returns as `llama_decode` does: 2 if broken off.

        The context's own abort callback is the caller's.
        """
        chunk = self._look(self._parts[run[0]].sha256).chunk[run[0]]
        self._cancelled, self._stopped, self._raised, self._nodes = cancelled, False, None, 0
        library.forget_log()
        code = self._mtmd.mtmd_encode_chunk(self._pointer, chunk)
        if self._raised is not None:
            raise self._raised
        if self._stopped or code:
            return library.ABORTED if self._stopped else int(code)
        end = ctypes.c_int32()
        return int(
            self._mtmd.mtmd_helper_decode_image_chunk(
                self._pointer,
                context,
                chunk,
                self._mtmd.mtmd_get_output_embd(self._pointer),
                position,
                0,
                self._step,
                ctypes.byref(end),
                self._mtmd.mtmd_helper_post_decode_callback(),
                None,
            )
        )

    def _go_on(self, tensor: Any, asked: bool, _: object) -> bool:
        """Asked by ggml before a node of the projector's graph whether to stop after it, then whether to go on."""
        if asked:
            self._nodes += 1
            return self._nodes % _ASKED_EVERY == 0
        try:
            self._stopped = self._stopped or self._cancelled()
        except BaseException as error:  # noqa: BLE001 - an exception cannot pass through C; it is raised again behind it
            self._raised, self._stopped = error, True
        return not self._stopped

    def close(self) -> None:
        """Free it. Idempotent."""
        for sha256 in list(self._seen):
            self._forget(sha256)
        pointer, self._pointer = self._pointer, None
        if pointer is not None:
            self._mtmd.mtmd_free(pointer)
