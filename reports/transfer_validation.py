"""How well rooflines carry measured times from card to card, on curves of the same shape."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import permutations
from statistics import median

from reports.cards import Card, CardError, Work, card_named, transfer
from reports.curve_file import KernelCurve, KernelShape
from reports.prediction import TimePrediction, Unpredictable
from reports.shape import ELEMENT_BYTES
from reports.text_table import Table


@dataclass(frozen=True, slots=True)
class TransferScore:
    """What holds from one card to another: as in `reports.model_validation.Score`; None where nothing was answered."""

    source: str
    target: str
    same_kernel: bool
    points: int
    answered: int
    median_error: float | None
    covered: float | None


def shape_work(shape: KernelShape, tokens: int) -> Work:
    """The work of exact attention: two products over the visible pairs; q, k, v read and the output written once."""
    flop = 4 * shape.batch * shape.heads * shape.head_dim * shape.visible_pairs(tokens)
    query_bytes = 2 * shape.heads * ELEMENT_BYTES.get(shape.dtype, 1)
    key_bytes = 2 * shape.kv_heads * ELEMENT_BYTES.get(shape.kv_dtype, 1)
    return Work(flop, shape.batch * tokens * shape.head_dim * (query_bytes + key_bytes))


def transfer_scores(curves: Iterable[KernelCurve]) -> list[TransferScore]:
    """The score of each pair of cards of the table with curves of one shape of full attention."""
    found: dict[tuple[str, str, bool], list[tuple[float, bool] | None]] = defaultdict(list)
    for one, other in _pairs(curves):
        source, target = card_named(one.shape.gpu), card_named(other.shape.gpu)
        same_kernel = one.shape.kernel == other.shape.kernel
        found[source.name, target.name, same_kernel] += _carried(one, other, source, target)
    return [_score(*key, points) for key, points in sorted(found.items())]


def _pairs(curves: Iterable[KernelCurve]) -> Iterator[tuple[KernelCurve, KernelCurve]]:
    """Curves of one shape on two known cards, either way."""
    same: dict[tuple[object, ...], list[KernelCurve]] = defaultdict(list)
    for curve in curves:
        shape = curve.shape
        if shape.window == 0 and _is_known(shape.gpu):
            same[shape.batch, shape.heads, shape.kv_heads, shape.head_dim, shape.dtype, shape.kv_dtype].append(curve)
    for group in same.values():
        yield from (pair for pair in permutations(group, 2) if pair[0].shape.gpu != pair[1].shape.gpu)


def _is_known(gpu: str) -> bool:
    try:
        card_named(gpu)
    except CardError:
        return False
    return True


def _carried(one: KernelCurve, other: KernelCurve, source: Card, target: Card) -> Iterator[tuple[float, bool] | None]:
    """Relative error, and whether the band holds, at each common length; None where it is refused."""
    for tokens in one.seconds.keys() & other.seconds.keys():
        seconds, truth = one.seconds[tokens], other.seconds[tokens]
        measured = TimePrediction(seconds, seconds, seconds, "measured")
        try:
            answer = transfer(measured, shape_work(one.shape, tokens), one.shape.dtype, source, target)
        except (Unpredictable, CardError):
            yield None
        else:
            yield abs(answer.seconds / truth - 1), answer.low <= truth <= answer.high


def _score(source: str, target: str, same_kernel: bool, points: Sequence[tuple[float, bool] | None]) -> TransferScore:
    answered = [point for point in points if point is not None]
    error = median(error for error, _ in answered) if answered else None
    covered = sum(inside for _, inside in answered) / len(answered) if answered else None
    return TransferScore(source, target, same_kernel, len(points), len(answered), error, covered)


def transfer_table(scores: Sequence[TransferScore]) -> Table | None:
    """One line for each pair of cards; None where there is none."""
    if not scores:
        return None
    header = ("from", "to", "kernel", "points", "answered", "median error, %", "in the band, %")
    rows = tuple(
        (one.source, one.target, "the same" if one.same_kernel else "another", str(one.points), str(one.answered))
        + tuple("–" if share is None else f"{100 * share:.1f}" for share in (one.median_error, one.covered))
        for one in scores
    )
    title = "Full attention carried to another card by the ratio of rooflines"
    return Table(title, header, rows, frozenset({3, 4, 5, 6}))
