"""What a reader of an answer must know besides its figures."""

from collections.abc import Iterator, Sequence

from reports.answer import Candidate
from reports.quantities import BYTES_PER_MIB, error_text, mib_text
from reports.question import Budget, Question
from reports.records import Row


def notes_on(
    rows: Sequence[Row],
    candidates: Sequence[Candidate],
    ranked: Sequence[Candidate],
    question: Question,
    budget: Budget,
) -> Iterator[str]:
    """Limits that nothing can keep, what the errors depend on, and how clean the rows are."""
    floor = question.input_output_bytes
    if budget.max_bytes is not None and floor > budget.max_bytes:
        yield (
            f"no variant can keep the memory limit: q, k, v and the output alone are {mib_text(floor)} MiB "
            f"({budget.max_bytes / BYTES_PER_MIB:g} MiB allowed)"
        )
    yield from _rounding_note(candidates, question, budget)
    yield from _inputs_note(candidates)
    if ranked and ranked[0].figures.noisy:
        yield f"the time of {ranked[0].label} is noisy: its interval did not settle within the time it was given"
    commits = {row.commit for row in rows}
    if len(commits) > 1:
        yield f"the rows come from {len(commits)} commits; measure again to compare like with like"
    if any(row.dirty for row in rows):
        yield "some rows were measured with uncommitted changes"


def _rounding_note(candidates: Sequence[Candidate], question: Question, budget: Budget) -> Iterator[str]:
    """An error limit that even exact variants break asks for more than the dtype can hold."""
    errors = [one.figures.error.value for one in candidates if one.exact and one.figures.error is not None]
    if budget.max_error is not None and errors and min(errors) > budget.max_error:
        yield (
            f"an error of {budget.max_error:g} is below the rounding of {question.dtype}: "
            f"exact variants themselves stand {error_text(min(errors))} or more from exact attention here"
        )


def _inputs_note(candidates: Sequence[Candidate]) -> Iterator[str]:
    kinds = sorted({one.figures.error_inputs for one in candidates if one.figures.error_inputs is not None})
    if len(kinds) == 1:
        yield f"errors are those on {kinds[0]} inputs; they depend on the inputs, time and memory do not"
    elif kinds:
        yield f"errors are those on {' or '.join(kinds)} inputs, as the table says: they cannot be compared across"
