"""What a reader of an answer must know besides its figures."""

import math
from collections.abc import Iterator, Sequence
from statistics import median
from typing import Final

from reports.answer import Candidate
from reports.quantities import error_text, seconds_text
from reports.question import Budget, Question
from reports.records import Row

SIGNIFICAND_BITS: Final = {"float64": 53, "float32": 24, "float16": 11, "bfloat16": 8}

LATENCY_FACTOR: Final = 1.25
"""Above this share of the card's own time the latency is told."""


def notes_on(
    rows: Sequence[Row],
    candidates: Sequence[Candidate],
    ranked: Sequence[Candidate],
    question: Question,
    budget: Budget,
) -> Iterator[str]:
    """An error limit that nothing can keep, what the errors depend on, and how clean the rows are."""
    yield from rounding_note(candidates, question, budget)
    yield from _inputs_note(candidates)
    yield from _floor_note(candidates)
    if ranked and ranked[0].figures.noisy:
        yield f"the time of {ranked[0].label} is noisy: its interval did not settle within the time it was given"
    yield from _latency_note(ranked)
    commits = {row.commit for row in rows}
    if len(commits) > 1:
        yield f"the rows come from {len(commits)} commits; measure again to compare like with like"
    if any(row.dirty for row in rows):
        yield "some rows were measured with uncommitted changes"


def rounding_note(candidates: Sequence[Candidate], question: Question, budget: Budget) -> Iterator[str]:
    """An error limit that even exact variants break asks for more than the dtype can hold."""
    if budget.max_error is None:
        return
    errors = [one.figures.error.value for one in candidates if one.exact and one.figures.error is not None]
    if errors and min(errors) > budget.max_error:
        yield (
            f"an error of {budget.max_error:g} is below the rounding of {question.dtype}: "
            f"exact variants themselves stand {error_text(min(errors))} or more from exact attention here"
        )
    elif not errors and output_rounding(question.dtype) > budget.max_error:
        yield (
            f"an error of {budget.max_error:g} is below the rounding of {question.dtype}: "
            f"rounding the output alone costs {error_text(output_rounding(question.dtype))}"
        )


def output_rounding(dtype: str) -> float:
    """The relative error of an exact output that is rounded to a type: of significands even from 1 to 2, u / √7."""
    return float(2.0 ** -SIGNIFICAND_BITS[dtype] / math.sqrt(7))


def _latency_note(ranked: Sequence[Candidate]) -> Iterator[str]:
    """Where the host's launches take longer than the card's work, they are what an application waits for."""
    for one in ranked[:1]:
        seconds, latency, hot = one.figures.seconds, one.figures.latency_seconds, one.figures.hot_seconds
        if latency is None or latency.value <= LATENCY_FACTOR * seconds.value:
            continue
        graph = "" if hot is None else f"; replayed as a graph it takes {seconds_text(hot.value)}"
        yield (
            f"times are the card's own: the host waits {seconds_text(latency.value)} for a call of {one.label}, "
            f"launches included{graph}"
        )


def _floor_note(candidates: Sequence[Candidate]) -> Iterator[str]:
    """The error that any approximation must stay below, on each kind of input."""
    floors: dict[str, list[float]] = {}
    for one in candidates:
        if one.figures.mean_of_v_error is not None and one.figures.error_inputs is not None:
            floors.setdefault(one.figures.error_inputs, []).append(one.figures.mean_of_v_error.value)
    texts = [f"{error_text(median(known))} on {kind} inputs" for kind, known in sorted(floors.items())]
    if texts:
        yield f"the mean of V alone has an error of {' and '.join(texts)}: what is not closer approximates nothing"


def _inputs_note(candidates: Sequence[Candidate]) -> Iterator[str]:
    kinds = sorted({one.figures.error_inputs for one in candidates if one.figures.error_inputs is not None})
    if len(kinds) == 1:
        yield f"errors are those on {kinds[0]} inputs; they depend on the inputs, time and memory do not"
    elif kinds:
        yield f"errors are those on {' or '.join(kinds)} inputs, as the table says: they cannot be compared across"
