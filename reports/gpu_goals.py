"""The speeds that kernels on a card are expected to reach, held against measured rows."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from reports.records import Row
from reports.text_table import Table

EXACT_FLOPS: Final = 600e12
"""Forward, 16384 tokens, bfloat16, head size 128, causal, on an H200: FlashAttention 3 reaches about 670."""

WINDOW_SPEED_UP: Final = 10.0
"""Over the best full attention at 32768 tokens with a window of 2048; the arithmetic allows 16."""

LINEAR_FROM, LOW_RANK_FROM = 4096, 8192
"""Lengths from which on the variant is to be faster than the best exact one."""

LENGTHS: Final = (4096, 8192, 16384)
"""Where linear and low-rank kernels are planned beside the exact ones and another package's: each of them must hold."""

CARD: Final = "H200"
"""Part of the name of the card that the speeds are named for: another is held to none of them."""

HEADS: Final = 16
HEAD_DIM: Final = 128
DTYPE: Final = "bfloat16"


@dataclass(frozen=True, slots=True)
class Goal:
    """One goal: what was found, in words; None as `reached` where a figure is missing."""

    name: str
    wanted: str
    found: str
    reached: bool | None


def goals(rows: Iterable[Row], card: str) -> list[Goal]:
    """Every goal, reached or not; open without the figures that it needs, and on a `card` by another name."""
    known = [row for row in rows if _counts(row)]
    found = [
        _exact(known),
        _window(known),
        *(_faster(known, folder, LINEAR_FROM) for folder in ("linear_scan", "retention")),
        _faster(known, "blockwise_low_rank", LOW_RANK_FROM),
        *(_as_fast(known, folder) for folder in ("linear_scan", "retention")),
    ]
    if CARD in card:
        return found
    return [replace(goal, found=f"{goal.found}; named for an {CARD}", reached=None) for goal in found]


def _counts(row: Row) -> bool:
    case = row.case
    shape = (case.batch, case.heads, case.kv_heads, case.head_dim, case.dtype, case.causal, case.mode)
    wanted = (1, HEADS, HEADS, HEAD_DIM, DTYPE, True, "forward")
    return row.status == "ok" and row.seconds is not None and case.device.startswith("cuda") and shape == wanted


def _best(rows: Sequence[Row], tokens: int, wanted: Callable[[Row], bool]) -> Row | None:
    found = [row for row in rows if row.case.length == tokens and wanted(row)]
    return min(found, key=_seconds, default=None)


def _seconds(row: Row) -> float:
    assert row.seconds is not None
    return row.seconds


def _exact(rows: Sequence[Row]) -> Goal:
    name, wanted = "best exact variant, 16384 tokens", f"≥ {EXACT_FLOPS / 1e12:.0f} TFLOP/s"
    best = _best(rows, 16384, lambda row: row.exact)
    if best is None or best.useful_flops is None:
        return Goal(name, wanted, "not measured", None)
    flops = best.useful_flops / _seconds(best)
    return Goal(name, wanted, f"{flops / 1e12:.0f} TFLOP/s, {best.case.variant}", flops >= EXACT_FLOPS)


def _window(rows: Sequence[Row]) -> Goal:
    name, wanted = "window of 2048, 32768 tokens", f"≥ {WINDOW_SPEED_UP:.0f}× the best full attention"
    full = _best(rows, 32768, lambda row: row.exact)
    own = _best(
        rows, 32768, lambda row: row.case.variant == "local_window/triton" and 2048 in row.case.parameters.values()
    )
    if full is None or own is None:
        return Goal(name, wanted, "not measured", None)
    factor = _seconds(full) / _seconds(own)
    return Goal(name, wanted, f"{factor:.1f}× {full.case.variant}", factor >= WINDOW_SPEED_UP)


def _faster(rows: Sequence[Row], folder: str, start: int) -> Goal:
    own = f"{folder}/triton"
    factors = _factors(rows, own, lambda row: row.exact, start)
    name, wanted = f"{own}, {start} tokens and more", "faster than the best exact variant"
    return Goal(name, wanted, *_at_every_length(factors, start, lambda factor: factor > 1))


def _as_fast(rows: Sequence[Row], folder: str) -> Goal:
    own, other = f"{folder}/triton", f"{folder}/fla"
    factors = _factors(rows, own, lambda row: row.case.variant == other)
    return Goal(own, f"≥ 1× {other}, where it is installed", *_at_every_length(factors, 0, lambda factor: factor >= 1))


def _factors(rows: Sequence[Row], own: str, rival: Callable[[Row], bool], start: int = 0) -> dict[int, float]:
    """How many times as fast as its best rival a variant is, at each length from `start` on that both have."""
    factors = {}
    for length in sorted({row.case.length for row in rows if row.case.length >= start}):
        mine, other = _best(rows, length, lambda row: row.case.variant == own), _best(rows, length, rival)
        if mine is not None and other is not None:
            factors[length] = _seconds(other) / _seconds(mine)
    return factors


def _at_every_length(factors: dict[int, float], start: int, enough: Callable[[float], bool]) -> tuple[str, bool | None]:
    """The factors in words, and whether all are enough: open while one of the planned lengths is missing."""
    if not factors:
        return "not measured together", None
    missing = [length for length in LENGTHS if length >= start and length not in factors]
    found = ", ".join(f"{factor:.2f}× at {length}" for length, factor in factors.items())
    if missing:
        found += f"; not measured together at {', '.join(map(str, missing))}"
    reached = all(map(enough, factors.values()))
    return found, None if reached and missing else reached


def goals_table(found: Sequence[Goal]) -> Table:
    """One line for each goal."""
    words = {True: "reached", False: "missed", None: "open"}
    rows = tuple((goal.name, goal.wanted, goal.found, words[goal.reached]) for goal in found)
    title = f"Goals on an {CARD}: {DTYPE}, {HEADS} heads of {HEAD_DIM}, causal, forward, useful FLOPs"
    return Table(title, ("what", "goal", "measured", ""), rows)
