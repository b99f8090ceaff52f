"""An answer as sentences and tables for a terminal."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

import msgspec

from reports.answer import COMPARED_ONLY, Answer, Candidate, Crossover, Nearest, Rejected, Relaxation
from reports.curve import Figures
from reports.floors import Floors
from reports.interpolation import Figure, Provenance
from reports.processor import processor_name
from reports.quantities import (
    BYTES_PER_MIB,
    digits,
    error_text,
    factor_text,
    interval_text,
    mib_text,
    milliseconds_text,
    percent_text,
    seconds_text,
    size_text,
)
from reports.question import Budget, Limit
from reports.text_table import Table

MARKS: Final[dict[Provenance, str]] = {"measured": "", "interpolated": "~", "extrapolated": "^", "transferred": "@"}
"""Stand before every figure that was not measured itself."""

LOSES: Final = "no better than mean"
"""Marks an approximation whose error is not below that of the mean of V."""

_HEADER: Final = (
    "variant",
    "time",
    "band",
    "MiB total",
    "MiB extra",
    "joules",
    "error",
    "approx.",
    "implem.",
    "inputs",
    "ratio",
    "kernel",
    "marks",
)
_TEXTS: Final = ("variant", "inputs", "kernel", "marks")
_NOTHING: Final = "-"


def answer_blocks(answer: Answer, machine: dict[str, Any]) -> list[str | Table]:
    """Everything an answer holds, in reading order: the question, the advice, the tables, the reasons."""
    blocks: list[str | Table] = [_question_text(answer, machine), "\n".join(_advice(answer))]
    if answer.floors is not None and answer.floors.proofs:
        blocks.append("\n".join(_floor_lines(answer.floors)))
    if answer.fitting:
        blocks.append(_figures_table("Fits, best first", answer.fitting))
    known = [one for one in answer.rejected if one.figures is not None]
    compared = [one for one in known if COMPARED_ONLY in one.reasons]
    for title, entries in (
        ("Breaks a limit, fastest first", [one for one in known if one not in compared]),
        ("Not attention, for comparison", compared),
    ):
        if entries:
            blocks.append(_figures_table(title, entries))
    if answer.rejected:
        reasons = tuple((one.label, reason.text) for one in answer.rejected for reason in one.reasons)
        blocks.append(Table("Rejected, with every reason", ("variant", "reason"), reasons))
    blocks.append("\n".join(_footnotes(answer)))
    return blocks


def answer_json(answer: Answer) -> str:
    """The answer as one JSON document; seconds, bytes and relative errors."""
    return msgspec.json.format(msgspec.json.encode(answer), indent=2).decode()


def _question_text(answer: Answer, machine: dict[str, Any]) -> str:
    question = answer.question
    limits = _limits_text(answer.budget)
    where = f"machine {answer.machine}" + (f" ({processor_name(machine)})" if machine else "")
    places = [f"measured on {where}"] if answer.machine is not None else []
    places += [f"asked for {answer.card}"] if answer.card is not None else []
    return f"{question.tokens} tokens, {question.shape.describe()}\n{'; '.join([limits, *places])}"


def _limits_text(budget: Budget) -> str:
    texts = []
    if budget.max_seconds is not None:
        texts.append(milliseconds_text(budget.max_seconds))
    if budget.max_bytes is not None:
        texts.append(f"{_memory_limit(budget.max_bytes)} with inputs and outputs")
    if budget.max_error is not None:
        texts.append(f"an error of {budget.max_error:g} against exact attention")
    return "At most " + ", ".join(texts) if texts else "No limits"


def _memory_limit(size_bytes: float) -> str:
    """In MiB, and in GiB too where that is the unit at hand."""
    text = f"{size_bytes / BYTES_PER_MIB:g} MiB"
    return text if size_bytes < 2**30 else f"{size_text(size_bytes)} ({text})"


def _advice(answer: Answer) -> Iterator[str]:
    if answer.fitting:
        yield from _winner_lines(answer)
    else:
        yield _NOTHING_FITS[answer.outcome]
        maybe = [one.label for one in answer.rejected if one.may_fit]
        if maybe:
            yield f"Inside their bands, these may: {', '.join(maybe)}."
    if answer.nearest is not None:
        yield from _nearest_lines(answer.nearest, answer.fits)
    if answer.binding is not None:
        alone = answer.binding.alone
        kept = f"it alone keeps out {', '.join(alone)}" if alone else f"it rejects {answer.binding.rejected} variants"
        used = f"; the advice uses {percent_text(answer.binding.used)} of it" if answer.binding.used else ""
        yield f"The {answer.binding.limit} limit binds: {kept}{used}."
    yield from map(_crossover_text, answer.crossovers)


_NOTHING_FITS: Final = {
    "nothing fits": "Nothing fits.",
    "impossible": "Nothing fits, and nothing can: that is proved below.",
    "unknown": "Nothing is known to fit: no variant has figures here.",
}


def _winner_lines(answer: Answer) -> Iterator[str]:
    first, *others = answer.fitting
    yield f"{'Likely take' if first.doubts else 'Take'} {first.label}: {_summary(first.figures)}."
    yield from _mean_lines(first, others)
    for doubt in first.doubts:
        yield f"It need not fit: it {doubt.text}."
    sure = next((one for one in others if not one.doubts), None)
    if first.doubts and sure is not None:
        yield f"The fastest that surely fits is {sure.label}: {_summary(sure.figures)}."
    same = [one for one in others if one.beats_mean == first.beats_mean and bool(one.doubts) == bool(first.doubts)]
    tied = [one.label for one in same if one.tied and first.tied]
    if tied:
        yield f"It ties within the noise with {', '.join(tied)}" + ("; an exact one leads." if first.exact else ".")


def _mean_lines(first: Candidate, others: Sequence[Candidate]) -> Iterator[str]:
    """Whether the advice approximates attention at all, and what is faster but does not."""
    if not first.beats_mean:
        floor = _figure_text(first.figures.mean_of_v_error, error_text)
        yield f"It is no better than the mean of V, whose error is {floor}: here it approximates nothing."
        return
    faster = [one for one in others if one.figures.seconds.value < first.figures.seconds.value and not one.beats_mean]
    if faster:
        yield f"Faster, but no better than the mean of V: {', '.join(one.label for one in faster)}."


def _floor_lines(floors: Floors) -> Iterator[str]:
    """Each proof with its arithmetic, and the nearest budgets that the floors leave open."""
    names = {"any": "No variant at all", "exact": "No exact attention"}
    for proof in floors.proofs:
        yield f"{names[proof.scope]} can keep the {proof.limit} limit on {floors.card}: {proof.arithmetic}."
    yield f"The arithmetic is that of {floors.source}. The nearest budgets that it leaves open, reached or not:"
    yield f"  some variant: {floors.options_any}"
    if floors.options_exact is not None:
        yield f"  exact attention: {floors.options_exact}"


def _summary(figures: Figures) -> str:
    parts = [_figure_text(figures.seconds, seconds_text)]
    if figures.total_bytes is not None:
        parts.append(f"{_figure_text(figures.total_bytes, mib_text)} MiB in total")
    if figures.error is not None:
        parts.append(f"error {_figure_text(figures.error, error_text)} on {figures.error_inputs} inputs")
    return ", ".join(parts)


def _nearest_lines(nearest: Nearest, fits: bool) -> Iterator[str]:
    if nearest.joint is None:
        yield "No budget helps: no variant has all the figures that these limits ask for."
        return
    yield "To be sure, the nearest budgets:"
    yield from _budget_lines(nearest.alone, nearest.joint)
    likely = (nearest.likely_alone, nearest.likely_joint)
    if not fits and likely != (nearest.alone, nearest.joint):
        yield "The nearest budgets that something likely fits:"
        yield from _budget_lines(*likely)


def _budget_lines(alone: Mapping[Limit, Relaxation | None], joint: Relaxation | None) -> Iterator[str]:
    for limit, relaxation in alone.items():
        text = "no rise of it helps" if relaxation is None else _relaxation_text(relaxation)
        yield f"  {limit} alone: {text}"
    if joint is not None and len(alone) > 1:
        yield f"  all together: {_relaxation_text(joint)}"


def _relaxation_text(relaxation: Relaxation) -> str:
    return f"{relaxation.options}  (at most {factor_text(relaxation.factor)} times as much: {relaxation.label})"


def _crossover_text(crossover: Crossover) -> str:
    span = f"{crossover.shortest} to {crossover.longest} tokens"
    if crossover.tokens is None:
        slower = crossover.rival if crossover.above == crossover.winner else crossover.winner
        known = "measured" if crossover.provenance != "extrapolated" else "known"
        return f"No crossover: {crossover.above} is faster than {slower} at every {known} length, {span}."
    return (
        f"Crossover at {MARKS[crossover.provenance]}{crossover.tokens} tokens: "
        f"{crossover.below} is faster below, {crossover.above} above (known from {span})."
    )


def _figures_table(title: str, entries: Sequence[Candidate | Rejected]) -> Table:
    """One row per entry; columns that hold nothing are left out, and that of the inputs where all are the same."""
    rows = [_row(entry, entry.figures) for entry in entries if entry.figures is not None]
    kept = [index for index in range(len(_HEADER)) if any(row[index] not in ("", _NOTHING) for row in rows)]
    inputs = _HEADER.index("inputs")
    if len({row[inputs] for row in rows} - {_NOTHING}) == 1:
        kept.remove(inputs)
    return Table(
        title,
        tuple(_HEADER[index] for index in kept),
        tuple(tuple(row[index] for index in kept) for row in rows),
        frozenset(place for place, index in enumerate(kept) if _HEADER[index] not in _TEXTS),
    )


def _row(entry: Candidate | Rejected, figures: Figures) -> tuple[str, ...]:
    return (
        entry.label,
        _figure_text(figures.seconds, seconds_text),
        interval_text(figures.seconds.least, figures.seconds.most),
        _figure_text(figures.total_bytes, mib_text),
        _figure_text(figures.extra_bytes, mib_text),
        _figure_text(figures.energy_joules, digits),
        _figure_text(figures.error, error_text),
        "exact" if entry.exact else _figure_text(figures.approximation_error, error_text),
        _figure_text(figures.implementation_error, error_text),
        (figures.error_inputs or _NOTHING) if figures.error is not None else _NOTHING,
        _figure_text(figures.ratio, digits),
        figures.kernel or _NOTHING,
        ", ".join(_marks(entry, figures)),
    )


def _marks(entry: Candidate | Rejected, figures: Figures) -> Iterator[str]:
    if not entry.exact and not figures.beats_mean:
        yield LOSES
    if isinstance(entry, Candidate) and entry.tied:
        yield "tie"
    if figures.noisy:
        yield "noisy"
    if isinstance(entry, Candidate) and entry.doubts:
        yield "likely"
    if isinstance(entry, Rejected) and entry.may_fit:
        yield "may fit"


def _figure_text(figure: Figure | None, text: Callable[[float], str]) -> str:
    return _NOTHING if figure is None else _mark(figure) + text(figure.value)


def _mark(figure: Figure) -> str:
    return MARKS[figure.provenance]


def _footnotes(answer: Answer) -> Iterator[str]:
    """What the marks and columns mean, then the notes."""
    entries: list[Candidate | Rejected] = [*answer.fitting, *answer.rejected]
    shown = [one.figures for one in entries if one.figures is not None]
    yield from _provenance_lines(answer, shown)
    baselines = sorted({figures.baseline for figures in shown if figures.baseline})
    if baselines:
        yield f"ratio: time over that of {', '.join(baselines)} in the same rounds."
    if shown:
        yield "band: 95 % interval of a measured time; of others, where 90 % of such times are expected."
        yield "error: against exact attention, both kinds together. MiB extra: beyond inputs and outputs."
        yield "approx.: the definition against exact attention. implem.: the variant against its own definition."
    yield from (note[0].upper() + note[1:] + "." for note in answer.notes)


def _provenance_lines(answer: Answer, shown: Sequence[Figures]) -> Iterator[str]:
    """Where the times come from."""
    tokens = answer.question.tokens
    for below, above in sorted({figures.between for figures in shown}):
        if below == above:
            yield f"Time and memory were measured at {below} tokens."
        elif tokens > above:
            mark = MARKS["extrapolated"]
            yield f"{mark} is extrapolated; time and memory from the measured {below} to {above} tokens."
        else:
            mark = MARKS["interpolated"]
            yield f"{mark} is interpolated; time and memory between the measured {below} and {above} tokens."
    if any(one.error is not None and one.error.provenance == "interpolated" for one in shown):
        yield f"{MARKS['interpolated']} before an error: interpolated between the nearest lengths with errors."
    if answer.card is not None and shown:
        yield f"{MARKS['transferred']} is transferred to {answer.card} by the ratio of rooflines."
