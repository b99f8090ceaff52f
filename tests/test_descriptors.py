"""The further kinds of input have the structure of their name, and descriptors give known answers."""

import math

import pytest
import torch
from torch import Tensor

import attnscape
from benchmarks.descriptors import describe_inputs, described_rows, lag1_correlation, row_entropy, stable_rank
from benchmarks.inputs import ALL_KINDS, KINDS, UnavailableInputs, make_inputs
from benchmarks.measurement import Case
from benchmarks.structured_inputs import ENTROPIES, RANKS, STRUCTURED
from benchmarks.worker import Bench
from variants import Problem
from variants.dtypes import TORCH_DTYPES
from variants.full import DEFINITION as FULL

LONG = Problem(tokens=512, heads=4, dtype="float64")


def zeros(problem: Problem) -> tuple[Tensor, Tensor, Tensor]:
    """q is nought, so that every visible key weighs the same."""
    q, k, v = make_inputs(problem, "normal")
    return torch.zeros_like(q), k, v


# ---- every further kind


@pytest.mark.parametrize("kind", STRUCTURED)
@pytest.mark.parametrize(
    "problem",
    [
        Problem(tokens=65, heads=6, kv_heads=2, batch=3),
        Problem(tokens=20, kv_tokens=90, dtype="bfloat16", head_dim=48, causal=True),
        Problem(tokens=90, kv_tokens=20, dtype="float16", head_dim=33, causal=True),
        Problem.of_length(77, mode="decode", dtype="float64"),
        Problem(tokens=0),
        Problem(tokens=1),
        Problem(tokens=9, batch=0),
    ],
    ids=str,
)
def test_shape_dtype_finite_and_seed(kind: str, problem: Problem) -> None:
    state = torch.get_rng_state()
    inputs, again, other = (make_inputs(problem, kind, seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    q, k, v = inputs
    assert q.shape == (problem.batch, problem.heads, problem.tokens, problem.head_dim)
    assert k.shape == v.shape == (problem.batch, problem.kv_heads, problem.kv_tokens, problem.head_dim)
    for x, same, different in zip(inputs, again, other, strict=True):
        assert x.dtype == TORCH_DTYPES[problem.dtype] and x.isfinite().all()
        assert torch.equal(x, same)
        assert x.numel() == 0 or not torch.equal(x, different)


def test_the_usual_kinds_stay_and_the_further_ones_are_named_beside_them() -> None:
    assert list(KINDS) == ["normal", "smooth", "peaky", "sink", "local", "captured"]
    assert list(ALL_KINDS)[:6] == list(KINDS)
    assert {f"entropy_{part}" for part in (99, 90, 60, 30, 10)} | {"rank_1", "rank_4", "rank_16"} <= set(STRUCTURED)
    with pytest.raises(UnavailableInputs, match="there are also entropy_99, "):
        make_inputs(LONG, "entropy_98")


def test_all_asks_for_every_kind(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["run", "--plan", "--variants", "full/matmul", "--tokens", "64", "--causal", "--inputs", "all"]
    assert attnscape.main(words) == 0
    out = capsys.readouterr().out
    assert all(f" {kind} " in out for kind in ALL_KINDS)


# ---- what each is made for


@pytest.mark.parametrize("target", ENTROPIES)
@pytest.mark.parametrize("causal", [False, True])
def test_an_entropy_is_met_as_the_definition_of_full_attention_sees_it(target: float, causal: bool) -> None:
    problem = Problem(tokens=200, heads=3, dtype="float64", causal=causal)
    q, k, v = make_inputs(problem, f"entropy_{round(100 * target)}", seed=3)
    identity = torch.eye(200, dtype=torch.float64).expand(1, 3, -1, -1)
    rows = described_rows(problem)
    weights = FULL.reference(q, k, identity, causal=causal, rows=rows)
    visible = (rows + 1 if causal else torch.full_like(rows, 200)).double()
    found = (torch.special.entr(weights).sum(-1) / visible.log()).mean()
    assert abs(found - target) < 1e-4
    assert abs(describe_inputs((q, k, v), problem)["row_entropy"] - target) < 1e-4


def test_outliers_are_rare_and_long() -> None:
    _, k, v = make_inputs(LONG, "outliers")
    for x in (k, v):
        long = x.norm(dim=-1).mean((0, 1)) > 3 * 64**0.5
        assert long.sum() == 5
        assert abs(x[:, :, long].std() - 8) < 0.4 and abs(x[:, :, ~long].std() - 1) < 0.02


def test_exact_attention_does_not_see_the_shift_of_channels() -> None:
    q, k, v = make_inputs(LONG, "channel_shift")
    centre = k.mean(2, keepdim=True)
    assert (centre > 7).sum() == 4 * 4 and (centre.abs() < 1).sum() == 4 * 60
    shifted, plain = (FULL.reference(q, keys, v, causal=False) for keys in (k, k - centre))
    assert (shifted - plain).norm() / plain.norm() < 1e-12
    assert stable_rank(k) < 4 < stable_rank(k - centre)  # type: ignore[operator]  # no head is nought


@pytest.mark.parametrize("rank", RANKS)
def test_logits_have_the_rank_of_their_name(rank: int) -> None:
    problem = Problem(tokens=128, heads=4, kv_heads=2, dtype="float64")
    q, k, v = make_inputs(problem, f"rank_{rank}")
    logits = q @ k.repeat_interleave(2, 1).mT / 8
    assert (torch.linalg.matrix_rank(logits, rtol=1e-10) == rank).all()
    assert abs(logits.std() - 1) < 0.15
    assert (torch.linalg.matrix_rank(v) == 64).all()
    with pytest.raises(UnavailableInputs, match="rank_16 inputs need head_dim ≥ 16: 8 is too small"):
        make_inputs(Problem(tokens=8, head_dim=8), "rank_16")


def test_a_cluster_keeps_its_mass_to_itself() -> None:
    q, k, _ = make_inputs(LONG, "clusters")
    identity = torch.eye(512, dtype=torch.float64).expand(1, 4, -1, -1)
    weights = FULL.reference(q, k, identity, causal=False)
    near = k @ k.mT > 24
    assert 0.03 < near.double().mean() < 0.12  # sixteen groups of about equal size
    assert (weights * near).sum(-1).mean() > 0.75
    assert (near[:, :1] == near).double().mean() > 0.99  # of the same group in every head


def test_only_v_is_rough() -> None:
    inputs = make_inputs(LONG, "rough")
    for x, correlation in zip(inputs, (0.95, 0.95, -0.95), strict=True):
        assert abs((lag1_correlation(x) or 0) - correlation) < 0.02
    assert all(torch.equal(x, y) for x, y in zip(inputs[:2], make_inputs(LONG, "smooth")[:2], strict=True))


# ---- descriptors with known answers


@pytest.mark.parametrize("causal", [False, True])
def test_equal_weights(causal: bool) -> None:
    problem = Problem(tokens=400, heads=2, causal=causal)
    found = describe_inputs(zeros(problem), problem)
    rows = described_rows(problem).double()
    visible = rows + 1 if causal else torch.full_like(rows, 400)
    near = torch.minimum(rows, torch.tensor(128.0)) + 1
    if not causal:
        near = near + torch.minimum(399 - rows, torch.tensor(128.0))
    assert math.isclose(found["row_entropy"], 1.0)
    assert found["logit_std"] == 0
    assert math.isclose(found["top64_mass"], (64 / visible).clamp(max=1).mean())
    assert math.isclose(found["sink4_mass"], (4 / visible).clamp(max=1).mean())
    assert math.isclose(found["local128_mass"], (near / visible).mean())


def test_one_key_takes_all() -> None:
    problem = Problem(tokens=300, heads=1, head_dim=4, dtype="float64")
    q, k, v = torch.ones(1, 1, 300, 4), torch.zeros(1, 1, 300, 4), torch.zeros(1, 1, 300, 4)
    k[:, :, 2] = 1000.0
    found = describe_inputs((q, k, v), problem)
    assert found["row_entropy"] == 0
    assert found["sink4_mass"] == found["top64_mass"] == 1
    rows = described_rows(problem)
    assert math.isclose(found["local128_mass"], ((rows - 2).abs() <= 128).double().mean())
    assert math.isclose(found["logit_std"], 2000 * (299**0.5 / 300))
    assert math.isclose(found["k_stable_rank"], 1)
    assert "v_lag1_correlation" not in found  # a constant has none


def test_offsets_move_what_is_near() -> None:
    problem = Problem(tokens=1, kv_tokens=1000, heads=2)
    assert math.isclose(describe_inputs(zeros(problem), problem)["local128_mass"], 129 / 1000)


def test_stable_rank_and_correlation() -> None:
    assert stable_rank(torch.eye(8).expand(2, 3, 8, 8)) == 8
    assert math.isclose(stable_rank(torch.diag(torch.tensor([2.0, 1.0]))[None, None]) or 0, 1.25)
    assert stable_rank(torch.zeros(1, 1, 4, 4)) is None
    assert stable_rank(torch.full((1, 1, 4, 4), torch.inf)) is None
    sign = (-1.0) ** torch.arange(101)[:, None].expand(1, 1, 101, 3)
    assert math.isclose(lag1_correlation(sign) or 0, -1)
    assert lag1_correlation(torch.full((1, 1, 50, 3), 0.1)) is None
    assert lag1_correlation(torch.ones(1, 1, 1, 3)) is None


@pytest.mark.parametrize(
    "problem",
    [
        Problem(tokens=0),
        Problem(tokens=4, batch=0),
        Problem(tokens=1),
        Problem(tokens=5, kv_tokens=0),
        Problem(tokens=5, kv_tokens=1),
    ],
    ids=str,
)
def test_what_is_not_defined_is_left_out(problem: Problem) -> None:
    found = describe_inputs(make_inputs(problem, "normal"), problem)
    assert set(found) <= {"k_stable_rank", "v_lag1_correlation"}
    assert row_entropy(make_inputs(problem, "normal"), problem) is None


def test_rows_that_see_one_key_or_none_are_not_looked_at() -> None:
    assert described_rows(Problem(tokens=4, causal=True)).tolist() == [1, 2, 3]
    assert described_rows(Problem(tokens=6, kv_tokens=4, causal=True)).tolist() == [3, 4, 5]
    many = described_rows(Problem(tokens=10_000))
    assert len(many) == len(set(many.tolist())) == 64 and many[-1] == 9999
    assert (many.diff() > 0).all()


def test_grouped_heads_and_layout_make_no_difference() -> None:
    grouped = Problem(tokens=90, heads=4, kv_heads=2, causal=True, dtype="float64")
    q, k, v = make_inputs(grouped, "sink")
    plain = grouped.with_(kv_heads=4)
    wide = tuple(x.repeat_interleave(2, 1) for x in (k, v))
    one, other = describe_inputs((q, k, v), grouped), describe_inputs((q, *wide), plain)
    assert set(one) == set(other)
    assert all(math.isclose(one[name], other[name], rel_tol=1e-12) for name in one)
    assert one["sink4_mass"] > 0.5


def test_a_worker_describes_what_it_measures() -> None:
    case = Case.of("full/matmul", {}, Problem(tokens=100, heads=2), "entropy_30")
    figures = Bench("default").prepare(case, 1, timed=False)
    assert abs(figures["descriptors"]["row_entropy"] - 0.3) < 1e-4
    assert len(figures["descriptors"]) == 7
