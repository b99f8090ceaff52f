"""The choice: figures between lengths, what fits, why not, what binds, and the nearest budget that would do."""

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from reports.answer import COMPARED_ONLY, Answer
from reports.answer_text import answer_blocks
from reports.choice import Budget, Question, choose
from reports.interpolation import OutOfRange, bytes_at, error_at, time_at
from reports.question import InvalidQuestion
from reports.records import ResultsError, Row
from reports.text_table import Table
from reports.verdict import AHEAD, ROOM
from tests import results_builder as builder
from tests.results_builder import as_rows, failed, landscape, measured

MIB = 2**20
LANDSCAPE = as_rows(landscape())


def ask(rows: list[Row], tokens: int = 4096, budget: Budget | None = None, **fields: Any) -> Answer:
    return choose(rows, Question(tokens, **fields), budget or Budget())


def names(entries: Any) -> list[str]:
    return [entry.variant for entry in entries]


def reasons(answer: Answer, variant: str) -> list[str]:
    return [reason.text for one in answer.rejected if one.variant == variant for reason in one.reasons]


# ---- figures between measured lengths


def test_a_power_law_is_met_exactly_between_lengths() -> None:
    seconds = {length: 3e-9 * length**2 for length in (256, 1024, 8192)}
    assert time_at(seconds, 3000).value == pytest.approx(3e-9 * 3000**2)
    assert time_at(seconds, 3000).provenance == "interpolated"
    assert time_at(seconds, 1024) == replace(time_at(seconds, 3000), value=seconds[1024], provenance="measured")


@given(st.lists(st.floats(0, 1e6), min_size=3, max_size=3), st.integers(257, 1023))
def test_sums_of_powers_are_never_figured_too_small(factors: list[float], length: int) -> None:
    def size(at: int) -> float:
        return sum(factor * at**power for power, factor in enumerate(factors))

    assert bytes_at({256: size(256), 1024: size(1024)}, length).value >= size(length) * (1 - 1e-9)


def test_sizes_that_start_at_zero_are_linear() -> None:
    assert bytes_at({100: 0, 200: 50}, 150).value == 25


def test_errors_are_linear_in_the_logarithm_of_the_length() -> None:
    assert error_at({256: 0.1, 1024: 0.3}, 512).value == pytest.approx(0.2)


@pytest.mark.parametrize("length", [255, 1025, 10**9])
def test_nothing_is_extrapolated(length: int) -> None:
    for at in (time_at, bytes_at, error_at):
        with pytest.raises(OutOfRange, match="measured only from 256 to 1024 tokens"):
            at({256: 1.0, 1024: 2.0}, length)


# ---- what fits


def test_fitting_variants_are_ranked_by_time() -> None:
    answer = ask(LANDSCAPE)
    assert answer.fits
    times = [one.figures.seconds.value for one in answer.fitting if one.beats_mean]
    assert times == sorted(times) and len(times) > 3
    assert answer.fitting[0].variant == "linear_scan/chunked"
    assert {one.figures.seconds.provenance for one in answer.fitting} == {"measured"}


def test_figures_carry_everything_that_an_answer_must_say() -> None:
    (flash,) = [one for one in ask(LANDSCAPE, 2048).fitting if one.variant == builder.BASELINE]
    figures = flash.figures
    assert figures.seconds.value == pytest.approx(0.040)
    assert figures.seconds.provenance == "interpolated"
    assert figures.seconds.least < figures.seconds.value < figures.seconds.most
    assert figures.total_bytes is not None
    assert figures.total_bytes.value == pytest.approx(2048 * (300 + 4 * 8 * 64 * 4), rel=1e-3)
    assert figures.extra_bytes is not None
    assert figures.extra_bytes.value == pytest.approx(2048 * 300, rel=1e-3)
    assert figures.ratio is not None
    assert figures.ratio.value == pytest.approx(1.0)
    assert (figures.baseline, figures.kernel, figures.between) == (builder.BASELINE, "flash", (1024, 4096))


def test_the_error_of_an_exact_variant_is_its_implementation_error() -> None:
    answer = ask(LANDSCAPE)
    for one in answer.fitting:
        assert one.figures.error is not None
        assert one.figures.implementation_error is not None
        assert one.figures.approximation_error is not None
        parts = (one.figures.implementation_error.value, one.figures.approximation_error.value)
        assert one.figures.error.value == pytest.approx(parts[0] if one.exact else math.hypot(*parts))


def test_a_tie_within_the_noise_goes_to_the_exact_variant() -> None:
    lines = [
        measured("linear_scan/chunked", 1024, figures={"seconds": 1.00, "seconds_low": 0.95, "seconds_high": 1.05}),
        measured(
            "local_window/tiled",
            1024,
            figures={"seconds": 1.02, "seconds_low": 1.00, "seconds_high": 1.04, "approximation_error": 0.5},
        ),
        measured("full/matmul", 1024, figures={"seconds": 1.03, "seconds_low": 1.01, "seconds_high": 1.06}),
        measured("memory_efficient/chunked", 1024, figures={"seconds": 2.0, "seconds_low": 1.9, "seconds_high": 2.1}),
    ]
    answer = ask(as_rows(lines), 1024)
    assert names(answer.fitting) == [
        "full/matmul",
        "linear_scan/chunked",
        "local_window/tiled",
        "memory_efficient/chunked",
    ]
    assert [one.tied for one in answer.fitting] == [True, True, True, False]


def test_beyond_the_noise_the_faster_one_leads() -> None:
    lines = [
        measured("linear_scan/chunked", 1024, figures={"seconds": 1.0, "seconds_low": 0.9, "seconds_high": 1.1}),
        measured("full/matmul", 1024, figures={"seconds": 1.3, "seconds_low": 1.2, "seconds_high": 1.4}),
        measured("memory_efficient/chunked", 1024, figures={"seconds": 1.2, "seconds_low": 0.1, "seconds_high": 9.0}),
    ]
    answer = ask(as_rows(lines), 1024)
    assert names(answer.fitting) == ["linear_scan/chunked", "memory_efficient/chunked", "full/matmul"]
    assert not any(one.tied for one in answer.fitting), "nor does a wide interval make a slow one as fast"


def test_sets_of_parameters_are_candidates_of_their_own() -> None:
    lines = [measured("local_window/tiled", 1024, parameters={"window": window}) for window in (128, 256)]
    labels = [one.label for one in ask(as_rows(lines), 1024).fitting]
    assert labels == ["local_window/tiled (window 128)", "local_window/tiled (window 256)"]


def test_of_several_seeds_the_largest_error_counts() -> None:
    lines = [
        measured("linear_scan/chunked", 1024, seed=seed, figures={"approximation_error": error})
        for seed, error in enumerate((0.5, 0.9, 0.7))
    ]
    (one,) = ask(as_rows(lines), 1024).fitting
    assert one.figures.approximation_error is not None
    assert one.figures.approximation_error.value == 0.9


# ---- why not


def test_every_broken_limit_is_a_reason() -> None:
    answer = ask(LANDSCAPE, budget=Budget(0.1, 64 * MIB, 0.5))
    assert names(answer.fitting) == ["blockwise_low_rank/merged"]
    assert reasons(answer, "full/matmul") == [
        "takes 640 ms, 6.40 times the limit of 100 ms",
        "needs 160 MiB, 2.50 times the limit of 64 MiB",
    ]
    assert reasons(answer, "local_window/tiled") == ["has an error of 1.4, 2.80 times the limit of 0.5"]


def test_a_limit_is_inclusive() -> None:
    seconds = ask(LANDSCAPE).fitting[0].figures.seconds
    for limit, outcome in (
        (seconds.most, "fits"),
        (math.nextafter(seconds.most, 0), "likely"),
        (seconds.value, "likely"),
        (math.nextafter(seconds.value, 0), "nothing fits"),
    ):
        assert ask(LANDSCAPE, budget=Budget(max_seconds=limit)).outcome == outcome
    answer = ask(LANDSCAPE, budget=Budget(max_seconds=seconds.least))
    assert [one.may_fit for one in answer.rejected][:2] == [True, False]
    answer = ask(LANDSCAPE, budget=Budget(max_seconds=math.nextafter(seconds.least, 0)))
    assert not any(one.may_fit for one in answer.rejected)
    assert not answer.fits


def with_a_faster_doubt(sure_seconds: float, band_end: float) -> list[Row]:
    """Exact attention in that time, and one that takes 1 s, or up to the end of its band."""
    doubtful = {"seconds": 1.0, "seconds_low": 0.9, "seconds_high": band_end}
    sure = {"seconds": sure_seconds, "seconds_low": sure_seconds, "seconds_high": sure_seconds}
    lines = [
        measured("linear_scan/chunked", 1024, figures=doubtful),
        measured("full/matmul", 1024, figures=sure),
    ]
    return as_rows(lines)


def test_who_surely_fits_goes_before_a_faster_one_that_likely_does() -> None:
    answer = ask(with_a_faster_doubt(1.2, 1.6), 1024, Budget(max_seconds=1.5))
    assert names(answer.fitting) == ["full/matmul", "linear_scan/chunked"]
    (doubt,) = answer.fitting[1].doubts
    assert doubt.text == "takes 1.00 s, but its band reaches up to 1.60 s: likely within 1500 ms"
    assert (answer.outcome, answer.nearest) == ("fits", None)


@pytest.mark.parametrize(
    ("sure_seconds", "band_end", "ahead"),
    [
        (1.26, 1.5**3 * 0.999, True),  # a third of the upper half of its band is inside: 1.5 = 1.5³ ^ (1/3)
        (1.26, 1.5**3 * 1.001, False),
        (1.24, 1.5**3 * 0.999, False),
        (1.5, 1.6, True),
    ],
)
def test_a_much_faster_one_that_is_nearly_sure_goes_ahead(sure_seconds: float, band_end: float, ahead: bool) -> None:
    answer = ask(with_a_faster_doubt(sure_seconds, band_end), 1024, Budget(max_seconds=1.5))
    assert (answer.fitting[0].variant == "linear_scan/chunked") == ahead
    assert (answer.outcome, answer.nearest) == ("likely" if ahead else "fits", None)
    told = "\n".join(block for block in answer_blocks(answer, {}) if isinstance(block, str))
    assert ("The fastest that surely fits is full/matmul" in told) == ahead


# ---- what is no better than the mean of V


def with_row(line: dict[str, Any]) -> list[Row]:
    """The landscape with this line in place of its own."""
    return [row for row in LANDSCAPE if row.key != line["key"]] + as_rows([line])


def with_a_fast_window(error: float = 1.4) -> list[Row]:
    """The landscape with a window that is faster than all others; the mean of V has an error of 0.8."""
    figures = {"seconds": 1e-3, "seconds_low": 1e-3, "seconds_high": 1e-3, "approximation_error": error}
    return with_row(measured("local_window/tiled", 4096, figures=figures))


def test_what_loses_to_the_mean_of_v_stands_behind_what_does_not() -> None:
    answer = ask(with_a_fast_window())
    assert answer.fitting[0].variant == "linear_scan/chunked"
    assert (answer.fitting[-1].variant, answer.fitting[-1].beats_mean) == ("local_window/tiled", False)
    assert ask(with_a_fast_window(0.79)).fitting[0].variant == "local_window/tiled"
    assert ask(with_a_fast_window(), budget=Budget(max_error=1.5)).fitting[0].variant == "local_window/tiled"
    alone = ask(with_a_fast_window(), budget=Budget(max_seconds=2e-3))
    assert (alone.outcome, names(alone.fitting)) == ("fits", ["local_window/tiled"])
    assert "the mean of V alone has an error of 0.80 on normal inputs" in notes(answer)


def test_an_exact_variant_never_loses_to_the_mean_of_v() -> None:
    figures = {"mean_of_v_error": 1e-9}
    answer = ask(with_row(measured("memory_efficient/chunked", 4096, figures=figures)))
    found = next(one for one in answer.fitting if one.variant == "memory_efficient/chunked")
    assert found.exact and found.beats_mean


def test_what_is_no_attention_is_shown_and_never_chosen() -> None:
    lines = [measured("linear_scan/chunked", 1024), measured("full/matmul", 1024)]
    lines[0] = lines[0] | {"attention": False}
    answer = ask(as_rows(lines), 1024)
    assert names(answer.fitting) == ["full/matmul"]
    (out,) = answer.rejected
    assert out.reasons == (COMPARED_ONLY,) and out.figures is not None and not out.may_fit
    told = [block.title for block in answer_blocks(answer, {}) if isinstance(block, Table)]
    assert "Not attention, for comparison" in told and "Breaks a limit, fastest first" not in told
    only = ask(as_rows(lines[:1]), 1024)
    assert (only.outcome, only.fits) == ("unknown", False)


@pytest.mark.parametrize("status", ["unsupported", "out_of_memory", "timeout", "wrong", "error"])
def test_a_failure_at_a_neighbour_rejects_with_its_reason(status: str) -> None:
    lines = [
        measured("linear_scan/chunked", 256),
        measured("linear_scan/chunked", 1024),
        measured("full/matmul", 256),
        failed("full/matmul", 1024, status, "for a reason"),
    ]
    answer = ask(as_rows(lines), 512)
    assert names(answer.fitting) == ["linear_scan/chunked"]
    assert reasons(answer, "full/matmul") == [f"{status} at 1024 tokens: for a reason"]
    assert "full/matmul" in names(ask(as_rows(lines), 256).fitting)


def test_a_failure_at_both_neighbours_is_said_once() -> None:
    assert reasons(ask(LANDSCAPE, 6000), "memory_efficient/xformers") == [
        "unsupported at 4096 and 16384 tokens: needs CUDA; no float32"
    ]


def test_a_kernel_that_is_wrong_on_any_inputs_is_out() -> None:
    lines = [
        measured("linear_scan/chunked", 256),
        measured("full/matmul", 256),
        failed("linear_scan/chunked", 256, "wrong", "error 0.3 is above 2e-5", inputs="peaky"),
        failed("full/matmul", 256, "timeout", "took over 60 s", inputs="peaky"),
    ]
    answer = ask(as_rows(lines), 256)
    assert names(answer.fitting) == ["full/matmul"]
    assert reasons(answer, "linear_scan/chunked") == ["wrong on peaky inputs at 256 tokens: error 0.3 is above 2e-5"]


def test_a_variant_that_was_not_measured_so_far_says_so() -> None:
    lines = [
        *(measured("linear_scan/chunked", at) for at in (256, 4096)),
        measured("full/matmul", 256),
        failed("full/matmul", 1024, "timeout", "took over 60 s"),
    ]
    assert reasons(ask(as_rows(lines), 4096), "full/matmul") == [
        "measured only from 256 to 1024 tokens, not at 4096",
        "timeout at 1024 tokens: took over 60 s",
    ]


def test_a_figure_that_is_missing_rejects_only_under_its_limit() -> None:
    rows = as_rows([measured("full/matmul", 256, figures={"total_bytes": None, "implementation_error": None})])
    assert ask(rows, 256, Budget(max_seconds=1.0)).fits
    assert reasons(ask(rows, 256, Budget(max_bytes=1e12)), "full/matmul") == ["memory not measured"]
    (text,) = reasons(ask(rows, 256, Budget(max_error=1.0)), "full/matmul")
    assert text.startswith("error not known: none was recorded on normal inputs")


# ---- on which inputs


def test_captured_inputs_count_first_where_they_were_measured() -> None:
    answer = ask(LANDSCAPE, 256)
    assert {one.figures.error_inputs for one in answer.fitting} == {"captured"}
    assert any("on captured inputs" in note for note in answer.notes)
    answer = ask(LANDSCAPE, 4096)
    assert {one.figures.error_inputs for one in answer.fitting} == {"normal"}


def test_asked_inputs_are_the_only_ones_that_count() -> None:
    answer = ask(LANDSCAPE, 4096, inputs="smooth")
    assert {one.figures.error_inputs for one in answer.fitting} == {"smooth"}
    answer = ask(LANDSCAPE, 4096, Budget(max_error=0.5), inputs="captured")
    assert not answer.fits
    (text,) = reasons(answer, "linear_scan/chunked")
    assert text == "error not known: on captured inputs: measured only at 256 tokens, not at 4096"
    with pytest.raises(ResultsError, match="nothing was measured on 'noisy' inputs, only on captured, local, normal"):
        ask(LANDSCAPE, 4096, inputs="noisy")


# ---- what cannot be answered


def test_another_shape_names_the_closest_ones() -> None:
    rows = as_rows([measured("full/matmul", 256, **fields) for fields in ({}, {"causal": True}, {"dtype": "bfloat16"})])
    with pytest.raises(ResultsError) as caught:
        ask(rows, 256, causal=True, dtype="bfloat16", heads=16)
    text = str(caught.value)
    assert "\n" not in text
    assert "heads 16" in text.partition(";")[0]
    assert text.endswith("closest first: heads 8, float32; heads 8, not causal; heads 8, float32, not causal")


def test_other_modes_and_queries_are_named_as_a_user_would() -> None:
    forward, decode = Question(256).shape, Question(256, mode="decode").shape
    assert forward.differences(decode) == ["forward"]
    assert decode.differences(forward) == ["decode"]
    five = replace(forward, queries=5)
    assert (five.differences(forward), forward.differences(five)) == (["5 queries"], ["as many queries as keys"])


@pytest.mark.parametrize(("causal", "there"), [(True, "--causal"), (False, "--no-causal")])
def test_decode_under_the_other_mask_says_which_to_ask_for(causal: bool, there: str) -> None:
    rows = as_rows([measured("full/matmul", 1024, mode="decode", causal=causal)])
    with pytest.raises(ResultsError, match=rf"sees the same keys under both, so ask with {there};"):
        ask(rows, 1024, mode="decode", causal=not causal)
    with pytest.raises(ResultsError, match="closest first: heads 8"):
        ask(rows, 1024, mode="decode", causal=causal, heads=4)


def test_lengths_beyond_the_measured_ones_are_refused() -> None:
    for tokens, how in ((65537, "more than 4 times beyond"), (255, "below")):
        with pytest.raises(ResultsError, match=rf"{tokens} tokens is {how} the measured lengths \(256 to 16384\)"):
            ask(LANDSCAPE, tokens)


def test_rows_of_two_machines_are_refused() -> None:
    rows = as_rows([builder.line(builder.case("full/matmul", 256), machine=key) for key in ("a", "b")])
    with pytest.raises(ResultsError, match=r"2 machines \(a, b\): use --machine"):
        ask(rows, 256)


def test_decode_is_asked_by_the_length_of_the_cache() -> None:
    rows = as_rows([measured("full/matmul", at, mode="decode") for at in (1, 256, 1024)])
    assert ask(rows, 512, mode="decode").fits
    with pytest.raises(ResultsError, match="nothing was measured for forward"):
        ask(rows, 256)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"tokens": 0}, "tokens must be a whole number of at least 1, not 0"),
        ({"tokens": 16, "heads": 8, "kv_heads": 3}, "3 does not divide 8"),
        ({"tokens": 16, "kv_heads": 0}, "kv_heads must be"),
        ({"tokens": 16, "dtype": "float8"}, "dtype must be one of float64, float32"),
        ({"tokens": 16, "mode": "backward"}, "mode must be one of forward"),
        ({"tokens": 16, "device": "tpu"}, "device must be cpu, cuda or cuda:N"),
    ],
)
def test_questions_that_cannot_exist(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidQuestion, match=said):
        Question(**fields)


@pytest.mark.parametrize("limit", [0.0, -1.0, math.nan, math.inf])
def test_budgets_that_cannot_exist(limit: float) -> None:
    for name in ("max_seconds", "max_bytes", "max_error"):
        with pytest.raises(InvalidQuestion, match="must be a positive finite number"):
            Budget(**{name: limit})


# ---- what binds, where curves cross, what to know


def test_the_limit_that_alone_keeps_out_the_most_binds() -> None:
    binding = ask(LANDSCAPE, budget=Budget(0.1, 1024 * MIB, 0.5)).binding
    assert binding is not None
    assert (binding.limit, len(binding.alone)) == ("time", 3)
    assert binding.used == pytest.approx(0.369, abs=0.001)
    binding = ask(LANDSCAPE, budget=Budget(10.0, 1024 * MIB, 0.1)).binding
    assert binding is not None
    assert binding.limit == "error"
    assert ask(LANDSCAPE, budget=Budget(10.0, 1024 * MIB, 10.0)).binding is None


def test_the_crossover_is_where_the_times_are_equal() -> None:
    crossover = ask(LANDSCAPE, 1024).crossovers[0]
    assert (crossover.winner, crossover.rival) == ("linear_scan/chunked", builder.BASELINE)
    assert (crossover.below, crossover.above) == (builder.BASELINE, "linear_scan/chunked")
    assert crossover.tokens == pytest.approx(1024 * 0.0055 / 0.010, abs=1)


def test_the_crossover_is_also_found_above_the_asked_length() -> None:
    crossover = ask(LANDSCAPE, 256, Budget(max_error=0.01)).crossovers[0]
    assert (crossover.winner, crossover.rival) == (builder.BASELINE, "blockwise_low_rank/merged (block 128, rank 4)")
    assert (crossover.below, crossover.above) == (crossover.winner, crossover.rival)
    assert crossover.tokens == pytest.approx(1024 * 0.7**1.25, abs=1)


def test_no_crossover_inside_the_measured_lengths_says_who_is_faster() -> None:
    rows = as_rows([measured(name, at) for name in ("linear_scan/chunked", builder.BASELINE) for at in (1024, 4096)])
    (crossover,) = ask(rows, 1024).crossovers
    assert (crossover.tokens, crossover.above, crossover.below) == (None, "linear_scan/chunked", "linear_scan/chunked")


def notes(answer: Answer) -> str:
    return "\n".join(answer.notes)


def test_an_error_below_the_rounding_of_the_dtype_is_said() -> None:
    said = "below the rounding of float32: exact variants themselves stand 3.1e-7"
    assert said in notes(ask(LANDSCAPE, budget=Budget(max_error=1e-9)))
    assert said not in notes(ask(LANDSCAPE, budget=Budget(max_error=1e-3)))


def test_noise_and_mixed_code_are_said() -> None:
    lines = [
        measured("full/matmul", 256, figures={"noisy": True}) | {"commit": "aaa"},
        measured("full/matmul", 1024) | {"commit": "bbb", "dirty": True},
    ]
    text = notes(ask(as_rows(lines), 300))
    assert "is noisy" in text
    assert "2 commits" in text
    assert "uncommitted changes" in text


# ---- where nothing fits


def test_the_nearest_budgets_are_named() -> None:
    answer = ask(LANDSCAPE, budget=Budget(0.1, 64 * MIB, 1e-3))
    assert not answer.fits
    assert answer.nearest is not None
    time, memory, error = (answer.nearest.alone[name] for name in ("time", "memory", "error"))
    assert time is not None
    assert (time.variant, time.options) == (builder.BASELINE, "--max-ms 164 --max-mib 64 --max-error 0.001")
    assert memory is None
    assert error is not None
    assert error.variant == "blockwise_low_rank/merged"
    assert answer.nearest.joint is not None
    assert answer.nearest.joint.variant == builder.BASELINE
    assert answer.nearest.joint.factor == pytest.approx(1.6 * 1.02)


def test_no_budget_helps_where_nothing_ran() -> None:
    rows = as_rows([failed("memory_efficient/xformers", 256, "unsupported", "needs CUDA")])
    answer = ask(rows, 256, Budget(max_seconds=1.0))
    assert answer.nearest is not None
    assert answer.nearest.joint is None
    assert answer.nearest.alone == {"time": None}


# ---- what holds for every landscape and every budget


def test_the_likely_budget_is_nearer_than_the_sure_one() -> None:
    answer = ask(LANDSCAPE, 2000, Budget(max_seconds=1e-3))
    assert answer.nearest is not None
    sure, likely = answer.nearest.joint, answer.nearest.likely_joint
    assert sure is not None and likely is not None and likely.factor < sure.factor
    assert answer.nearest.likely_alone == {"time": likely}
    assert ask(LANDSCAPE, 2000, likely.budget).outcome == "likely"
    assert ask(LANDSCAPE, 2000, sure.budget).outcome == "fits"


VALUES = st.floats(1e-6, 1e6)
LIMITS = st.one_of(st.none(), VALUES)
BUDGETS = st.builds(Budget, LIMITS, LIMITS, LIMITS)
POINTS = st.lists(st.tuples(VALUES, st.integers(1, 2**40), VALUES, st.floats(1, 1.5)), min_size=2, max_size=2)


@st.composite
def landscapes(draw: st.DrawFn) -> list[Row]:
    lines = []
    for variant in draw(st.lists(st.sampled_from(sorted(builder.VARIANTS)), min_size=1, unique=True)):
        for tokens, (seconds, size, error, noise) in zip((256, 1024), draw(POINTS), strict=True):
            figures = {
                "seconds": seconds,
                "seconds_low": seconds / noise,
                "seconds_high": seconds * noise,
                "total_bytes": size,
                "implementation_error": error,
                "approximation_error": error,
            }
            lines.append(measured(variant, tokens, figures=figures))
    return as_rows(lines)


LENGTHS = st.sampled_from([256, 300, 512, 1000, 1024])


@given(landscapes(), BUDGETS, LENGTHS)
def test_what_fits_keeps_every_limit_and_what_does_not_breaks_one(rows: list[Row], budget: Budget, tokens: int) -> None:
    answer = ask(rows, tokens, budget)
    limits = budget.limits()
    for one in answer.fitting:
        assert all(one.figures.limited()[name].value <= limit for name, limit in limits.items())
        assert bool(one.doubts) == any(one.figures.needs()[name] > limit for name, limit in limits.items())
    for out in answer.rejected:
        assert out.figures is not None
        assert any(out.figures.limited()[name].value > limit for name, limit in limits.items())
        assert out.may_fit == all(out.figures.limited()[name].least <= limit for name, limit in limits.items())
    better = [one for one in answer.fitting if one.beats_mean or budget.max_error is not None]
    others = [one for one in answer.fitting if one not in better]
    assert list(answer.fitting) == better + others
    for order in (better, others):
        sure = [one for one in order if not one.doubts]
        before = order[: order.index(sure[0])] if sure else []
        for one in before:
            assert one.room >= ROOM and AHEAD * one.figures.seconds.value < sure[0].figures.seconds.value
        assert order[len(before) : len(before) + len(sure)] == sure
    assert len(answer.fitting) + len(answer.rejected) == len({row.case.variant for row in rows})
    assert answer.fits == bool(answer.fitting)
    assert (answer.nearest is None) == surely(answer)


@given(landscapes(), BUDGETS, LENGTHS)
def test_the_advice_is_fastest_or_ties_with_it(rows: list[Row], budget: Budget, tokens: int) -> None:
    answer = ask(rows, tokens, budget)
    assume(answer.fits)
    first = answer.fitting[0]
    better = [one for one in answer.fitting if one.beats_mean or budget.max_error is not None] or answer.fitting
    alike = [one for one in better if bool(one.doubts) == bool(first.doubts)]
    fastest = min(alike, key=lambda one: one.figures.seconds.value)
    assert first.variant == fastest.variant or (first.tied and fastest.tied and first.exact and not fastest.exact)


@given(landscapes(), BUDGETS, st.floats(1, 100), st.sampled_from(["max_seconds", "max_bytes", "max_error"]))
def test_a_larger_limit_never_removes_a_candidate(rows: list[Row], budget: Budget, factor: float, name: str) -> None:
    limit = getattr(budget, name)
    relaxed = replace(budget, **{name: None if limit is None or factor > 50 else limit * factor})
    assert set(names(ask(rows, 512, budget).fitting)) <= set(names(ask(rows, 512, relaxed).fitting))


def surely(answer: Answer) -> bool:
    return any(not one.doubts for one in answer.fitting)


FIELDS = {"time": "max_seconds", "memory": "max_bytes", "error": "max_error"}


@given(landscapes(), BUDGETS, LENGTHS)
def test_the_nearest_budget_fits_and_nothing_smaller_does(rows: list[Row], budget: Budget, tokens: int) -> None:
    answer = ask(rows, tokens, budget)
    assume(answer.nearest is not None)
    assert answer.nearest is not None
    for limit, relaxation in answer.nearest.alone.items():
        field = FIELDS[limit]
        if relaxation is None:
            assert not surely(ask(rows, tokens, replace(budget, **{field: None})))
            continue
        raised = getattr(relaxation.budget, field)
        assert replace(relaxation.budget, **{field: getattr(budget, field)}) == budget
        assert relaxation.variant in names(ask(rows, tokens, relaxation.budget).fitting)
        smaller = replace(relaxation.budget, **{field: math.nextafter(raised, 0)})
        assert not surely(ask(rows, tokens, smaller))


@given(landscapes(), BUDGETS, LENGTHS)
def test_the_joint_rise_has_the_smallest_largest_factor(rows: list[Row], budget: Budget, tokens: int) -> None:
    answer = ask(rows, tokens, budget)
    assume(answer.nearest is not None)
    assert answer.nearest is not None
    joint = answer.nearest.joint
    assert joint is not None
    assert surely(ask(rows, tokens, joint.budget))
    assert joint.factor <= min((one.factor for one in answer.nearest.alone.values() if one), default=math.inf)
    shrunk = {FIELDS[name]: limit * joint.factor * (1 - 1e-9) for name, limit in budget.limits().items()}
    assert not surely(ask(rows, tokens, Budget(**shrunk)))


@given(landscapes(), BUDGETS)
def test_the_options_of_a_nearest_budget_admit_what_it_admits(rows: list[Row], budget: Budget) -> None:
    answer = ask(rows, 512, budget)
    assume(answer.nearest is not None)
    assert answer.nearest is not None
    assert answer.nearest.joint is not None
    words = answer.nearest.joint.options.split()
    given_ = {name: float(value) for name, value in zip(words[::2], words[1::2], strict=True)}
    typed = Budget.of_options(given_.get("--max-ms"), given_.get("--max-mib"), given_.get("--max-error"))
    assert surely(ask(rows, 512, typed))


@pytest.mark.parametrize("hot", [None, 3e-4])
def test_launches_that_take_longer_than_the_cards_work_are_told(hot: float | None) -> None:
    def on_card(tokens: int, latency: float) -> dict[str, Any]:
        figures = {"seconds": 4e-4, "latency_seconds": latency, "hot_seconds": hot, "noisy": False}
        return measured("full/matmul", tokens, figures=figures, device="cuda")

    rows = as_rows([on_card(256, 1e-3), on_card(512, 1e-3), on_card(4096, 4.1e-4)])
    short, long = (ask(rows, tokens, device="cuda") for tokens in (300, 4096))
    graph = "; replayed as a graph it takes 300 µs" if hot else ""
    said = f"the host waits 1.00 ms for a call of full/matmul, launches included{graph}"
    assert said in notes(short)
    assert "launches" not in notes(long)
    latency = short.fitting[0].figures.latency_seconds
    assert latency is not None and latency.value == pytest.approx(1e-3)
