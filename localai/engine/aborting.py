"""Breaking an evaluation of llama.cpp's off from within: it asks at every node of its graph whether to go on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Abort:
    """`callback` is for `llama_set_abort_callback`: it asks what was last given to `ask`."""

    def __init__(self, api: Any) -> None:
        self.callback: Any = api.ggml_abort_callback(self._wanted)
        self._raised: BaseException | None = None
        self.ask(lambda: False)

    def ask(self, cancelled: Callable[[], bool]) -> None:
        """Whether to go on is for `cancelled` to say, from now on."""
        self.cancelled, self._raised = cancelled, None

    def _wanted(self, _: object) -> bool:
        try:
            return self.cancelled()
        except BaseException as error:  # noqa: BLE001 - an exception cannot pass through C; it is raised again behind it
            self._raised = error
            return True

    def raise_again(self) -> None:
        """Raise what the asking has raised, if it has."""
        if self._raised is not None:
            raise self._raised
