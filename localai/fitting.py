"""From timings of synthetic models to the rates of a device: least squares, pure functions.

Writing a token takes W·r + R·p + N·c − k (W weights of a tensor type in R rows, N norms; k is saved by what the caches
still hold of the weights since the last token, as long for any model that is larger than they are). Models tell these
apart: of few wide layers, of many narrow ones, one that is little more than an output, one four times as large. First p
is the same for all types; then each has one of its own, as far from it as its own models say (`_of_its_own`).

Reading u tokens takes u(W·f + O·e) + u²/2·E·a, where O counts the numbers that the matrices and norms give, and E
the numbers of all heads' keys and values in all layers; what a cache of D tokens adds is D·E·a for each token. Of the
last layer's feed-forward a prompt needs the last token's alone, and llama.cpp computes no other: there W and O are
without it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations

from localai.domain.rates import DeviceRates

# Of the time that reading any model takes, so much at least is its weights': noise must not say that rows are all.
_LEAST_OF_WEIGHTS = 0.5
# How far timings are from what explains them, and how much rows of one type differ from those of others, by experience.
_NOISE, _ROWS_DIFFER = 0.03, 0.3


@dataclass(frozen=True, slots=True)
class Timing:
    """One synthetic model's: seconds to write one token and to read `tokens`, in an empty cache.

    `weights` without the output's `output_weights`; `read_weights` are those of them that every token of a prompt is
    multiplied with, `numbers` what those and the norms give, `rows` the rows of all, with the output's. `read_s` is 0
    where it was not measured. `deep`, where measured: a depth, and the same two figures there. `head_numbers` are those
    of all heads' keys and values in all layers, `head_length` those of one.
    """

    kind: str
    layers: int
    norms: int
    rows: int
    numbers: int
    head_numbers: int
    head_length: int
    weights: int
    read_weights: int
    output_weights: int
    tokens: int
    write_s: float
    read_s: float
    deep: tuple[int, float, float] | None = None


def fit(timings: Sequence[Timing], experts: Timing | None = None, writing: Sequence[Timing] = ()) -> DeviceRates:
    """The rates that explain the timings best, each relative to its own size; none is negative.

    Every kind needs at least one timing, one of them two of different layers. Of `writing`, models of many rows for
    their weights and larger ones, only that counts. Raises ValueError for no timings at all.
    """
    if not timings:
        raise ValueError("there are no timings to fit")
    deep = [(each, *each.deep) for each in timings if each.deep is not None]
    of_reading = [(each.tokens * depth * each.head_numbers, read - each.read_s) for each, depth, _, read in deep]
    attention_read = _slope(of_reading)
    of_writing: dict[int, list[tuple[float, float]]] = {}
    for each, depth, write, _ in deep:
        heads = each.head_numbers / each.head_length
        of_writing.setdefault(each.head_length, []).append((depth * heads, write - each.write_s))
    kinds = sorted({each.kind for each in timings})
    written = [each for each in (*timings, *writing) if each.kind in kinds]
    together, (row_s, norm_s, kept_s) = _rates(
        kinds,
        [
            (each.kind, each.weights + each.output_weights, (each.rows, each.norms, -1.0), each.write_s)
            for each in written
        ],
    )
    alone = [
        _of_its_own((rate, row_s), norm_s, kept_s, [each for each in written if each.kind == kind])
        for kind, rate in zip(kinds, together, strict=True)
    ]
    read_rates, number_s = _reading(kinds, timings, attention_read)
    rates = DeviceRates(
        tuple((kind, rate) for kind, (rate, _) in zip(kinds, alone, strict=True)),
        tuple(zip(kinds, read_rates, strict=True)),
        tuple((kind, row) for kind, (_, row) in zip(kinds, alone, strict=True)),
        tuple((length, _slope(points)) for length, points in sorted(of_writing.items())),
        number_s,
        norm_s,
        kept_s,
        attention_read,
    )
    return rates if experts is None else _with_experts(rates, experts)


def _of_its_own(
    shared: tuple[float, float], norm_s: float, kept_s: float, timings: Sequence[Timing]
) -> tuple[float, float]:
    """Seconds a weight and a row of one type: the likeliest by its timings, if rows are about as slow as others' are.

    Least squares of two unknowns, with the shared row as one more equation; the shared rates where one would be
    negative.
    """
    row = shared[1]
    if not row or len(timings) < 2:
        return shared
    equations = [
        ((each.weights + each.output_weights) / t, each.rows / t, (each.write_s - each.norms * norm_s + kept_s) / t)
        for each in timings
        if (t := each.write_s * _NOISE) > 0
    ]
    equations.append((0.0, 1 / (_ROWS_DIFFER * row), 1 / _ROWS_DIFFER))
    aa, ab, bb = (sum(each[i] * each[j] for each in equations) for i, j in ((0, 0), (0, 1), (1, 1)))
    ac, bc = (sum(each[i] * each[2] for each in equations) for i in (0, 1))
    both = aa * bb - ab * ab
    if both <= 1e-9 * aa * bb:
        return shared
    own = (ac * bb - bc * ab) / both, (bc * aa - ac * ab) / both
    return own if min(own) >= 0 else shared


def _with_experts(rates: DeviceRates, found: Timing) -> DeviceRates:
    """The rates with those of a mixture's layers, whose `weights` are the ones that a token uses."""
    write, read, row = (dict(each).get(found.kind) for each in (rates.decode, rates.prompt, rates.row))
    if write is None or read is None or row is None:
        return rates
    beside = found.write_s + rates.kept_s - (found.weights + found.output_weights) * write - found.rows * row
    layer = beside / found.layers
    rows = found.tokens * found.numbers * rates.number_s
    attention = rates.attention_prompt_s * found.head_numbers * found.tokens**2 / 2
    slower = (found.read_s - rows - attention) / (found.tokens * found.read_weights * read)
    return replace(rates, expert_layer_s=max(layer, 2 * rates.norm_s), expert_prompt=max(slower, 1.0))


def _reading(kinds: Sequence[str], timings: Sequence[Timing], attention_s: float) -> tuple[list[float], float]:
    """Seconds a weight of each kind, and a number that a matrix gives, of reading."""
    left = []
    for each in timings:
        attention = attention_s * each.head_numbers * each.tokens**2 / 2
        left.append((each, max(0.2 * each.read_s, each.read_s - attention)))
    points = [
        (each.kind, each.tokens * each.read_weights, (each.tokens * each.numbers,), seconds) for each, seconds in left
    ]
    weights, (row,) = _rates(kinds, points)
    most = (1 - _LEAST_OF_WEIGHTS) * min((seconds / rows for _, _, (rows,), seconds in points if rows), default=0.0)
    if row <= most:
        return weights, row
    without = [(kind, many, (), seconds - rows * most) for kind, many, (rows,), seconds in points]
    return _rates(kinds, without)[0], most


def _slope(points: Sequence[tuple[float, float]]) -> float:
    """The line through the origin nearest to the points, never falling."""
    squares = sum(x * x for x, _ in points)
    return max(0.0, sum(x * y for x, y in points) / squares) if squares else 0.0


_Point = tuple[str, float, tuple[float, ...], float]  # kind, weights of it, what else there is, seconds


def _rates(kinds: Sequence[str], points: Sequence[_Point]) -> tuple[list[float], tuple[float, ...]]:
    """r of each kind, and the x that all share, of t = W·r + others·x, by relative least squares.

    Of the solutions with and without each x the nearest one in which nothing is negative.
    """
    import numpy

    known = [each for each in points if each[3] > 0]
    others = len(points[0][2]) if points else 0
    if not known:
        return [0.0] * len(kinds), (0.0,) * others
    rows = [[*(weights * (kind == each) for each in kinds), *more] for kind, weights, more, _ in known]
    whole = numpy.array(rows) / numpy.array([[seconds] for *_, seconds in known])
    shared = range(len(kinds), len(kinds) + others)
    found: list[tuple[float, list[float]]] = []
    for left_out in (set(each) for many in range(others + 1) for each in combinations(shared, many)):
        kept = [column for column in range(len(kinds) + others) if column not in left_out]
        scale = numpy.abs(whole[:, kept]).max(axis=0, initial=1e-300)  # weights are millions, layers a few
        solution = numpy.linalg.lstsq(whole[:, kept] / scale, numpy.ones(len(known)), rcond=1e-9)[0] / scale
        if (solution >= 0).all():
            far = float(((whole[:, kept] @ solution - 1) ** 2).sum())
            every = numpy.zeros(len(kinds) + others)
            every[kept] = solution
            found.append((far, every.tolist()))
    rates = min(found)[1]  # without the others it is a slope for each kind, and that is never negative
    return rates[: len(kinds)], tuple(rates[len(kinds) :])
