"""Write what is recommended for every machine of the list into `docs/recommendations.md`; `--check` tells whether it is
up to date.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from localai import catalog, recommend
from localai.domain.plan import SpeedRange
from localai.domain.units import GIB
from localai.machines import Listed, listed
from localai.recommend import Recommendation
from localai.scoring import TASKS
from localai.tiers import tier

PAGE = Path(__file__).resolve().parent.parent / "docs" / "recommendations.md"
ROWS = 5

INTRODUCTION = """# What is recommended on the machines of the list

Generated from the catalog, `localai/data/machines.toml` and the rule of [recommending](recommending.md) by
`scripts/recommendation_page.py`; `make lint` checks that it is up to date. It is what `localai recommend --machine
NAME` prints; the speeds are predicted from spec sheets, so their ranges are wide. Below each table: the first row for
the other kinds of work. `*` marks the light one to start with, `^` those made to speak French.
"""


def page() -> str:
    return "\n".join([INTRODUCTION, *(line for each in listed() for line in machine_lines(each))]) + "\n"


def machine_lines(listed_machine: Listed) -> Iterator[str]:
    machine, models = listed_machine.machine, catalog.load()
    yield f"## {listed_machine.name}"
    yield ""
    yield f"`{listed_machine.id}`: models of {tier(machine).size} parameters."
    yield ""
    yield "| chat | quantization | download | memory | context | on | tokens/s | prompt, tokens/s |"
    yield "|---|---|--:|--:|--:|---|--:|--:|"
    for row in recommend.rank(machine, models, limit=ROWS):
        yield chat_line(row)
    yield ""
    yield "; ".join(task_text(task, recommend.rank(machine, models, task=task, limit=1)) for task in others()) + "."
    yield ""


def others() -> list[str]:
    return [task for task in TASKS if task != "chat"]


def chat_line(row: Recommendation) -> str:
    cells = (
        row.name + (" `*`" if row.starter else "") + (" `^`" if "fr" in row.languages else ""),
        row.quantization,
        f"{row.download_bytes / 1e9:.1f} GB",
        f"{row.memory.total_bytes / GIB:.1f} GiB",
        f"{row.context:,}",
        place(row),
        speed(row.decode_tps),
        speed(row.prompt_tps),
    )
    return f"| {' | '.join(cells)} |"


def place(row: Recommendation) -> str:
    if row.cpu_expert_layers:
        return f"gpu, experts of {row.cpu_expert_layers} layers on cpu"
    return f"{row.gpu_layers} layers gpu, rest cpu" if row.placement == "split" else str(row.placement)


def speed(found: SpeedRange | None) -> str:
    return "unknown" if found is None else f"{number(found.low)} – {number(found.high)}"


def number(value: float) -> str:
    """A speed as exact as it can be: two digits that say something."""
    return f"{round(value, -max(0, len(f'{value:.0f}') - 2)):,.0f}"


def task_text(task: str, rows: tuple[Recommendation, ...]) -> str:
    if not rows:
        return f"{task}: nothing fits"
    row = rows[0]
    done = f"reads {speed(row.prompt_tps)}" if task == "embedding" else speed(row.decode_tps)
    small = "" if task in row.tasks else ", small for it"
    return f"{task}: {row.name} {row.quantization} ({done} tokens/s{small})"


def main() -> int:
    if "--check" not in sys.argv[1:]:
        PAGE.write_text(page(), "utf-8")
        return 0
    if PAGE.exists() and PAGE.read_text("utf-8") == page():
        return 0
    print(
        "error: docs/recommendations.md is not what the code recommends\nhint: python scripts/recommendation_page.py",
        file=sys.stderr,
    )
    return 1


if __name__ == "__main__":
    sys.exit(main())
