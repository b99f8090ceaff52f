"""How well the cost model predicts measured curves: fitted to short lengths, held against long ones."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Final

import numpy as np

from reports.cost_model import TimeModel, Unpredictable, calibrated
from reports.curve_file import KernelCurve, KernelShape, ValidationInputError, read_curves
from reports.prediction import FURTHEST, Refusal
from reports.text_table import Table
from reports.transfer_validation import TransferScore, transfer_scores, transfer_table

CUT_TOKENS: Final = 4096


@dataclass(frozen=True, slots=True)
class Held:
    """One measured point that the model had not seen; without a prediction, `refusal` says why not."""

    shape: KernelShape
    tokens: int
    cut: int
    seconds: float
    predicted: float | None = None
    low: float | None = None
    high: float | None = None
    refusal: Refusal | None = None

    @property
    def error(self) -> float | None:
        """The relative error of the prediction, positive where it is too long."""
        return None if self.predicted is None else self.predicted / self.seconds - 1

    @property
    def inside(self) -> bool:
        """Whether the measured time is in the band."""
        return self.low is not None and self.high is not None and self.low <= self.seconds <= self.high


@dataclass(frozen=True, slots=True)
class Score:
    """What holds for a group of points: errors are relative and without sign, of the answered points.

    `covered` is the share of the answered points that lie in their band. None where nothing was answered.
    """

    group: str
    points: int
    answered: int
    median_error: float | None
    p90_error: float | None
    mean_error: float | None
    covered: float | None


@dataclass(frozen=True, slots=True)
class ValidationReport:
    """Every held-out point of a file, with the scores by group and the refusals by reason."""

    path: str
    cut: int
    lengths: tuple[int, ...]
    curves: int
    held: tuple[Held, ...]
    scores: dict[str, tuple[Score, ...]]
    refusals: dict[Refusal, int]
    transfers: tuple[TransferScore, ...]


def validate_model(path: Path, cut: int = CUT_TOKENS, lengths: Sequence[int] | None = None) -> ValidationReport:
    """Fit each curve of a file to its points at `cut` tokens and below, and score it at `lengths`.

    Lengths are by default twice and four times the cut. Raises `ValidationInputError`.
    """
    asked = tuple(lengths) if lengths is not None else (2 * cut, FURTHEST * cut)
    if cut < 1:
        raise ValidationInputError(f"the cut must be at least 1 token, not {cut}")
    if not asked or min(asked) <= cut:
        raise ValidationInputError(f"lengths to score must be beyond the cut, {cut} tokens")
    curves = read_curves(path)
    held = tuple(hold_out(curves, cut, asked))
    if not held:
        texts = " or ".join(map(str, asked))
        raise ValidationInputError(f"{path} has no curve with points up to {cut} tokens and one at {texts}")
    refusals = Counter(point.refusal for point in held if point.refusal)
    return ValidationReport(
        path=str(path),
        cut=cut,
        lengths=asked,
        curves=len(curves),
        held=held,
        scores=_scores(held),
        refusals=dict(refusals.most_common()),
        transfers=tuple(transfer_scores(curves)),
    )


def hold_out(curves: Iterable[KernelCurve], cut: int, lengths: Iterable[int]) -> Iterator[Held]:
    """Predictions of the lengths that were measured, from the points up to the cut.

    The bands of each card are calibrated on its curves up to the cut.
    """
    asked = tuple(lengths)
    by_card: dict[str, list[KernelCurve]] = defaultdict(list)
    for curve in curves:
        if min(curve.seconds) <= cut:
            by_card[curve.shape.gpu].append(curve)
    for same in by_card.values():
        models = calibrated(_model(curve, cut) for curve in same)
        for curve, model in zip(same, models, strict=True):
            yield from (_held(model, curve, tokens, cut) for tokens in asked if tokens in curve.seconds)


def _model(curve: KernelCurve, cut: int) -> TimeModel:
    seen = {tokens: seconds for tokens, seconds in curve.seconds.items() if tokens <= cut}
    return TimeModel.fit(tokens=[*seen], seconds=[*seen.values()], visible_pairs=curve.shape.visible_pairs)


def _held(model: TimeModel, curve: KernelCurve, tokens: int, cut: int) -> Held:
    seconds = curve.seconds[tokens]
    try:
        answer = model.predict(tokens)
    except Unpredictable as refusal:
        return Held(curve.shape, tokens, cut, seconds, refusal=refusal.kind)
    return Held(curve.shape, tokens, cut, seconds, answer.seconds, answer.low, answer.high)


def score(group: str, held: Sequence[Held]) -> Score:
    """The score of a group of points."""
    errors = [abs(point.error) for point in held if point.error is not None]
    if not errors:
        return Score(group, len(held), 0, None, None, None, None)
    covered = sum(point.inside for point in held) / len(errors)
    p90 = float(np.quantile(errors, 0.9))
    return Score(group, len(held), len(errors), median(errors), p90, sum(errors) / len(errors), covered)


_GROUPS: Final[dict[str, Callable[[Held], str | int]]] = {
    "length": lambda point: f"{point.tokens / point.cut:g} × the cut",
    "gpu": lambda point: point.shape.gpu,
    "kernel": lambda point: point.shape.kernel,
    "window": lambda point: point.shape.window,
}


def _scores(held: Sequence[Held]) -> dict[str, tuple[Score, ...]]:
    scores: dict[str, tuple[Score, ...]] = {"all": (score("all", held),)}
    for name, key in _GROUPS.items():
        groups = sorted({key(point) for point in held})
        scores[name] = tuple(score(str(one), [point for point in held if key(point) == one]) for one in groups)
    return scores


def report_tables(report: ValidationReport) -> list[Table]:
    """The scores, the refusals, and how times carried over from card to card; the last two where there are any."""
    lengths = " and ".join(map(str, report.lengths))
    title = f"{report.curves} curves, fitted at tokens ≤ {report.cut}, held against {lengths}; errors in %"
    header = ("by", "group", "points", "answered", "median", "90th percentile", "mean", "in the band, %")
    rows = tuple(_row(name, one) for name, scores in report.scores.items() for one in scores)
    tables = [Table(title, header, rows, frozenset(range(2, 8)))]
    if report.refusals:
        lines = tuple((reason, str(count)) for reason, count in report.refusals.items())
        tables.append(Table("Not answered", ("reason", "points"), lines, frozenset({1})))
    carried = transfer_table(report.transfers)
    return tables if carried is None else [*tables, carried]


def _row(name: str, one: Score) -> tuple[str, ...]:
    shares = (one.median_error, one.p90_error, one.mean_error, one.covered)
    figures = ("–" if share is None else f"{100 * share:.1f}" for share in shares)
    return (name if name != one.group else "", one.group, str(one.points), str(one.answered), *figures)
