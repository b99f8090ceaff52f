"""The benchmark of the choice: what it holds out, and that it sees a bad choice."""

from pathlib import Path

import pytest

import attnscape
from reports.choice_validation import regret_tables, validate_choice
from reports.records import ResultsError, Row, read
from tests.results_builder import DESCRIPTION, VARIANTS, as_rows, landscape, measured, write

MEASURED = Path(__file__).parent.parent / "reports" / "measured" / "cpu-cbcc8252b1"
LENGTHS = (256, 512, 1024, 2048, 4096)
SAME_SPEED = {"seconds_low": None, "seconds_high": None}


def rows(surprise: float = 1.0) -> list[Row]:
    """Every variant; at the last length the one that leads takes so much longer than all before it promises."""
    lines = []
    for variant in VARIANTS:
        for at in LENGTHS:
            late = surprise if (variant, at) == ("linear_scan/chunked", LENGTHS[-1]) else 1.0
            seconds = VARIANTS[variant][3] * (at / 1024) ** VARIANTS[variant][4] * late
            lines.append(measured(variant, at, figures={"seconds": seconds, **SAME_SPEED}))
    return as_rows(lines)


def test_predictable_curves_are_chosen_without_regret() -> None:
    report = validate_choice(rows(), DESCRIPTION, 40)
    whole, between, beyond = report.scores
    assert (whole.trials, between.trials, beyond.trials) == (160, 120, 40)
    assert whole.median_regret == whole.p95_regret == pytest.approx(1.0)
    assert whole.claims > 80
    assert whole.claims_held is not None and whole.claims_held >= 0.95


def test_what_loses_to_the_mean_of_v_is_no_answer_missed() -> None:
    fast = {"seconds": 1e-5, **SAME_SPEED}
    lines = [measured("local_window/tiled", at, figures=fast) for at in LENGTHS]
    others = [row for row in rows() if row.case.variant != "local_window/tiled"]
    report = validate_choice([*others, *as_rows(lines)], DESCRIPTION, 10)
    regrets = [trial.regret for trial in report.trials if trial.regret is not None]
    assert len(regrets) > 10 and max(regrets) < 50, "the window is a hundred times as fast"
    assert "linear_scan/chunked" in {trial.best for trial in report.trials}


def test_a_leader_that_falls_behind_is_seen() -> None:
    beyond = validate_choice(rows(surprise=10.0), DESCRIPTION, 100).scores[2]
    honest = validate_choice(rows(), DESCRIPTION, 100).scores[2]
    assert beyond.p95_regret is not None and beyond.p95_regret > 2
    assert beyond.claims_held is not None and honest.claims_held is not None
    assert beyond.claims_held < honest.claims_held


def test_held_out_rows_are_not_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    from reports import choice_validation

    seen: list[tuple[int, list[int]]] = []
    ours = choice_validation.choose

    def watched(kept: list[Row], question: object, *more: object, **named: object) -> object:
        seen.append((question.tokens, sorted({row.case.length for row in kept})))  # type: ignore[attr-defined]
        return ours(kept, question, *more, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(choice_validation, "choose", watched)
    validate_choice(rows(), DESCRIPTION, 1)
    once = [
        *((at, [other for other in LENGTHS if other != at]) for at in LENGTHS[1:-1]),
        (4096, [256, 512, 1024, 2048]),
    ]
    assert seen == [*once, *once], "for the budgets, and for the bands"


def test_bands_are_held_against_the_truth() -> None:
    def inside(surprise: float) -> float:
        report = validate_choice(rows(surprise), DESCRIPTION, 1)
        (found,) = [one for one in report.bands if (one.held_out, one.limit) == ("beyond", "time")]
        assert found.figures >= 4
        assert found.inside is not None
        return found.inside

    assert inside(1.0) == 1.0
    assert inside(10.0) < 1.0


def test_the_same_seed_draws_the_same_budgets() -> None:
    assert validate_choice(rows(), DESCRIPTION, 5) == validate_choice(rows(), DESCRIPTION, 5)
    assert validate_choice(rows(), DESCRIPTION, 5, seed=1) != validate_choice(rows(), DESCRIPTION, 5)


def test_too_few_lengths_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ResultsError, match="no shape was measured at three lengths"):
        validate_choice(as_rows(landscape([256, 512])), DESCRIPTION, 5)
    folder = str(write(tmp_path, landscape(LENGTHS)))
    assert attnscape.main(["validate-choice", "--results", folder, "--budgets", "0"]) == 2
    assert "--budgets must be positive, not 0" in capsys.readouterr().err
    assert attnscape.main(["validate-choice", "--results", folder, "--budgets", "5"]) == 0
    assert "Choices without the rows of a length, 1 shapes" in capsys.readouterr().out


def test_the_measured_choices_are_as_good_as_promised() -> None:
    """At least 100 budgets on the figures that this checkout ships."""
    found = read(MEASURED)
    whole = validate_choice(found.rows, found.description(), 30).scores[0]
    assert whole.compared >= 100
    assert whole.median_regret is not None and whole.p95_regret is not None and whole.claims_held is not None
    assert whole.median_regret <= 1.05
    assert whole.p95_regret <= 1.25
    assert whole.claims_held >= 0.90
    assert "held, %" in regret_tables(validate_choice(found.rows, found.description(), 3))[0].plain()  # type: ignore[union-attr]
