"""The speeds that kernels on a card are expected to reach, held against measured rows."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from reports.records import Row
from reports.text_table import Table

EXACT_FLOPS: Final = 600e12
"""Forward, 16384 tokens, bfloat16, head size 128, causal, on an H200: FlashAttention 3 reaches about 670."""

WINDOW_SPEED_UP: Final = 10.0
"""Over the best full attention at 32768 tokens with a window of 2048; the arithmetic allows 16."""

LINEAR_FROM, LOW_RANK_FROM = 4096, 8192
"""Lengths from which on the variant is to be faster than the best exact one."""

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


def goals(rows: Iterable[Row]) -> list[Goal]:
    """Every goal, reached or not, or without the figures that it needs."""
    known = [row for row in rows if _counts(row)]
    return [
        _exact(known),
        _window(known),
        *(
            _faster(known, folder, start)
            for folder, start in (("linear_scan", LINEAR_FROM), ("retention", LINEAR_FROM))
        ),
        _faster(known, "blockwise_low_rank", LOW_RANK_FROM),
        *(_as_fast(known, folder) for folder in ("linear_scan", "retention")),
    ]


def _counts(row: Row) -> bool:
    case = row.case
    shape = (case.batch, case.heads, case.head_dim, case.dtype, case.causal, case.mode)
    wanted = (1, HEADS, HEAD_DIM, DTYPE, True, "forward")
    return row.status == "ok" and row.seconds is not None and case.device.startswith("cuda") and shape == wanted


def _best(rows: Sequence[Row], tokens: int, wanted: Callable[[Row], bool]) -> Row | None:
    found = [row for row in rows if row.case.length == tokens and wanted(row)]
    return min(found, key=_seconds, default=None)


def _seconds(row: Row) -> float:
    assert row.seconds is not None
    return row.seconds


def _folder(row: Row) -> str:
    return row.case.variant.partition("/")[0]


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
    name, wanted = f"{folder}, {start} tokens and more", "faster than the best exact variant"
    lengths = sorted({row.case.length for row in rows if _folder(row) == folder and row.case.length >= start})
    factors = {}
    for length in lengths:
        exact = _best(rows, length, lambda row: row.exact)
        own = _best(rows, length, lambda row: _folder(row) == folder)
        if exact is not None and own is not None:
            factors[length] = _seconds(exact) / _seconds(own)
    if start not in factors:
        return Goal(name, wanted, "not measured", None)
    found = ", ".join(f"{factor:.2f}× at {length}" for length, factor in factors.items())
    return Goal(name, wanted, found, all(factor > 1 for factor in factors.values()))


def _as_fast(rows: Sequence[Row], folder: str) -> Goal:
    name, wanted = f"{folder}/triton", f"≥ 1× {folder}/fla, wherever both are"
    factors = {}
    for length in sorted({row.case.length for row in rows}):
        own = _best(rows, length, lambda row: row.case.variant == f"{folder}/triton")
        other = _best(rows, length, lambda row: row.case.variant == f"{folder}/fla")
        if own is not None and other is not None:
            factors[length] = _seconds(other) / _seconds(own)
    if not factors:
        return Goal(name, wanted, "not measured together", None)
    found = ", ".join(f"{factor:.2f}× at {length}" for length, factor in factors.items())
    return Goal(name, wanted, found, all(factor >= 1 for factor in factors.values()))


def goals_table(found: Sequence[Goal]) -> Table:
    """One line for each goal."""
    words = {True: "reached", False: "missed", None: "open"}
    rows = tuple((goal.name, goal.wanted, goal.found, words[goal.reached]) for goal in found)
    title = f"Goals on the card: {DTYPE}, {HEADS} heads of {HEAD_DIM}, causal, forward, useful FLOPs"
    return Table(title, ("what", "goal", "measured", ""), rows)
