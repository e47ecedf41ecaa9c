"""The options that several commands share, and what becomes of them."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any

import typer

from localai import render, settings
from localai.domain.generation import Sampling
from localai.errors import ExitCode, UsageError


def complete_model(incomplete: str) -> list[str]:
    """Installed models and aliases that begin as typed, for the shell's completion."""
    from localai import aliases, library

    names = {model.model for model in library.installed()} | {alias.name for alias in aliases.load()}
    return sorted(name for name in names if name.startswith(incomplete))


def complete_known(incomplete: str) -> list[str]:
    """Also the models of the catalog, for commands that know more than this disk."""
    from localai import catalog

    return sorted({*complete_model(incomplete), *(m.id for m in catalog.load() if m.id.startswith(incomplete))})


def complete_alias(incomplete: str) -> list[str]:
    from localai import aliases

    return [alias.name for alias in aliases.load() if alias.name.startswith(incomplete)]


def complete_setting(incomplete: str) -> list[str]:
    return [name for name in settings.KEYS if name.startswith(incomplete)]


def complete_preset(incomplete: str) -> list[str]:
    """Presets that begin as typed, for the shell's completion."""
    from localai import presets

    return [each.name for each in presets.every() if each.name.startswith(incomplete)]


MODEL_HELP = "a catalog name (qwen3-4b), a Hub repository (owner/repo), or a .gguf file; with :QUANT or :FILENAME"


def sentence(text: str) -> str:
    """`text` with a capital first letter, and nothing else changed."""
    return text[:1].upper() + text[1:]


ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model", "-m", metavar="MODEL", help=f"Use this model: {MODEL_HELP}.", autocompletion=complete_model
    ),
]
ModelArgument = Annotated[
    str | None, typer.Argument(metavar="MODEL", help=sentence(MODEL_HELP), autocompletion=complete_model)
]
JsonFlag = Annotated[bool, typer.Option("--json", help="Answer with one JSON object on stdout.")]
YesFlag = Annotated[bool, typer.Option("--yes", "-y", help="Take every question as answered with yes.")]

SystemOption = Annotated[str | None, typer.Option("--system", "-s", metavar="TEXT", help="The system text.")]
TemperatureOption = Annotated[
    float | None, typer.Option("--temperature", metavar="T", min=0, max=10, help="0 is greedy; higher is more varied.")
]
TopKOption = Annotated[
    int | None, typer.Option("--top-k", metavar="K", min=0, help="Draw from the k likeliest tokens; 0 is all.")
]
TopPOption = Annotated[
    float | None,
    typer.Option("--top-p", metavar="P", min=0, max=1, help="Draw from the likeliest tokens that add up to p."),
]
MinPOption = Annotated[
    float | None,
    typer.Option("--min-p", metavar="P", min=0, max=1, help="Drop tokens under this share of the likeliest."),
]
RepeatPenaltyOption = Annotated[
    float | None,
    typer.Option("--repeat-penalty", metavar="X", min=0.01, max=10, help="1 is none; higher repeats less."),
]
SeedOption = Annotated[
    int | None, typer.Option("--seed", metavar="N", min=0, max=2**32 - 2, help="The same seed draws the same answer.")
]
MaxTokensOption = Annotated[
    int | None,
    typer.Option(
        "--max-tokens", metavar="N", min=1, help="The longest answer, in tokens; default: what the context holds."
    ),
]
StopOption = Annotated[
    list[str] | None, typer.Option("--stop", metavar="TEXT", help="End an answer before this text; repeatable.")
]
ThinkOption = Annotated[
    bool | None, typer.Option("--think/--no-think", help="Let a thinking model think, or not; default: as it does.")
]
ContextOption = Annotated[
    int | None,
    typer.Option("--context", "-c", min=1, metavar="TOKENS", help="Tokens of context instead of the plan's."),
]
GpuLayersOption = Annotated[
    int | None, typer.Option("--gpu-layers", metavar="N", min=0, help="Layers to put on the GPU instead of the plan's.")
]
ThreadsOption = Annotated[
    int | None, typer.Option("--threads", "-t", metavar="N", min=1, help="CPU threads instead of the plan's.")
]
KvTypeOption = Annotated[
    str | None,
    typer.Option(
        "--kv-type", metavar="TYPE", parser=str.lower, help="Type of the KV cache: f16 (default), q8_0, q4_0, ..."
    ),
]
RpcOption = Annotated[
    str | None,
    typer.Option(
        "--rpc",
        metavar="HOST:PORT,...",
        help="Spread the model over these machines, too, where localai worker runs (private networks only).",
    ),
]
SpeculateOption = Annotated[
    bool | None,
    typer.Option(
        "--speculate/--no-speculate", help="Guess at tokens ahead where the answer repeats the input (default), or not."
    ),
]
DraftOption = Annotated[
    str | None,
    typer.Option(
        "--draft",
        metavar="MODEL",
        help="A small model of the same family that guesses ahead.",
        autocompletion=complete_model,
    ),
]

PresetOption = Annotated[
    str | None,
    typer.Option(
        "--preset", "-p", metavar="NAME", help="Ask in the words of this preset.", autocompletion=complete_preset
    ),
]
VariableOption = Annotated[
    list[str] | None, typer.Option("--var", metavar="NAME=VALUE", help="A variable of the preset; repeatable.")
]
LanguageOption = Annotated[
    str | None,
    typer.Option("--language", metavar="LANGUAGE", help="The preset's language, en or fr; default: the locale's."),
]
SchemaOption = Annotated[
    str | None,
    typer.Option(
        "--json-schema",
        metavar="FILE",
        help="Answer with JSON of this schema, or exit with 8: a file, - or the schema itself.",
    ),
]
FileOption = Annotated[
    list[Path] | None,
    typer.Option("--file", "-f", metavar="PATH", help="Read this file (PDF, DOCX, HTML, text) first; repeatable."),
]
ImageOption = Annotated[
    list[Path] | None,
    typer.Option("--image", metavar="PATH", help="Look at this image, with a model that sees; repeatable."),
]

ON_OVERFLOW = ("error", "truncate")
OverflowOption = Annotated[
    str,
    typer.Option("--on-overflow", metavar="WHAT", help="An input larger than the context: error (exit 7) or truncate."),
]

OutputOption = Annotated[
    str, typer.Option("--output", "-o", metavar="FORMAT", help="text, json (one object) or ndjson (events).")
]
StatsFlag = Annotated[bool, typer.Option("--stats", help="Print tokens and speeds on stderr.")]

SamplingFlags = dict[str, Any]


def sampling_flags(
    temperature: float | None,
    top_k: int | None,
    top_p: float | None,
    min_p: float | None,
    repeat_penalty: float | None,
    seed: int | None,
) -> SamplingFlags:
    """The sampling flags that were given, by the names of the fields of `Sampling`."""
    given = {
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "repeat_penalty": repeat_penalty,
        "seed": seed,
    }
    return {name: value for name, value in given.items() if value is not None}


def sampling(model_name: str, flags: SamplingFlags) -> Sampling:
    """How to draw tokens: the flags, else the settings, else what the model's makers recommend, else llama.cpp's."""
    from localai import catalog

    known = catalog.resolve_name(model_name)
    chosen: dict[str, Any] = dict(known.sampling) if known else {}
    stored = settings.load()
    for name in ("temperature", "top_k", "top_p", "min_p", "repeat_penalty"):
        if stored[name].value is not None:
            chosen[name] = stored[name].value
    return Sampling(**{**chosen, **flags})


def check_choice(flag: str, value: str, choices: Collection[str]) -> None:
    """Raise UsageError for a value of `flag` that is none of its choices."""
    if value not in choices:
        raise UsageError(f"{flag} is {value!r}", f"it takes one of: {', '.join(choices)}")


def confirm_removal(question: str, unasked: str) -> None:
    """Ask whether to remove something, where `--yes` did not say so; `unasked` is the command that does it at once.

    Raises UsageError where nobody can be asked, Exit where the user would rather not.
    """
    answer = render.confirmed(question, default=False)
    if answer is None:
        raise UsageError("cannot ask whether to remove it: there is no terminal", unasked)
    if not answer:
        raise typer.Exit(ExitCode.FAILURE)


def setting(name: str, flag: Any) -> Any:
    """The flag where it was given, else the setting of that name."""
    return flag if flag is not None else settings.load()[name].value
