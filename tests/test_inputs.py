"""The kinds of input: shapes, seeds, refusals, and the structure that each is made for."""

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from benchmarks import inputs
from benchmarks.inputs import CAPTURED, KINDS, UnavailableInputs, make_inputs
from variants import Problem
from variants.dtypes import TORCH_DTYPES
from variants.full import DEFINITION as FULL

DRAWN = [kind for kind in KINDS if kind != "captured"]


def row_weights(q: Tensor, k: Tensor) -> Tensor:
    """Softmax attention's weights, all heads and queries."""
    identity = torch.eye(k.shape[2], dtype=torch.float64).expand(*k.shape[:2], -1, -1)
    return FULL.reference(q, k, identity, causal=False)


def logits(q: Tensor, k: Tensor) -> Tensor:
    return q.double() @ k.double().mT / q.shape[-1] ** 0.5


# ---- every kind


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "problem",
    [
        Problem(tokens=65, heads=6, kv_heads=2, batch=3),
        Problem(tokens=20, kv_tokens=90, dtype="bfloat16", head_dim=48),
        Problem(tokens=90, kv_tokens=20, dtype="float16", head_dim=33),
        Problem.of_length(77, mode="decode", dtype="float64"),
        Problem(tokens=0),
        Problem(tokens=1),
        Problem(tokens=9, batch=0),
    ],
    ids=str,
)
def test_shape_dtype_and_finite(kind: str, problem: Problem) -> None:
    q, k, v = make_inputs(problem, kind)
    assert q.shape == (problem.batch, problem.heads, problem.tokens, problem.head_dim)
    assert k.shape == v.shape == (problem.batch, problem.kv_heads, problem.kv_tokens, problem.head_dim)
    for x in (q, k, v):
        assert x.dtype == TORCH_DTYPES[problem.dtype]
        assert x.device.type == "cpu" and not x.requires_grad
        assert x.isfinite().all()
        assert x.numel() == 0 or x.double().norm() > 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_seed_is_reproducible_and_the_global_generator_is_left_alone(kind: str) -> None:
    problem = Problem(tokens=40, batch=4)
    state = torch.get_rng_state()
    first, again, other = (make_inputs(problem, kind, seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    for x, same, different in zip(first, again, other, strict=True):
        assert torch.equal(x, same)
        assert not torch.equal(x, different)
    assert not torch.equal(first[1], first[2])


@pytest.mark.parametrize("kind", KINDS)
def test_every_dtype_sees_the_same_numbers(kind: str) -> None:
    wide = make_inputs(Problem(tokens=40, dtype="float64"), kind)
    for dtype in ("float32", "bfloat16", "float16"):
        narrow = make_inputs(Problem(tokens=40, dtype=dtype), kind)
        assert all(torch.equal(x.to(y.dtype), y) for x, y in zip(wide, narrow, strict=True))


@pytest.mark.parametrize("kind", ["uniform", "", "Normal"])
def test_an_unknown_kind_names_those_that_there_are(kind: str) -> None:
    said = f"inputs must be one of normal, smooth, peaky, sink, local, captured, not {kind!r}"
    with pytest.raises(UnavailableInputs, match=said):
        make_inputs(Problem(tokens=4), kind)


# ---- what each is made for


LONG = Problem(tokens=512, dtype="float64")


def test_normal_is_the_control() -> None:
    for x in make_inputs(LONG, "normal"):
        assert abs(x.mean()) < 0.01
        assert abs(x.std() - 1) < 0.01


def test_smooth_series_have_their_correlation_from_the_first_token_on() -> None:
    problem = Problem(tokens=600, batch=4, heads=16, dtype="float64")  # many series, one after the other independent
    for x in make_inputs(problem, "smooth"):
        assert abs(x.std() - 1) < 0.03
        assert abs(x[:, :, :3].std() - 1) < 0.03
        for lag in (1, 10, 40):
            correlation = (x[:, :, lag:] * x[:, :, :-lag]).mean() / (x**2).mean()
            assert abs(correlation - 0.95**lag) < 0.02
        start = (x[:, :, 1] * x[:, :, 0]).mean()
        assert abs(start - 0.95) < 0.06


def test_peaky_logits_spread_four_times_as_far() -> None:
    for kind, spread in (("normal", 1.0), ("peaky", 4.0)):
        q, k, _ = make_inputs(LONG, kind)
        assert abs(logits(q, k).std() - spread) < 0.02 * spread
    q, k, v = make_inputs(LONG, "peaky")
    assert row_weights(q, k).amax(-1).mean() > 0.2  # one key holds much of a row's mass
    assert abs(v.std() - 1) < 0.01


def test_the_sink_attracts_every_query_and_holds_little() -> None:
    q, k, v = make_inputs(LONG, "sink")
    mass = row_weights(q, k)[..., :4].sum(-1)
    assert mass.mean() > 0.5
    assert (mass > 4 / 512).double().mean() > 0.99  # more than its share, for nearly every query
    q, k, _ = make_inputs(LONG, "normal")
    assert row_weights(q, k)[..., :4].sum(-1).mean() < 0.02
    assert v[:, :, :4].norm(dim=-1).mean() < 0.2 * v[:, :, 4:].norm(dim=-1).mean()


def test_local_mass_falls_with_distance() -> None:
    q, k, _ = make_inputs(LONG, "local")
    weights = row_weights(q, k)
    position = torch.arange(512)
    distance = (position[:, None] - position).abs()
    mass = [weights[..., (distance >= low) & (distance < high)].mean() for low, high in ((0, 4), (16, 64), (128, 512))]
    assert mass[0] > 3 * mass[1] > 3 * mass[2]


def test_local_positions_of_few_queries_are_the_last() -> None:
    few = Problem(tokens=8, kv_tokens=512, dtype="float64")
    q, k, _ = make_inputs(few, "local")
    nearest = row_weights(q, k)[..., 480:].sum(-1).mean()
    assert nearest > 3 * 32 / 512


# ---- captured


def test_the_captured_file_holds_real_heads() -> None:
    stored = load_file(CAPTURED)
    assert set(stored) == {"q", "k", "v"}
    for x in stored.values():
        assert x.dtype == torch.float16
        assert x.shape == (3, 4, inputs.CAPTURED_TOKENS, inputs.CAPTURED_HEAD_DIM)
        assert x.isfinite().all()
        assert (x.float().std(dim=2) > 1e-3).float().mean() > 0.99  # no dead channels
    heads = stored["q"].flatten(0, 1)
    assert len({head.float().sum().item() for head in heads}) == 12  # twelve different heads


def test_captured_attention_is_neither_uniform_nor_one_key() -> None:
    q, k, _ = make_inputs(Problem(tokens=512, heads=12, head_dim=32, dtype="float64"), "captured")
    weights = row_weights(q, k).clamp(min=1e-300)
    entropy = -(weights * weights.log()).sum(-1).mean((0, 2)) / torch.tensor(512.0).log()
    assert entropy.min() < 0.6
    assert entropy.max() > 0.7
    assert (entropy < 0.99).all()


def test_wider_heads_keep_the_captured_logits() -> None:
    narrow, wide = (
        make_inputs(Problem(tokens=100, heads=4, head_dim=size, dtype="float64"), "captured") for size in (32, 64)
    )
    torch.testing.assert_close(logits(narrow[0], narrow[1]), logits(wide[0], wide[1]))
    assert not wide[2][..., 32:].any()
    assert torch.equal(wide[2][..., :32], narrow[2])


def test_grouped_queries_meet_keys_of_their_own_head() -> None:
    problem = Problem(tokens=64, heads=8, kv_heads=2, head_dim=32, dtype="float64")
    q, k, _ = make_inputs(problem, "captured")
    ungrouped = make_inputs(problem.with_(kv_heads=8), "captured")
    assert torch.equal(q, ungrouped[0])
    assert torch.equal(k, ungrouped[1][:, [0, 4]])


def test_batch_items_are_different_windows_of_the_text() -> None:
    q, _, _ = make_inputs(Problem(tokens=64, batch=3, head_dim=32), "captured")
    assert not torch.equal(q[0], q[1])


def test_few_queries_are_the_last_of_their_window() -> None:
    q, _, _ = make_inputs(Problem(tokens=8, kv_tokens=512, head_dim=32), "captured")
    whole, _, _ = make_inputs(Problem(tokens=512, head_dim=32), "captured")
    assert torch.equal(q, whole[:, :, 504:])


@pytest.mark.parametrize(
    ("problem", "said"),
    [
        (Problem(tokens=513), "captured inputs hold 512 tokens: 513 is too long"),
        (Problem(tokens=600, kv_tokens=4), "captured inputs hold 512 tokens: 600 is too long"),
        (Problem.of_length(4096, mode="decode"), "captured inputs hold 512 tokens: 4096 is too long"),
        (Problem(tokens=8, head_dim=16), "captured inputs have head_dim 32: 16 is too small"),
    ],
)
def test_what_the_captured_file_cannot_give_is_refused(problem: Problem, said: str) -> None:
    with pytest.raises(UnavailableInputs, match=said):
        make_inputs(problem, "captured")


def test_a_missing_captured_file_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "CAPTURED", CAPTURED.with_name("elsewhere.safetensors"))
    with pytest.raises(UnavailableInputs, match=r"elsewhere\.safetensors is missing from this installation"):
        make_inputs(Problem(tokens=8), "captured")
