"""What no kernel can go below on a card, from the shape of the question alone: impossible budgets, proved.

Memory holds q, k, v and the output. A variant that reads all of them and writes the output moves so many bytes,
less what a cache may keep from call to call. Exact attention also multiplies over every visible pair, twice
forward and four times more backward; nothing else is counted, so that a floor is rather too low.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

from reports.cards import Card
from reports.quantities import digits, factor_text, milliseconds_text, seconds_text, size_text
from reports.question import Budget, Limit, Question

Scope = Literal["any", "exact"]

TRAINING_FACTOR: Final = 3
"""Six products instead of two, the scores not computed again."""


@dataclass(frozen=True, slots=True)
class Proof:
    """A limit that cannot be kept: by no variant at all (`any`), or by no exact one; the arithmetic as one line."""

    scope: Scope
    limit: Limit
    need: float
    allowed: float
    arithmetic: str


@dataclass(frozen=True, slots=True)
class Floors:
    """The least time and memory on a card; None where its figures do not say.

    `options_any` and `options_exact` are the nearest budget that the floors allow to any variant, and to an
    exact one: nothing promises that a variant reaches it.
    """

    card: str
    source: str
    size_bytes: int
    seconds_any: float
    seconds_exact: float | None
    arithmetic: tuple[str, ...]
    proofs: tuple[Proof, ...]
    options_any: str
    options_exact: str | None

    def proves(self, scope: Scope) -> bool:
        """Whether the budget is impossible for any variant, or for an exact one."""
        return any(proof.scope in ("any", scope) for proof in self.proofs)


def floors_of(question: Question, budget: Budget, card: Card) -> Floors:
    """The floors of a question on a card, and which of the limits they prove impossible."""
    moved = max(0, _moved_bytes(question) - card.cache_bytes)
    kept = max(0, question.input_output_bytes - card.cache_bytes)
    by_memory, all_memory = moved / card.bytes_per_second, kept / card.bytes_per_second
    peak = card.flop_per_second.get(question.dtype)
    by_flop = None if peak is None else exact_flop(question) / peak
    exact = None if by_flop is None else max(by_flop, all_memory)
    sizes = question.input_output_bytes
    memory_line = f"q, k, v and the output take {size_text(sizes)}" + (
        ", with their gradients" if question.mode == "training" else ""
    )
    any_line = _traffic_line(question, card, moved, by_memory)
    exact_line = _exact_line(question, card, by_flop, all_memory, kept)
    return Floors(
        card=card.name,
        source=card.source,
        size_bytes=sizes,
        seconds_any=by_memory,
        seconds_exact=exact,
        arithmetic=tuple(line for line in (memory_line, any_line, exact_line) if line),
        proofs=tuple(_proofs(budget, card, sizes, by_memory, exact, (memory_line, any_line, exact_line))),
        options_any=budget.raised_to({"time": by_memory, "memory": sizes}).options(),
        options_exact=None if exact is None else budget.raised_to({"time": exact, "memory": sizes}).options(),
    )


def exact_flop(question: Question) -> float:
    """FLOPs of exact attention: two products of head_dim over the visible pairs, six in training."""
    tokens = question.tokens
    pairs = tokens if question.mode == "decode" else tokens**2
    if question.causal and question.mode != "decode":
        pairs = tokens * (tokens + 1) // 2
    factor = TRAINING_FACTOR if question.mode == "training" else 1
    return 4 * question.batch * question.heads * question.head_dim * pairs * factor


def _moved_bytes(question: Question) -> int:
    """What every variant must move; in decode it may leave out most of the cache, so only q and the output count."""
    if question.mode == "decode":
        return question.input_output_bytes - question.shape.cache_bytes(question.tokens)
    return question.input_output_bytes


def _proofs(
    budget: Budget, card: Card, sizes: int, seconds: float, exact: float | None, lines: tuple[str, str, str]
) -> Iterator[Proof]:
    memory_line, any_line, exact_line = lines
    allowed = min(budget.max_bytes or card.memory_bytes, card.memory_bytes)
    if sizes > allowed:
        limit = "the limit" if allowed == budget.max_bytes else f"all of {card.name}"
        text = f"{memory_line}, {factor_text(sizes / allowed)} times {limit}: {size_text(allowed)}"
        yield Proof("any", "memory", sizes, allowed, text)
    most = budget.max_seconds
    if most is None:
        return
    if seconds > most:
        yield Proof("any", "time", seconds, most, f"{any_line}, {_times_limit(seconds, most)}")
    if exact is not None and exact > most:
        yield Proof("exact", "time", exact, most, f"{exact_line}, {_times_limit(exact, most)}")


def _times_limit(seconds: float, most: float) -> str:
    return f"{factor_text(seconds / most)} times the limit of {milliseconds_text(most)}"


def _traffic_line(question: Question, card: Card, moved: float, seconds: float) -> str:
    if not moved:
        return ""
    what = "q and the output" if question.mode == "decode" else "q, k, v and the output"
    return (
        f"moving {what} once, less {size_text(card.cache_bytes)} of cache: {moved:.3g} bytes at "
        f"{card.bytes_per_second:.3g} bytes/s take {seconds_text(seconds)} at least"
    )


def _exact_line(question: Question, card: Card, by_flop: float | None, by_memory: float, kept: float) -> str:
    if by_flop is None:
        return ""
    if by_memory > by_flop:
        return (
            f"exact attention reads every key and value: {kept:.3g} bytes at {card.bytes_per_second:.3g} bytes/s "
            f"take {seconds_text(by_memory)} at least"
        )
    peak = card.flop_per_second[question.dtype]
    return (
        f"exact attention multiplies {exact_flop(question):.3g} FLOP; at {digits(peak / 1e12)} TFLOP/s "
        f"of {question.dtype} it takes {seconds_text(by_flop)} at least"
    )
