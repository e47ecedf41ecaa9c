"""The model of a batch, loaded anew with a larger context where a record takes more than was planned."""

from __future__ import annotations

import contextlib

from localai import loading, recording, render, warm
from localai.batch import Asking
from localai.commands import model_loading
from localai.domain.engine import BatchEngine
from localai.errors import DoesNotFit
from localai.interrupt import Interrupts
from localai.loading import LoadedBatch, LoadOptions, Prepared

PATIENCE_S = 2.0  # nobody reads along, so that all in all counts
AHEAD = 8  # records with the engine beside those being answered


class BatchEngines:
    """As many loads as it takes, one after the other: `load` is the first, `grow` the others.

    `parallel` is what the user wants answered at once, and `at_once` how many are to be with the engine.
    """

    def __init__(
        self,
        prepared: Prepared,
        load_options: LoadOptions,
        asking: Asking,
        interrupts: Interrupts,
        parallel: int | None,
    ) -> None:
        self._prepared, self._load_options, self._asking, self._interrupts = prepared, load_options, asking, interrupts
        self._loaded: LoadedBatch | None = None
        self._is_largest = False  # memory leaves no room for a larger context
        # as many as the first engine has: a larger context leaves room for fewer, and these may wait
        sequences = prepared.plan.sequences
        self.at_once = sequences + AHEAD
        if prepared.warm is not None and parallel is not None:  # the plan is the server's own
            if parallel <= sequences:
                self.at_once = parallel
            else:
                render.note(f"the server answers {sequences} at once; after localai stop, map does {parallel} itself")

    def load(self) -> BatchEngine:
        if self._prepared.warm is not None:
            plan = self._prepared.plan
            return warm.WarmBatchEngine(self._prepared.found.path, plan.context, plan.sequences)
        with model_loading.loading_shown(self._prepared.found.name) as progress:
            self._loaded = loading.load_batch(
                self._prepared,
                progress,
                self._interrupts.requested,
                render.note,
                queue=self.at_once,
                repeatable=self._prepared.plan.sequences == 1,
                patience_s=PATIENCE_S,
                converses=False,
            )
        engine = recording.Recorded(self._loaded.engine, self._prepared, "map")
        one, other = self._asking.probes()
        engine.share(one, other, self._asking.think)
        return engine

    def grow(self, needed: int) -> BatchEngine | None:
        """The model with room for a prompt of so many tokens and its answer, or as it was where memory has no more room
        for it; None where that is known, or nothing else is wanted.
        """
        planned, made_for = self._prepared.plan, self._prepared.context_length or 0
        if self._load_options.context is not None or planned.context >= made_for or self._is_largest:
            return None
        want = min(needed + needed // 4 + self._asking.max_tokens, made_for)
        self.close()  # first: two may not fit, nor be planned beside each other
        with contextlib.suppress(DoesNotFit):
            larger = loading.prepare(self._prepared.found, self._load_options, want, None, planned.sequences)
            if larger.plan.context > planned.context:
                self._prepared = larger
        self._is_largest = self._prepared.plan is planned
        return self.load()

    def close(self) -> None:
        if self._loaded is not None:
            self._loaded.engine.close()
