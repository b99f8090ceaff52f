import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
import scipy.optimize
from hypothesis import example, given, settings
from hypothesis import strategies as st

from reports.cost_model import InvalidPoints, MemoryModel, TimeModel, TimePrediction, Unpredictable
from reports.nonnegative_fit import fit_nonnegative

LENGTHS = (256, 512, 1024, 1536, 2048, 3072, 4096)

Curve = Callable[[float], float]


def causal(tokens: float) -> float:
    return tokens * (tokens + 1) / 2


def windowed(tokens: float, window: int = 512) -> float:
    seen = min(window, tokens)
    return seen * (seen + 1) / 2 + (tokens - seen) * seen


def model_of(curve: Curve, pairs: Curve = causal, lengths: Sequence[int] = LENGTHS) -> TimeModel:
    return TimeModel.fit(tokens=lengths, seconds=[curve(length) for length in lengths], visible_pairs=pairs)


def width(answer: TimePrediction) -> float:
    return answer.high / answer.low


# ---- exact curves come out exactly


@pytest.mark.parametrize(
    ("curve", "pairs"),
    [
        (lambda n: 3e-8 * n, causal),
        (lambda n: 1e-5 + 3e-8 * n, causal),
        (lambda n: 2e-11 * causal(n), causal),
        (lambda n: 1e-5 + 2e-9 * n + 2e-11 * causal(n), causal),
        (lambda n: 1e-5 + 2e-11 * windowed(n), windowed),
        (lambda n: 2e-9 * n + 2e-11 * windowed(n), windowed),
        (lambda n: 1e-6 + 2e-8 * n, lambda n: n),  # decode: pairs are the length itself
        (lambda _: 4e-5, lambda _: 64),
    ],
    ids=["linear", "affine", "quadratic", "all terms", "window", "window and linear", "decode", "constant"],
)
def test_an_exact_curve_is_recovered(curve: Curve, pairs: Curve) -> None:
    model = model_of(curve, pairs)
    for tokens in (700, 3500, 5000, 6000):
        answer = model.predict(tokens)
        assert answer.seconds == pytest.approx(curve(tokens), rel=1e-6)
        assert answer.low < answer.seconds < answer.high
        assert answer.provenance == ("interpolated" if tokens < 4096 else "extrapolated")


def test_an_exact_curve_is_recovered_far_out() -> None:
    for pairs in (causal, windowed):
        model = model_of(lambda n, pairs=pairs: 1e-6 + 1e-9 * n + 2e-11 * pairs(n), pairs)
        truth = 1e-6 + 1e-9 * 16384 + 2e-11 * pairs(16384)
        assert model.predict(16384).seconds == pytest.approx(truth, rel=1e-6)


def test_a_wrong_declaration_is_not_recovered() -> None:
    declared, wrongly = (model_of(lambda n: 2e-11 * windowed(n), pairs) for pairs in (windowed, causal))
    assert declared.predict(16384).seconds == pytest.approx(2e-11 * windowed(16384))
    with pytest.raises(Unpredictable, match="the ends of the band differ"):
        wrongly.predict(16384)


def test_a_measured_length_is_returned_as_measured() -> None:
    assert model_of(lambda n: 3e-8 * n).predict(1536) == TimePrediction(*[3e-8 * 1536] * 3, "measured")


def test_points_come_in_any_order() -> None:
    seconds = [1e-5 + 2e-11 * causal(n) for n in LENGTHS]
    backwards = TimeModel.fit(tokens=LENGTHS[::-1], seconds=seconds[::-1], visible_pairs=causal)
    forwards = TimeModel.fit(tokens=LENGTHS, seconds=seconds, visible_pairs=causal)
    assert backwards.predict(8000) == forwards.predict(8000)


# ---- properties

noises = st.lists(st.floats(-0.08, 0.08), min_size=len(LENGTHS), max_size=len(LENGTHS))
shares = st.tuples(*[st.floats(0, 1)] * 3).filter(lambda parts: sum(parts) > 0.1)


def noisy(shares: tuple[float, float, float], noise: Sequence[float], lengths: Sequence[int] = LENGTHS) -> list[float]:
    constant, linear, quadratic = shares
    return [
        1e-3 * (constant + linear * n / 4096 + quadratic * causal(n) / causal(4096)) * math.exp(e)
        for n, e in zip(lengths, noise, strict=True)
    ]


def predicted(model: TimeModel, tokens: int) -> TimePrediction | str:
    try:
        return model.predict(tokens)
    except Unpredictable as refusal:
        return refusal.kind


@given(shares, noises)
def test_a_prediction_never_falls_with_the_length(parts: tuple[float, float, float], noise: list[float]) -> None:
    model = TimeModel.fit(tokens=LENGTHS, seconds=sorted(noisy(parts, noise)), visible_pairs=causal)
    answers = [predicted(model, tokens) for tokens in range(256, 16385, 331)]
    seconds = [answer.seconds for answer in answers if isinstance(answer, TimePrediction)]
    assert all(later >= earlier * (1 - 1e-12) for earlier, later in zip(seconds, seconds[1:], strict=False))


@given(shares, noises, st.floats(1e-6, 1e6))
def test_scaled_times_give_scaled_predictions(
    parts: tuple[float, float, float], noise: list[float], factor: float
) -> None:
    seconds = noisy(parts, noise)
    one = TimeModel.fit(tokens=LENGTHS, seconds=seconds, visible_pairs=causal)
    other = TimeModel.fit(tokens=LENGTHS, seconds=[factor * value for value in seconds], visible_pairs=causal)
    for tokens in (300, 5000, 8192):
        before, after = predicted(one, tokens), predicted(other, tokens)
        if isinstance(before, TimePrediction) and isinstance(after, TimePrediction):
            assert after.seconds == pytest.approx(factor * before.seconds, rel=1e-6)
            assert width(after) == pytest.approx(width(before), rel=1e-6)


@given(shares, noises, st.data())
def test_more_points_never_refuse_inside_their_range(
    parts: tuple[float, float, float], noise: list[float], data: st.DataObject
) -> None:
    seconds = dict(zip(LENGTHS, noisy(parts, noise), strict=True))
    few = data.draw(st.lists(st.sampled_from(LENGTHS), min_size=4, unique=True))
    tokens = data.draw(st.integers(min(few), max(few)))
    for lengths in (few, LENGTHS):
        model = TimeModel.fit(tokens=lengths, seconds=[seconds[n] for n in lengths], visible_pairs=causal)
        assert isinstance(predicted(model, tokens), TimePrediction)


@given(shares, noises, st.floats(0.05, 1))
@example((1.0, 0.0, 0.0), [0.0] * 7, 1.0)
def test_no_prediction_is_below_the_floor(parts: tuple[float, float, float], noise: list[float], share: float) -> None:
    seconds = noisy(parts, noise)
    steepest = min(value / causal(n) for n, value in zip(LENGTHS, seconds, strict=True))

    def floor(tokens: int) -> float:
        return share * steepest * causal(tokens) * (1 - 1e-9)

    model = TimeModel.fit(tokens=LENGTHS, seconds=seconds, visible_pairs=causal, floor_seconds=floor)
    for tokens in (300, 5000, 8192, 16384):
        answer = predicted(model, tokens)
        if isinstance(answer, TimePrediction):
            assert floor(tokens) <= answer.low <= answer.seconds <= answer.high


def test_the_floor_lifts_a_prediction() -> None:
    def floor(tokens: int) -> float:
        return 0.0 if tokens <= 4096 else 2.5e-3

    free = TimeModel.fit(tokens=LENGTHS, seconds=[3e-7 * n for n in LENGTHS], visible_pairs=lambda n: n)
    lifted = TimeModel.fit(
        tokens=LENGTHS, seconds=[3e-7 * n for n in LENGTHS], visible_pairs=lambda n: n, floor_seconds=floor
    )
    assert free.predict(8192).low < 2.5e-3 == lifted.predict(8192).low
    assert lifted.predict(6000).seconds == 2.5e-3


# ---- the band


def simulated_cover(noise: float, lengths: Sequence[int], curves: int = 150) -> tuple[float, float]:
    """The shares of simulated held-out points that were answered, and of those in their band."""
    random = np.random.default_rng(20240)
    answered = inside = 0
    for _ in range(curves):
        parts = tuple(random.dirichlet([0.3, 0.6, 1.5]))
        every = [*lengths, 8192, 16384]
        times = noisy(parts, noise * random.standard_normal(len(every)), every)
        model = TimeModel.fit(tokens=lengths, seconds=times[:-2], visible_pairs=causal)
        for tokens, truth in zip(every[-2:], times[-2:], strict=True):
            answer = predicted(model, tokens)
            if isinstance(answer, TimePrediction):
                answered += 1
                inside += answer.low <= truth <= answer.high
    return answered / (2 * curves), inside / answered


@pytest.mark.parametrize(
    ("lengths", "noise"),
    [(LENGTHS, 0.0), (LENGTHS, 0.01), (LENGTHS, 0.03), (LENGTHS, 0.05)]
    + [((512, 1024, 2048, 4096), noise) for noise in (0.0, 0.01, 0.03)],
)
def test_the_band_holds_on_simulated_curves(lengths: Sequence[int], noise: float) -> None:
    answered, inside = simulated_cover(noise, lengths)
    assert answered > 0.5
    assert inside > 0.88


def test_a_band_for_less_noise_does_not_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NOISE", "DOUBT", "DRIFT"):
        monkeypatch.setattr(f"reports.cost_model.{name}", 1e-6)
    monkeypatch.setattr("reports.nonnegative_fit.student_quantile", lambda *_: 0.3)
    assert simulated_cover(0.03, LENGTHS)[1] < 0.6


def test_noise_and_distance_widen_the_band() -> None:
    quiet = [1e-5 + 2e-11 * causal(n) for n in LENGTHS]
    loud = [value * (1.06 if index % 2 else 0.94) for index, value in enumerate(quiet)]
    answers = [TimeModel.fit(tokens=LENGTHS, seconds=times, visible_pairs=causal) for times in (quiet, loud)]
    assert width(answers[0].predict(8192)) < width(answers[0].predict(16384))
    assert 1.2 * width(answers[0].predict(8192)) < width(answers[1].predict(8192))


# ---- refusals, in words


@pytest.mark.parametrize(
    ("lengths", "tokens", "kind", "words"),
    [
        (LENGTHS[:3], 2048, "too few points", "needs 4 measured lengths; there are 3"),
        (LENGTHS[:1], 300, "too few points", "needs 4 measured lengths; there is 1"),
        (LENGTHS, 255, "too short", "255 tokens are below the first measured length, 256"),
        (LENGTHS, 16385, "too far", "16385 tokens are more than 4 times the last measured length, 4096"),
    ],
)
def test_lengths_out_of_reach_are_refused(lengths: Sequence[int], tokens: int, kind: str, words: str) -> None:
    with pytest.raises(Unpredictable, match=words) as refusal:
        model_of(lambda n: 2e-11 * causal(n), lengths=lengths).predict(tokens)
    assert refusal.value.kind == kind


def test_four_times_the_last_length_is_not_refused() -> None:
    assert model_of(lambda n: 2e-11 * causal(n)).predict(16384).provenance == "extrapolated"


def test_a_wide_band_is_refused() -> None:
    with pytest.raises(
        Unpredictable, match=r"at 16384 tokens the ends of the band differ by a factor of \d"
    ) as refusal:
        model_of(lambda n: 1e-3 + 1e-14 * causal(n)).predict(16384)
    assert refusal.value.kind == "band too wide"


def test_a_kernel_that_computes_more_than_it_declares_is_refused() -> None:
    masked = model_of(lambda n: 1e-5 + 2e-11 * causal(n), windowed)
    with pytest.raises(Unpredictable, match=r"computes more than it declares, or outgrew a cache") as refusal:
        masked.predict(8192)
    assert refusal.value.kind == "outgrew its work"
    assert masked.predict(3500).provenance == "interpolated"


@pytest.mark.parametrize(("exponent", "refused"), [(1.05, False), (1.1, False), (1.2, True), (1.4, True)])
def test_a_tenth_more_than_declared_is_noise(exponent: float, refused: bool) -> None:
    """Pairs that are declared to double double the time; a power a little above does not contradict that."""
    answer = predicted(model_of(lambda n: 1e-8 * n**exponent, lambda n: n, (1024, 1280, 1536, 2048)), 3000)
    assert (answer == "outgrew its work") == refused


@pytest.mark.parametrize(
    ("tokens", "seconds", "words"),
    [
        ([], [], "measured at no length"),
        ([1, 2], [1.0], "2 lengths but 1 seconds"),
        ([1, 2, 2], [1.0, 2.0, 2.0], "2 tokens were measured twice"),
        ([0, 2], [1.0, 2.0], "at least 1, not 0"),
        ([1.5, 2], [1.0, 2.0], "whole number of at least 1, not 1.5"),
        ([math.nan, 2], [1.0, 2.0], "whole number of at least 1, not nan"),
        ([True, 2], [1.0, 2.0], "whole number of at least 1, not True"),
        ([1, 2], [0.0, 2.0], "positive finite numbers, not 0.0"),
        ([1, 2], [-1.0, 2.0], "positive finite numbers, not -1.0"),
        ([1, 2], [math.nan, 2.0], "positive finite numbers, not nan"),
        ([1, 2], [math.inf, 2.0], "positive finite numbers, not inf"),
    ],
)
def test_impossible_points_are_refused(tokens: list[int], seconds: list[float], words: str) -> None:
    with pytest.raises(InvalidPoints, match=words):
        TimeModel.fit(tokens=tokens, seconds=seconds, visible_pairs=causal)


def test_impossible_declarations_are_refused() -> None:
    seconds = [3e-8 * n for n in LENGTHS]
    with pytest.raises(InvalidPoints, match="positive finite number, not 0.0 at 256 tokens"):
        TimeModel.fit(tokens=LENGTHS, seconds=seconds, visible_pairs=lambda n: n - 256)
    with pytest.raises(InvalidPoints, match="visible_pairs falls"):
        TimeModel.fit(tokens=LENGTHS, seconds=seconds, visible_pairs=lambda n: 1e9 - n)
    with pytest.raises(InvalidPoints, match="at 256 tokens is faster than the roofline, 1 s"):
        TimeModel.fit(tokens=LENGTHS, seconds=seconds, visible_pairs=causal, floor_seconds=lambda _: 1.0)
    with pytest.raises(InvalidPoints, match="floor_seconds must be a finite number"):
        TimeModel.fit(tokens=LENGTHS, seconds=seconds, visible_pairs=causal, floor_seconds=lambda _: math.nan)


# ---- bounds: what limits a time all the same


def left_its_cache(length: int) -> float:
    """In proportion to the length, of which each from 2048 on costs half as much again."""
    return 1e-6 * length * (1.5 if length >= 2048 else 1.0)


@pytest.mark.parametrize(("tokens", "still_steep"), [(4096, 2 * 1.5), (8192, (2 * 1.5) ** 2)])
def test_what_outgrew_its_work_is_bounded_from_its_work_to_its_last_steps(tokens: int, still_steep: float) -> None:
    lengths = (256, 512, 1024, 2048)
    model = TimeModel.fit(tokens=lengths, seconds=[left_its_cache(n) for n in lengths], visible_pairs=lambda n: n)
    with pytest.raises(Unpredictable, match="the time grew"):
        model.predict(tokens)
    answer, last = model.bounds(tokens), left_its_cache(2048)
    assert answer.provenance == "extrapolated"
    assert answer.low < left_its_cache(tokens) < answer.seconds < last * still_steep < answer.high


def test_bounds_are_the_predictions_but_for_what_is_refused() -> None:
    lengths = (256, 512, 1024, 2048)
    model = TimeModel.fit(tokens=lengths, seconds=[1e-9 * n**2 for n in lengths], visible_pairs=lambda n: n**2)
    for tokens in (512, 700, 4096, 8192):
        assert model.bounds(tokens) == model.predict(tokens)
    for tokens in (100, 8193):
        with pytest.raises(Unpredictable):
            model.bounds(tokens)
    wide = replace(model, widening=50.0)
    with pytest.raises(Unpredictable, match="the ends of the band differ"):
        wide.predict(8192)
    assert wide.bounds(8192).high > 2 * wide.bounds(8192).low


# ---- the solver, against scipy


@given(st.integers(0, 10_000))
def test_the_fit_is_scipys_solution(seed: int) -> None:
    random = np.random.default_rng(seed)
    terms = np.stack([[1.0, n / 4096, causal(n) / causal(4096)] for n in LENGTHS])
    values = random.uniform(0.1, 2, len(LENGTHS))
    weights = np.array(LENGTHS) / 4096
    fit = fit_nonnegative(terms, values, weights, 0.02)
    expected, distance = scipy.optimize.nnls(terms * (weights / values)[:, None], weights)
    residual = (terms @ fit.coefficients / values - 1) * weights
    assert np.linalg.norm(residual) == pytest.approx(distance, rel=1e-6)
    assert fit.coefficients == pytest.approx(expected, abs=1e-4)


def test_the_response_is_the_derivative() -> None:
    terms = np.stack([[1.0, n / 4096, causal(n) / causal(4096)] for n in LENGTHS])
    values = terms @ [0.2, 0.3, 0.5] * np.array([1.02, 0.99, 1.01, 1, 0.99, 1.01, 1])
    weights = np.array(LENGTHS) / 4096
    fit = fit_nonnegative(terms, values, weights, 0.02)
    for point in range(len(LENGTHS)):
        moved = values.copy()
        moved[point] *= 1 + 1e-6
        change = (fit_nonnegative(terms, moved, weights, 0.02).coefficients - fit.coefficients) / 1e-6
        assert change == pytest.approx(fit.response[:, point], abs=0.05)


# ---- memory


def memory_of(size: Curve, lengths: Sequence[int] = LENGTHS, certain: Curve = lambda _: 0.0) -> MemoryModel:
    return MemoryModel.fit(tokens=lengths, size_bytes=[size(n) for n in lengths], certain_bytes=certain)


@pytest.mark.parametrize("tokens", [6144, 8192, 12288, 16384])
@pytest.mark.parametrize(
    "size", [lambda n: 36 * n**2 + 1024 * n, lambda n: 4 * n**2, lambda _: 458784, lambda n: 8 * n**2 + 2**20]
)
def test_whole_matrices_are_exact_to_the_byte(size: Curve, tokens: int) -> None:
    answer = memory_of(size).predict(tokens)
    assert round(answer.size_bytes) == size(tokens)
    assert answer.low <= size(tokens) <= answer.high < 1.03 * answer.low * size(tokens) / answer.size_bytes


def test_what_grows_in_proportion_may_stop() -> None:
    model = memory_of(lambda n: 4096 * n + 66560)
    answer = model.predict(8000)
    assert round(answer.size_bytes) == 4096 * 8000 + 66560
    assert answer.low < 4096 * 4096 + 66560 < answer.high
    with pytest.raises(Unpredictable, match="the ends of the band differ"):
        model.predict(16384)
    certain = memory_of(lambda n: 4096 * n + 66560, certain=lambda n: 4096 * n).predict(16384)
    assert certain.low > 0.98 * certain.size_bytes


def test_small_sizes_are_piecewise() -> None:
    def size(tokens: float) -> float:
        return 36 * tokens**2 * (3 if tokens <= 512 else 1)

    assert memory_of(size).predict(8192).size_bytes == pytest.approx(size(8192), rel=0.01)


def test_memory_between_lengths() -> None:
    model = memory_of(lambda n: 36 * n**2 + 1024 * n)
    assert round(model.predict(700).size_bytes) == 36 * 700**2 + 1024 * 700
    assert model.predict(700).provenance == "interpolated"
    assert model.predict(1024).provenance == "measured"
    assert model.predict(1024).size_bytes == 36 * 1024**2 + 1024**2


def test_memory_is_refused_in_the_same_words() -> None:
    with pytest.raises(Unpredictable, match="there are 3"):
        memory_of(lambda n: n, LENGTHS[:3]).predict(4096)
    with pytest.raises(Unpredictable, match="more than 4 times"):
        memory_of(lambda n: n**2).predict(20_000)
    with pytest.raises(Unpredictable, match="below the first"):
        memory_of(lambda n: n**2).predict(100)
    with pytest.raises(InvalidPoints, match="at 256 tokens is less than the part of it that is certain"):
        memory_of(lambda n: n, certain=lambda n: 2 * n)


@settings(max_examples=30)
@given(st.lists(st.floats(1, 1e12), min_size=4, max_size=7), st.integers(256, 16384))
def test_any_sizes_give_a_band_or_a_refusal(sizes: list[float], tokens: int) -> None:
    model = MemoryModel.fit(tokens=LENGTHS[: len(sizes)], size_bytes=sizes)
    try:
        answer = model.predict(tokens)
    except Unpredictable:
        return
    assert 0 < answer.low <= answer.size_bytes <= answer.high < math.inf
