"""Figures beyond measured lengths and on other cards: bands, refusals, where pairs come from."""

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from benchmarks.declarations import declared_costs
from reports.answer import Answer, Candidate
from reports.calibration import own_score, pooled_quantile, spread
from reports.cards import Work, card_named
from reports.choice import Budget, Question, choose
from reports.cost_model import TimeModel, calibrated
from reports.curve import Unavailable, curves
from reports.declared_costs import DeclaredCosts, declare_nothing
from reports.interpolation import Figure, OutOfRange, error_at, error_beyond
from reports.records import Row
from reports.shape import Shape
from tests import results_builder as builder
from tests.results_builder import BASELINE, DESCRIPTION, as_rows, failed, landscape, measured

LENGTHS = (256, 512, 1024, 2048, 4096)
LANDSCAPE = as_rows(landscape(LENGTHS))
SHAPE = Question(256).shape


def ask(rows: list[Row], tokens: int, budget: Budget | None = None, **more: Any) -> Answer:
    return choose(rows, Question(tokens), budget or Budget(), **more)


def named(answer: Answer, variant: str) -> Candidate:
    (found,) = [one for one in answer.fitting if one.variant == variant]
    return found


def reason(answer: Answer, variant: str) -> str:
    return "; ".join(one.text for out in answer.rejected if out.variant == variant for one in out.reasons)


# ---- beyond the last length


def test_times_and_memory_are_extrapolated_with_bands() -> None:
    figures = named(ask(LANDSCAPE, 16384), BASELINE).figures
    assert (figures.seconds.provenance, figures.between) == ("extrapolated", (256, 4096))
    assert figures.seconds.value == pytest.approx(0.010 * 16**2, rel=0.02)
    assert figures.seconds.least < 0.010 * 16**2 < figures.seconds.most
    assert figures.total_bytes is not None and figures.extra_bytes is not None
    assert figures.total_bytes.value == pytest.approx(16384 * (300 + 4 * 8 * 64 * 4), rel=1e-3)
    assert figures.extra_bytes.value == pytest.approx(16384 * 300, rel=1e-2)
    assert figures.total_bytes.provenance == figures.extra_bytes.provenance == "extrapolated"
    assert figures.error is not None
    assert figures.error.provenance == "extrapolated"
    assert figures.ratio is None


def test_the_band_decides() -> None:
    seconds = named(ask(LANDSCAPE, 16384), BASELINE).figures.seconds
    for limit, fits, doubted in (
        (seconds.most * 1.001, True, False),
        (seconds.value * 1.001, True, True),
        (seconds.least * 0.999, False, False),
    ):
        answer = ask(LANDSCAPE, 16384, Budget(limit, max_error=1e-3))
        assert (answer.fits, answer.outcome == "likely") == (fits, doubted)
    answer = ask(LANDSCAPE, 16384, Budget(seconds.least * 1.001, max_error=1e-3))
    (maybe,) = [one for one in answer.rejected if one.may_fit]
    assert maybe.variant == BASELINE


@pytest.mark.parametrize("mode", ["training", "decode"])
def test_other_modes_are_foretold_too(mode: str) -> None:
    rows = as_rows(measured(BASELINE, at, mode=mode) for at in LENGTHS)
    answer = choose(rows, Question(8192, mode=mode), Budget())
    seconds = named(answer, BASELINE).figures.seconds
    assert (seconds.most / seconds.least > 2) == (mode == "decode"), "its rows grow with the square, its pairs do not"
    assert seconds.least < 4 * rows[-1].seconds < seconds.most  # type: ignore[operator]  # every row is timed


def test_refusals_are_reasons() -> None:
    lines = [measured(BASELINE, at) for at in LENGTHS] + [measured("full/matmul", at) for at in LENGTHS[-3:]]
    lines += [measured("linear_scan/chunked", at, figures={"visible_pairs": None}) for at in LENGTHS]
    lines += [measured("memory_efficient/chunked", at) for at in LENGTHS[:-1]]
    lines += [failed("memory_efficient/chunked", LENGTHS[-1], "out_of_memory", "predicted 9 GiB")]
    answer = ask(as_rows(lines), 8192)
    assert reason(answer, "full/matmul") == "a prediction needs 4 measured lengths; there are 3"
    assert reason(answer, "linear_scan/chunked") == "its rows declare no visible pairs"
    assert "out_of_memory at 4096 tokens: predicted 9 GiB" in reason(answer, "memory_efficient/chunked")
    assert [one.variant for one in answer.fitting] == [BASELINE]


def left_out(variant: str, tokens: int) -> dict[str, Any]:
    return failed(variant, tokens, "timeout", f"not tried: {tokens}") | {"foretold_seconds": 99.0}


def test_a_length_that_was_left_out_for_its_foretold_time_is_a_length_not_measured() -> None:
    lines = [measured(BASELINE, at) for at in LENGTHS]
    plain = named(ask(as_rows(lines), 8192), BASELINE).figures
    lines += [left_out(BASELINE, at) for at in (8192, 32768)]
    assert named(ask(as_rows(lines), 8192), BASELINE).figures == plain
    told = reason(ask(as_rows([*lines, measured("full/matmul", 65536)]), 32768), BASELINE)
    assert told.startswith("32768 tokens are more than 4 times the last measured length, 4096; ")
    assert told.endswith("timeout at 32768 tokens: not tried: 32768")


def test_what_was_never_measured_says_why_it_was_left_out() -> None:
    lines = [measured(BASELINE, at) for at in LENGTHS] + [left_out("full/matmul", at) for at in LENGTHS]
    assert reason(ask(as_rows(lines), 512), "full/matmul") == "timeout at 512 tokens: not tried: 512"


def test_a_kernel_that_was_wrong_at_any_length_is_not_foretold() -> None:
    lines = [measured(BASELINE, at) for at in LENGTHS]
    lines.append(failed(BASELINE, 512, "wrong", "error 0.3", inputs="peaky"))
    answer = ask(as_rows(lines), 8192)
    assert (answer.outcome, answer.fits) == ("unknown", False)
    assert "wrong on peaky inputs at 512 tokens" in reason(answer, BASELINE)


def test_nothing_is_foretold_below_the_roofline() -> None:
    slow = DESCRIPTION | {"ceilings": {"matmul_flops": {"float32": 5.4e10}, "copy_bytes_per_second": 1e10}}
    roofline = 4 * 64 * 8 * 16384**2 / 5.4e10
    rows = as_rows(
        measured(BASELINE, at, figures={"seconds": 4 * 64 * 8 * at**2 / 5.3e10 + 1e-6 * at}) for at in LENGTHS
    )
    seconds = named(ask(rows, 16384, description=slow), BASELINE).figures.seconds
    assert seconds.least >= roofline * 0.999


def test_more_memory_than_the_machine_has_is_a_reason() -> None:
    tiny = DESCRIPTION | {"memory_bytes": 180 * 2**20}
    rows = as_rows(measured("full/matmul", at) for at in LENGTHS)
    answer = ask(rows, 8192, description=tiny)
    assert "but Example CPU at 2.60 GHz has 180 MiB" in reason(answer, "full/matmul")
    assert ask(rows, 8192, description=DESCRIPTION).fits


def test_memory_that_may_stop_growing_is_bounded_all_the_same() -> None:
    """Linear growth ends in a buffer of bounded size, or does not: a band beyond a factor of 2, but a band."""
    rows = as_rows(measured("full/matmul", at) for at in LENGTHS)
    size = named(ask(rows, 16384), "full/matmul").figures.total_bytes
    assert size is not None and size.most > 2 * size.least
    assert ask(rows, 16384, Budget(max_bytes=size.most)).outcome == "fits"
    assert ask(rows, 16384, Budget(max_bytes=size.value)).outcome == "likely"
    (maybe,) = ask(rows, 16384, Budget(max_bytes=size.least)).rejected
    assert maybe.may_fit


def test_crossovers_reach_as_far_as_the_forecast() -> None:
    lines = [measured(BASELINE, at) for at in LENGTHS]
    lines += [measured("linear_scan/chunked", at, figures=linear(at)) for at in LENGTHS]
    crossover = ask(as_rows(lines), 8192).crossovers[0]
    assert crossover.tokens is not None
    assert (crossover.provenance, crossover.longest) == ("extrapolated", 16384)
    assert crossover.tokens == pytest.approx(8192, rel=0.1)
    assert ask(as_rows(lines), 4096).crossovers[0].tokens is None


def linear(tokens: int) -> dict[str, float]:
    """As fast as the baseline at 8192 tokens."""
    seconds = 0.010 * 8 * tokens / 1024
    return {"seconds": seconds, "seconds_low": seconds * 0.98, "seconds_high": seconds * 1.02}


# ---- between lengths


def test_interpolated_bands_hold_what_chords_of_these_curves_miss() -> None:
    def rows(bend: float) -> list[Row]:
        lines = []
        for variant in builder.VARIANTS:
            for place, at in enumerate(LENGTHS):
                seconds = 1e-6 * at**1.5 * math.exp(bend * (-1) ** place)
                figures = {"seconds": seconds, "seconds_low": seconds, "seconds_high": seconds}
                lines.append(measured(variant, at, figures=figures))
        return as_rows(lines)

    def width(bend: float) -> float:
        seconds = named(ask(rows(bend), 1448), BASELINE).figures.seconds
        return seconds.most / seconds.value

    assert width(0.2) > width(0.0) > 1.0
    assert width(0.2) >= math.exp(0.15)


def test_the_spread_of_chords_is_counted_by_hand() -> None:
    bent = {256: 1.0, 512: 4.0, 1024: 4.0}
    assert spread([bent] * 1000) == pytest.approx(math.log(2) / 2)
    assert spread([bent] * 1000, chord=error_at) == pytest.approx(math.log(4 / 2.5) / 2)
    assert spread([bent, {256: 1.0, 512: 0.0, 1024: 1.0}] * 1000) == spread([bent] * 1000)
    assert spread([]) == spread([{1: 1.0}]) == pooled_quantile([], 0.08)


# ---- calibration


def test_few_scores_change_little_and_many_decide() -> None:
    alone = pooled_quantile([])
    assert alone == pytest.approx(1.0, abs=0.15)
    assert pooled_quantile([9.0]) < 1.5
    assert pooled_quantile([2.0] * 500) == 2.0
    assert pooled_quantile([0.1] * 500) < 0.2
    assert pooled_quantile([0.1] * 950 + [3.0] * 50) < 1.0 < pooled_quantile([0.1] * 850 + [3.0] * 150)


def test_a_curve_scores_its_own_last_length() -> None:
    seen: list[list[int]] = []

    def foretell(shorter: Any, tokens: int) -> tuple[float, float]:
        seen.append(sorted(shorter))
        return 2.0, math.log(2)

    assert own_score({1: 1.0, 2: 1.0, 3: 1.0, 4: 8.0}, foretell) == pytest.approx(2.0)
    assert seen == [[1, 2]]
    assert own_score({3: 1.0, 4: 1.0}, foretell) is None


def models(surprise: float, count: int = 60) -> list[TimeModel]:
    """Quadratic curves whose last length takes so much more than the others promise."""
    seconds = [1e-9 * at**2 for at in LENGTHS]
    seconds[-1] *= surprise
    return [
        TimeModel.fit(tokens=LENGTHS, seconds=seconds, visible_pairs=lambda at: at**2, noise=0.02) for _ in range(count)
    ]


def test_bands_follow_what_the_other_curves_of_a_machine_missed() -> None:
    tame, wild = calibrated(models(1.0))[0], calibrated(models(1.09))[0]
    assert tame.widening < 1 < wild.widening
    plain = replace(wild, widening=1.0).predict(8192)
    answer = wild.predict(8192)
    assert answer.seconds == plain.seconds
    assert math.log(answer.high / answer.seconds) == pytest.approx(wild.widening * math.log(plain.high / plain.seconds))


def test_known_noise_widens_bands() -> None:
    def half(noise: float) -> float:
        model = TimeModel.fit(
            tokens=LENGTHS, seconds=[1e-9 * at**2 for at in LENGTHS], visible_pairs=lambda at: at**2, noise=noise
        )
        answer = model.predict(8192)
        return math.log(answer.high / answer.seconds)

    assert half(0.0) == half(0.02) < half(0.05) < half(0.1)


# ---- errors beyond


def test_errors_go_on_by_half_of_their_last_change() -> None:
    found = error_beyond({256: 0.1, 512: 0.2, 1024: 0.4}, 4096)
    assert found.value == pytest.approx(0.4 * 2)
    assert (found.low, found.high) == (pytest.approx(0.4 * math.exp(-0.5)), pytest.approx(0.4 * 4))
    flat = error_beyond({256: 3e-7, 512: 3e-7, 1024: 3e-7}, 2048)
    assert (flat.value, flat.most) == (pytest.approx(3e-7), pytest.approx(3e-7 * math.exp(0.25)))
    assert error_beyond({256: 0.0, 512: 0.0, 1024: 0.0}, 2048) == Figure(0.0, "extrapolated", 0.0, 0.0)
    for errors, length in (({256: 0.1, 512: 0.1, 1024: 0.1}, 4097), ({256: 0.1, 512: 0.1}, 1024), ({}, 5)):
        with pytest.raises(OutOfRange, match=f"not at {length}"):
            error_beyond(errors, length)


# ---- approximations that are exact up to some length


def with_a_window(errors: dict[int, float]) -> list[Row]:
    """The landscape with these errors of the window by length."""
    return [
        msgspec.structs.replace(row, approximation_error=errors[row.case.length])
        if row.case.variant == "local_window/tiled"
        else row
        for row in LANDSCAPE
    ]


def test_rounding_is_no_error_that_widens_the_bands_of_all() -> None:
    exact_at_first = with_a_window({256: 1.8e-16, 512: 0.25, 1024: 0.31, 2048: 0.35, 4096: 0.4})
    windows = [row for row in exact_at_first if row.case.variant == "local_window/tiled"]
    cases = [(row, msgspec.structs.replace(row.case, variant=f"local_window/{n}")) for n in range(6) for row in windows]
    many = [*exact_at_first, *(msgspec.structs.replace(row, case=case) for row, case in cases)]
    found = named(ask(many, 600, Budget(max_error=0.32)), "blockwise_low_rank/merged")
    assert not found.doubts
    assert found.figures.error is not None and found.figures.error.most < 1.1 * found.figures.error.value


@pytest.mark.parametrize("rounding", [0.0, 1.8e-16])
def test_between_exact_and_approximate_the_band_is_from_the_one_to_the_other(rounding: float) -> None:
    found = error_at({256: rounding, 1024: 0.25}, 512)
    assert (found.value, found.low, found.high) == (pytest.approx(0.125), rounding, 0.25)
    assert error_at({256: rounding, 1024: rounding}, 512).low is None
    rows = with_a_window({256: rounding, 512: 0.25, 1024: 0.31, 2048: 0.35, 4096: 0.4})
    error = named(ask(rows, 300), "local_window/tiled").figures.error
    assert error is not None and error.least < 1e-6 and error.value < 0.1 and 0.25 <= error.most < 0.26


@pytest.mark.parametrize("rounding", [0.0, 1.8e-16])
def test_rounding_is_no_part_of_the_trend_of_an_error(rounding: float) -> None:
    found = error_beyond({256: rounding, 512: 0.25, 1024: 0.3}, 2048)
    assert found.value == pytest.approx(0.3 * math.sqrt(1.2))
    assert (found.low, found.high) == (pytest.approx(0.3 * math.exp(-0.25)), pytest.approx(0.3 * math.exp(0.25)))
    for errors in ({256: rounding, 512: rounding, 1024: 0.3}, {256: 0.3, 512: 0.3, 1024: rounding}):
        with pytest.raises(OutOfRange, match="exact up to rounding at some of the last 3 lengths"):
            error_beyond(errors, 2048)


def test_what_was_exact_so_far_need_not_be_beyond() -> None:
    rows = with_a_window(dict.fromkeys(LENGTHS, 1.8e-16))
    assert "exact up to rounding at 4096 tokens" in reason(ask(rows, 8192, Budget(max_error=0.5)), "local_window/tiled")
    exact = named(ask(rows, 8192, Budget(max_error=0.5)), "memory_efficient/chunked").figures
    assert exact.error is not None and exact.error.value < 1e-6


# ---- where pairs come from


def costs(known: dict[int, int], declare: Any = declare_nothing, variant: str = "full/matmul") -> DeclaredCosts:
    lines = [
        measured(variant, at, figures={"visible_pairs": pairs, "useful_flops": pairs}) for at, pairs in known.items()
    ]
    (curve,) = curves(as_rows(lines), SHAPE)
    return DeclaredCosts(curve, SHAPE, declare)


def test_rows_tell_the_pairs_of_a_parabola() -> None:
    causal = {at: at * (at + 1) // 2 for at in LENGTHS}
    assert costs(causal).pairs(16384) == pytest.approx(16384 * 16385 // 2)
    assert costs(causal).pairs(512) == causal[512]
    window = {at: 256 * at - 100 for at in LENGTHS}
    assert costs(window).flops(10000) == pytest.approx(2560000 - 100)


def test_rows_that_change_their_law_tell_nothing_but_the_definition_does() -> None:
    kinked = {at: at * at if at <= 1024 else 1024 * at for at in LENGTHS}
    with pytest.raises(Unavailable, match="its rows do not tell the visible pairs at 8192 tokens"):
        costs(kinked).pairs(8192)

    def declare(variant: str, parameters: Any, shape: Shape, length: int) -> tuple[int, int]:
        return min(length, 1024) * length, 7

    assert (costs(kinked, declare).pairs(8192), costs(kinked, declare).flops(8192)) == (1024 * 8192, 7)


def test_a_definition_that_contradicts_the_rows_is_not_believed() -> None:
    quadratic = {at: at * at for at in LENGTHS}
    assert costs(quadratic, lambda *_: (5, 5)).pairs(8192) == pytest.approx(8192**2)


def test_a_window_that_begins_beyond_the_measured_lengths_is_seen_through_its_definition() -> None:
    def declare(variant: str, parameters: Any, shape: Shape, length: int) -> tuple[int, int]:
        seen = min(length, 4096)
        return seen * length, 4 * 64 * 8 * seen * length

    rows = as_rows(measured("full/matmul", at) for at in LENGTHS)
    blind = named(ask(rows, 16384), "full/matmul").figures.seconds.value
    told = named(ask(rows, 16384, declare=declare), "full/matmul").figures.seconds.value
    assert told == pytest.approx(blind / 4, rel=0.05)


@pytest.mark.parametrize(
    ("variant", "parameters", "fields", "pairs"),
    [
        ("full/matmul", {}, {"causal": True}, 1000 * 1001 // 2),
        ("full/matmul", {}, {"causal": True, "mode": "decode", "queries": 1}, 1000),
        ("local_window/tiled", {"window": 10}, {"causal": True}, 10 * 1000 - 45),
    ],
)
def test_definitions_declare_by_name(
    variant: str, parameters: dict[str, int], fields: dict[str, Any], pairs: int
) -> None:
    shape = {"batch": 2, "heads": 4, "kv_heads": 2, "head_dim": 8, "mode": "forward"} | fields
    assert declared_costs(variant, parameters, 1000, **shape) == (pairs, 4 * 8 * 2 * 4 * pairs)


def test_what_is_not_installed_declares_nothing() -> None:
    for variant, parameters in (("no/such", {}), ("local_window/tiled", {"rank": 3})):
        assert declared_costs(variant, parameters, 1000, mode="forward") is None


# ---- another card

H200, L40S = card_named("NVIDIA H200"), card_named("NVIDIA L40S")
ON_H200 = DESCRIPTION | {"gpu": {"name": "NVIDIA H200", "memory_bytes": 150 * 10**9}}
LONG = (2048, 4096, 8192, 16384)


def on_gpu(share: float, lengths: Iterable[int] = LONG) -> list[Row]:
    """The baseline at a share of the roofline of an H200."""
    lines = []
    for at in lengths:
        work = Work(4 * 128 * 32 * at**2, 1.0)
        seconds = H200.roofline_seconds(work, "bfloat16") / share
        figures = {"seconds": seconds, "seconds_low": seconds * 0.99, "seconds_high": seconds * 1.01}
        lines.append(measured(BASELINE, at, figures=figures, **GPU_SHAPE))
    return as_rows(lines)


GPU_SHAPE = {"device": "cuda", "dtype": "bfloat16", "heads": 32, "head_dim": 128}


def test_times_are_transferred_by_the_ratio_of_rooflines() -> None:
    question = Question(16384, **GPU_SHAPE)
    here = choose(on_gpu(0.6), question, Budget(), description=ON_H200).fitting[0].figures
    answer = choose(on_gpu(0.6), question, Budget(), description=ON_H200, target=L40S)
    there = answer.fitting[0].figures
    assert (answer.card, there.seconds.provenance) == ("NVIDIA L40S", "transferred")
    assert there.seconds.value == pytest.approx(here.seconds.value * 989.5 / 362.05)
    assert there.seconds.most / there.seconds.value == pytest.approx(1.25, abs=0.01)
    assert there.total_bytes is not None and here.total_bytes is not None
    assert there.total_bytes.value == here.total_bytes.value
    assert there.total_bytes.provenance == "transferred"
    assert answer.crossovers == ()


def test_the_same_card_is_no_transfer() -> None:
    answer = choose(on_gpu(0.6), Question(16384, **GPU_SHAPE), Budget(), description=ON_H200, target=H200)
    assert (answer.card, answer.fitting[0].figures.seconds.provenance) == (None, "measured")


def test_extrapolated_times_are_transferred_with_both_bands() -> None:
    question = Question(32768, **GPU_SHAPE)
    here = choose(on_gpu(0.6), question, Budget(), description=ON_H200).fitting[0].figures.seconds
    answer = choose(on_gpu(0.6), question, Budget(), description=ON_H200, target=card_named("H100 80GB HBM3"))
    there = answer.fitting[0].figures.seconds
    assert there.most / there.value > here.most / here.value > 1


def test_what_is_far_from_the_roofline_or_does_not_fit_is_not_transferred() -> None:
    question = Question(16384, **GPU_SHAPE)
    answer = choose(on_gpu(0.2), question, Budget(), description=ON_H200, target=L40S)
    assert answer.outcome == "unknown"
    assert "the roofline explains 20 % of the time" in reason(answer, BASELINE)
    small = type(L40S)(**{name: getattr(L40S, name) for name in L40S.__struct_fields__} | {"memory_bytes": 2**28})
    answer = choose(on_gpu(0.6), question, Budget(), description=ON_H200, target=small)
    assert answer.outcome == "impossible", "two names, one card: its memory does not hold q, k, v and the output"
    answer = choose(on_gpu(0.6), question, Budget(), description={}, target=L40S)
    assert "a machine that was not described" in reason(answer, BASELINE)
