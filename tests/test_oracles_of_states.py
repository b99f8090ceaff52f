"""Oracles of recurrent forms: o_i = r_iᵀS_i, S_i = G_i S_{i−1} + w_i v_iᵀ, with each G_i written out as a matrix.

And of the operators that read the values alone, channel by channel in plain Python.
"""

import math
from collections.abc import Callable
from itertools import product
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from variants import (
    Problem,
    delta_rule,
    depthwise_convolution,
    favor,
    gated_delta_rule,
    gated_linear,
    gru,
    lightning,
    long_convolution,
    retention,
    rwkv7,
    ssd,
)
from variants.catalogue import load, names
from variants.long_convolution.fft import padded_length

DEFINITIONS = {load(name).definition.name: load(name).definition for name in names()}

Parameters = dict[str, int]


class Steps(NamedTuple):
    """The recurrence of one head: a matrix and a vector for each key, and a vector for each query."""

    transitions: list[Tensor]
    writes: list[Tensor]
    reads: list[Tensor]


class Head(NamedTuple):
    """The queries and keys of one head, and its place among the heads."""

    q: Tensor
    k: Tensor
    number: int
    of: int

    @property
    def kept(self) -> list[Tensor]:
        """Transitions of a state that forgets nothing."""
        return [torch.eye(self.k.shape[1], dtype=torch.float64) for _ in self.k]


def unit(x: Tensor) -> Tensor:
    length = math.sqrt(sum(one * one for one in x.tolist()))
    return x / length if length else x


def retained(head: Head) -> Steps:
    gamma = 1 - 2 ** (-5 - head.number)
    return Steps([gamma * eye for eye in head.kept], list(head.k), [q / math.sqrt(len(q)) for q in head.q])


def lit(head: Head) -> Steps:
    fading = math.exp(-(2 ** (-8 * (head.number + 1) / head.of)))
    return Steps([fading * eye for eye in head.kept], list(head.k), list(head.q))


def gated(head: Head) -> Steps:
    alpha = gated_linear.log_decays(head.of, *head.k.shape)[head.number].exp()
    return Steps([torch.diag(a) for a in alpha], list(head.k), list(head.q))


def spaced(head: Head) -> Steps:
    step = ssd.step_sizes(head.of, len(head.k))[head.number].tolist()
    rate = ssd.rates(head.of)[head.number].item()
    fading = [math.exp(rate * delta) * eye for delta, eye in zip(step, head.kept, strict=True)]
    return Steps(fading, [delta * k for delta, k in zip(step, head.k, strict=True)], list(head.q))


def corrected(head: Head) -> Steps:
    return corrected_after_decay(head, torch.ones(len(head.k)), delta_rule.rates(head.of, len(head.k))[head.number])


def decayed_and_corrected(head: Head) -> Steps:
    shape = head.of, len(head.k)
    decays, rates = gated_delta_rule.log_decays(*shape), gated_delta_rule.rates(*shape)
    return corrected_after_decay(head, decays[head.number].exp(), rates[head.number])


def corrected_after_decay(head: Head, alpha: Tensor, beta: Tensor) -> Steps:
    kappa = [unit(k) for k in head.k]
    transitions = [
        a * (eye - b * torch.outer(k, k)) for a, b, k, eye in zip(alpha, beta, kappa, head.kept, strict=True)
    ]
    return Steps(transitions, [b * k for b, k in zip(beta, kappa, strict=True)], list(head.q))


def removed_and_replaced(head: Head) -> Steps:
    shape = head.of, *head.k.shape
    w, a = rwkv7.log_decays(*shape)[head.number].exp(), rwkv7.learning_rates(*shape)[head.number]
    xi, alpha = (x[head.number] for x in rwkv7.key_scales(head.of, head.k.shape[1]))
    hat = [unit(k * xi) for k in head.k]
    transitions = [torch.diag(w[t]) - torch.outer(a[t] * hat[t], hat[t]) for t in range(len(hat))]
    return Steps(transitions, [k * (1 + (a[t] - 1) * alpha) for t, k in enumerate(head.k)], list(head.q))


def waves(head: Head) -> Steps:
    def features(x: Tensor, i: int) -> Tensor:
        angle, positive = math.pi * i / (2 * len(head.k)), torch.relu(x)
        return torch.cat([positive * math.cos(angle), positive * math.sin(angle)])

    eye = torch.eye(2 * head.k.shape[1], dtype=torch.float64)
    return Steps([eye for _ in head.k], *([features(x, i) for i, x in enumerate(both)] for both in (head.k, head.q)))


def random_features(head: Head, features: int) -> Steps:
    omega = favor.projection(head.k.shape[1], features)

    def phi(x: Tensor) -> Tensor:
        x = x / len(x) ** 0.25
        return torch.stack([math.e ** (row @ x - x @ x / 2) for row in omega]) / math.sqrt(features)

    eye = torch.eye(features, dtype=torch.float64)
    return Steps([eye for _ in head.k], [phi(k) for k in head.k], [phi(q) for q in head.q])


STEPS: dict[str, Callable[..., Steps]] = {
    "cosformer": waves,
    "delta_rule": corrected,
    "favor": random_features,
    "gated_delta_rule": decayed_and_corrected,
    "gated_linear": gated,
    "lightning": lit,
    "retention": retained,
    "rwkv7": removed_and_replaced,
    "ssd": spaced,
}
NORMALISED = {"cosformer", "favor"}  # these have a form that is not causal, too
ANY_LENGTHS = {"favor", "lightning", "retention"}
PARAMETERS: dict[str, list[Parameters]] = {"favor": [{"features": 1}, {"features": 3}, {"features": 8}]}
SIZES = [(0, 0), (1, 1), (7, 7), (21, 21), (3, 20), (20, 3), (1, 19), (5, 0), (0, 5)]


def forms() -> list[tuple[str, bool, Parameters]]:
    masks = {name: [True, False] if name in NORMALISED else [True] for name in sorted(STEPS)}
    return [form for name in masks for form in product([name], masks[name], PARAMETERS.get(name, [{}]))]


def cases() -> list[tuple[Any, ...]]:
    sized = product(forms(), SIZES)
    return [(*form, *size) for form, size in sized if size[0] == size[1] or form[0] in ANY_LENGTHS]


def inputs(tokens: int, kv_tokens: int, *, heads: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    q = torch.randn(2, heads, tokens, 3, dtype=torch.float64)
    k, v = (torch.randn(2, 1, kv_tokens, size, dtype=torch.float64) for size in (3, 4))
    return q, k, v


def outputs(steps: Steps, values: Tensor, *, causal: bool) -> list[Tensor]:
    state = torch.zeros(len((steps.writes + steps.reads)[0]), values.shape[1], dtype=torch.float64)
    states = [state]
    for transition, write, value in zip(steps.transitions, steps.writes, values, strict=True):
        state = transition @ state + torch.outer(write, value)
        states.append(state)
    first = len(values) - len(steps.reads) + 1  # states before the first key are zero
    seen = [states[max(0, first + row) if causal else -1] for row in range(len(steps.reads))]
    return [read @ state for read, state in zip(steps.reads, seen, strict=True)]


def by_hand(name: str, q: Tensor, k: Tensor, v: Tensor, *, causal: bool, parameters: Parameters) -> Tensor:
    heads, out = q.shape[1], torch.zeros(*q.shape[:3], v.shape[3], dtype=torch.float64)
    for item, head in product(range(q.shape[0]), range(heads)):
        shared = head * k.shape[1] // heads
        keys, values = k[item, shared], v[item, shared]
        if name in NORMALISED:
            values = torch.cat([values, torch.ones(len(values), 1, dtype=torch.float64)], 1)
        if q.shape[2]:
            steps = STEPS[name](Head(q[item, head], keys, head, heads), **parameters)
            for row, whole in enumerate(outputs(steps, values, causal=causal)):
                size = v.shape[3]
                out[item, head, row] = whole[:size] / (whole[size] or 1.0) if name in NORMALISED else whole
    return out


def label(value: object) -> str | None:
    if isinstance(value, dict):
        return "-".join(map(str, value.values())) or "none"
    return value.__name__ if callable(value) else None


@pytest.mark.parametrize(("name", "causal", "parameters", "tokens", "kv_tokens"), cases(), ids=label)
def test_oracle_is_the_recurrence(name: str, causal: bool, parameters: Parameters, tokens: int, kv_tokens: int) -> None:
    q, k, v = inputs(tokens, kv_tokens)
    got = DEFINITIONS[name].reference(q, k, v, causal=causal, parameters=parameters)
    expected = by_hand(name, q, k, v, causal=causal, parameters=parameters)
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)
    if causal:
        assert not got[:, :, : max(0, tokens - kv_tokens)].any()  # queries that see no key


@pytest.mark.parametrize("name", sorted(STEPS))
def test_a_key_of_zeros_writes_nothing_and_divides_by_nothing(name: str) -> None:
    q, k, v = inputs(5, 5)
    k[:, :, 2] = 0
    parameters = PARAMETERS.get(name, [{}])[-1]
    got = DEFINITIONS[name].reference(q, k, v, causal=True, parameters=parameters)
    assert got.isfinite().all()
    expected = by_hand(name, q, k, v, causal=True, parameters=parameters)
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("name", "causal", "parameters"), forms(), ids=label)
def test_some_rows_are_those_of_all(name: str, causal: bool, parameters: Parameters) -> None:
    q, k, v = inputs(13, 13)
    everything = DEFINITIONS[name].reference(q, k, v, causal=causal, parameters=parameters)
    for chosen in ([12, 3, 3, 0], [5], []):
        rows = torch.tensor(chosen, dtype=torch.int64)
        some = DEFINITIONS[name].reference(q, k, v, causal=causal, parameters=parameters, rows=rows)
        torch.testing.assert_close(some, everything[:, :, rows], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(("name", "causal", "parameters"), forms(), ids=label)
def test_gradients_are_finite(name: str, causal: bool, parameters: Parameters) -> None:
    q, k, v = inputs(7, 4 if name in ANY_LENGTHS else 7)  # with rows that see no key
    k[:, :, 2] = 0
    leaves = [x.requires_grad_() for x in (q, k, v)]
    DEFINITIONS[name].reference(*leaves, causal=causal, parameters=parameters).square().sum().backward()
    assert all(leaf.grad is not None and leaf.grad.isfinite().all() for leaf in leaves)


@pytest.mark.parametrize("name", sorted(STEPS))
def test_rows_sum_to_one_where_a_definition_says_so(name: str) -> None:
    q, k, v = inputs(9, 9)
    k = k.abs()
    q = q.abs()  # so that no row of cosFormer's is without weight
    sums = DEFINITIONS[name].reference(q, k, torch.ones_like(v), causal=True)
    assert torch.allclose(sums, torch.ones_like(sums), rtol=1e-12) == DEFINITIONS[name].normalised
    assert DEFINITIONS[name].normalised == (name in NORMALISED)


@pytest.mark.parametrize("name", sorted(STEPS))
def test_every_head_and_no_item_has_a_recurrence_of_its_own(name: str) -> None:
    q, k, v = (x[:, :1].expand(-1, 3, -1, -1) for x in inputs(6, 6))
    out = DEFINITIONS[name].reference(q, k, v, causal=True)
    alike = name in NORMALISED  # cosFormer and FAVOR+ know nothing of the head
    assert torch.allclose(out[:, 0], out[:, 1]) == torch.allclose(out[:, 1], out[:, 2]) == alike
    alone = DEFINITIONS[name].reference(q[1:], k[1:], v[1:], causal=True)
    torch.testing.assert_close(alone, out[1:], rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("name", sorted(STEPS.keys() - NORMALISED))
def test_what_is_causal_only_refuses_the_rest(name: str) -> None:
    with pytest.raises(ValueError, match="causal only"):
        DEFINITIONS[name].reference(*inputs(3, 3), causal=False)


@pytest.mark.parametrize("name", sorted(STEPS.keys() - ANY_LENGTHS))
def test_another_number_of_queries_is_refused_where_there_is_no_form(name: str) -> None:
    with pytest.raises(ValueError, match="as many queries as keys"):
        DEFINITIONS[name].reference(*inputs(3, 4), causal=True)


# ---- constant decays


def faded(name: str, heads: int, tokens: int) -> Tensor:
    """What the last query recalls of each key's value where all products are 1: (heads, tokens)."""
    ones = torch.ones(1, heads, tokens, 1, dtype=torch.float64)
    v = torch.eye(tokens, dtype=torch.float64).expand(1, heads, -1, -1)
    out: Tensor = DEFINITIONS[name].reference(ones, ones, v, causal=True)[0, :, -1]
    return out


def test_retention_decays_are_one_less_a_power_of_two() -> None:
    gammas = [31 / 32, 63 / 64, 127 / 128, 255 / 256, 511 / 512, 1023 / 1024, 2047 / 2048, 4095 / 4096]
    assert retention.decays(8).tolist() == gammas
    assert retention.decays(2).tolist() == gammas[:2]  # whatever the number of heads
    expected = torch.tensor([[gamma**3, gamma**2, gamma, 1] for gamma in gammas], dtype=torch.float64)
    torch.testing.assert_close(faded("retention", 8, 4), expected, rtol=1e-14, atol=0)


def test_lightning_slopes_are_halved_from_head_to_head_where_there_are_eight() -> None:
    slopes = [1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32, 1 / 64, 1 / 128, 1 / 256]
    assert lightning.rates(8).tolist() == slopes
    assert lightning.rates(1).tolist() == [1 / 256]
    expected = torch.tensor([[math.exp(-2 * slope), math.exp(-slope), 1] for slope in slopes], dtype=torch.float64)
    torch.testing.assert_close(faded("lightning", 8, 3), expected, rtol=1e-14, atol=0)


@pytest.mark.parametrize(("name", "scale"), [("retention", 2.0), ("lightning", 1.0)])
def test_one_token_recalls_its_product_with_itself(name: str, scale: float) -> None:
    q = torch.full((1, 2, 1, 4), 3, dtype=torch.float64)
    out = DEFINITIONS[name].reference(q, q, q, causal=True)
    assert torch.equal(out, torch.full_like(out, 36 / scale * 3))  # retention divides by √4


# ---- drawn gates


@pytest.mark.parametrize(
    ("gate", "low", "high"),
    [
        (delta_rule.rates(3, 500), 0, 1),
        (gated_delta_rule.rates(3, 500), 0, 1),
        (gated_delta_rule.log_decays(3, 500), -1.6, -0.001),
        (gated_linear.log_decays(3, 500, 4), -0.3, 0),
        (ssd.step_sizes(3, 500), 0.001, 0.1),
        (ssd.rates(500), -16, -1),
        (rwkv7.log_decays(3, 500, 4), -math.exp(-0.5), 0),
        (rwkv7.learning_rates(3, 500, 4), 0, 1),
        (torch.stack(rwkv7.key_scales(3, 500)), 0.5, 1),
    ],
    ids=[
        *("delta_rule-beta", "gated_delta_rule-beta", "gated_delta_rule-alpha", "gated_linear-alpha"),
        *("ssd-step", "ssd-rate", "rwkv7-w", "rwkv7-a", "rwkv7-scales"),
    ],
)
def test_gates_lie_in_their_range_and_fill_it(gate: Tensor, low: float, high: float) -> None:
    assert low < float(gate.min())
    assert float(gate.max()) < high
    assert float(gate.max() - gate.min()) > (high - low) / 2
    assert gate.flatten().unique().numel() == gate.numel()  # none is drawn twice


def test_the_gates_of_a_prefix_are_the_first_ones() -> None:
    for draw in (delta_rule.rates, gated_delta_rule.rates, gated_delta_rule.log_decays, ssd.step_sizes):
        torch.testing.assert_close(draw(2, 700)[:, :300], draw(2, 300), rtol=1e-14, atol=0)
    for draw in (gated_linear.log_decays, rwkv7.log_decays, rwkv7.learning_rates):
        torch.testing.assert_close(draw(2, 700, 3)[:, :300], draw(2, 300, 3), rtol=1e-14, atol=0)


def test_gated_linear_with_one_channel_decays_by_the_product_of_its_gates() -> None:
    alpha = gated_linear.log_decays(2, 4, 1)[..., 0].exp()
    expected = torch.stack([alpha[:, 1:].prod(1), alpha[:, 2:].prod(1), alpha[:, 3], torch.ones(2)], 1)
    torch.testing.assert_close(faded("gated_linear", 2, 4), expected, rtol=1e-14, atol=0)


def test_ssd_writes_by_its_step_and_decays_by_its_later_steps() -> None:
    step, rate = ssd.step_sizes(2, 3), ssd.rates(2)
    decay = (rate[:, None] * step).exp()
    expected = torch.stack([decay[:, 1] * decay[:, 2] * step[:, 0], decay[:, 2] * step[:, 1], step[:, 2]], 1)
    torch.testing.assert_close(faded("ssd", 2, 3), expected, rtol=1e-14, atol=0)


# ---- the delta rule


def orthonormal() -> Tensor:
    return torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64))[0].expand(1, 2, -1, -1)


def test_delta_rule_with_orthonormal_keys_stores_every_value_at_its_rate() -> None:
    k, v = orthonormal(), torch.randn(1, 2, 6, 5, dtype=torch.float64)
    reads = k[:, :, 3:4].expand_as(k)  # all ask for the fourth value
    out = DEFINITIONS["delta_rule"].reference(reads, k, v, causal=True)
    torch.testing.assert_close(out[:, :, :3], torch.zeros_like(out[:, :, :3]), rtol=0, atol=1e-14)
    stored = delta_rule.rates(2, 6)[:, 3, None, None] * v[:, :, 3:4]
    torch.testing.assert_close(out[:, :, 3:], stored.expand(-1, -1, 3, -1), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", ["delta_rule", "gated_delta_rule"])
def test_at_full_rate_a_value_is_recalled_exactly_and_replaced_by_the_next(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = {"delta_rule": delta_rule, "gated_delta_rule": gated_delta_rule}[name]
    monkeypatch.setattr(module, "rates", lambda heads, tokens: torch.ones(heads, tokens, dtype=torch.float64))
    k, v = orthonormal(), torch.randn(1, 2, 6, 5, dtype=torch.float64)
    torch.testing.assert_close(DEFINITIONS[name].reference(k, k, v, causal=True), v, rtol=1e-12, atol=1e-13)
    same = k[:, :, :1].expand_as(k)  # one key for all: each value takes the place of the one before
    torch.testing.assert_close(DEFINITIONS[name].reference(same, same, v, causal=True), v, rtol=1e-12, atol=1e-13)


def test_the_gated_delta_rule_forgets_between_writing_and_reading() -> None:
    k, v = orthonormal(), torch.randn(1, 2, 6, 5, dtype=torch.float64)
    reads = k[:, :, :1].expand_as(k)
    alpha, beta = gated_delta_rule.log_decays(2, 6).exp(), gated_delta_rule.rates(2, 6)
    out = DEFINITIONS["gated_delta_rule"].reference(reads, k, v, causal=True)[:, :, 5]
    left = alpha[:, 1:].prod(1) * beta[:, 0]
    torch.testing.assert_close(out, left[:, None] * v[:, :, 0], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", ["delta_rule", "gated_delta_rule"])
def test_the_length_of_a_key_does_not_matter(name: str) -> None:
    q, k, v = inputs(6, 6)
    longer = k * torch.rand(6, 1, dtype=torch.float64).add(1)
    options: dict[str, Any] = {"causal": True}
    out = DEFINITIONS[name].reference(q, k, v, **options)
    torch.testing.assert_close(DEFINITIONS[name].reference(q, longer, v, **options), out, rtol=1e-12, atol=1e-13)


def test_rwkv7_first_token_is_its_replacement_key_and_the_value() -> None:
    q, k, v = inputs(1, 1)
    a, (_, alpha) = rwkv7.learning_rates(2, 1, 3)[:, 0], rwkv7.key_scales(2, 3)
    product_of_both = (q[:, :, 0] * k[:, :, 0] * (1 + (a - 1) * alpha)).sum(-1)
    out = DEFINITIONS["rwkv7"].reference(q, k, v, causal=True)[:, :, 0]
    torch.testing.assert_close(out, product_of_both[..., None] * v[:, :, 0], rtol=1e-13, atol=1e-14)


# ---- feature maps


def test_cosformer_weighs_by_the_cosine_of_the_distance() -> None:
    ones = torch.ones(1, 1, 3, 1, dtype=torch.float64)
    v = torch.eye(3, dtype=torch.float64)[None, None]
    near, far = math.sqrt(3) / 2, 1 / 2  # cos π/6 and cos π/3: M is 3
    rows = torch.tensor([[1, near, far], [near, 1, near], [far, near, 1]], dtype=torch.float64)
    out = DEFINITIONS["cosformer"].reference(ones, ones, v, causal=False)[0, 0]
    torch.testing.assert_close(out, rows / rows.sum(1, keepdim=True), rtol=1e-14, atol=1e-15)
    rows = rows.tril()
    out = DEFINITIONS["cosformer"].reference(ones, ones, v, causal=True)[0, 0]
    torch.testing.assert_close(out, rows / rows.sum(1, keepdim=True), rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize("causal", [False, True])
def test_a_row_without_a_positive_product_is_zero_in_cosformer(causal: bool) -> None:
    q, k, v = inputs(4, 4)
    q[:, :, 2] = -q[:, :, 2].abs()
    out = DEFINITIONS["cosformer"].reference(q, k.abs(), v, causal=causal)
    assert out.isfinite().all()
    assert not out[:, :, 2].any()


def test_favor_rows_are_orthogonal_within_their_blocks_and_as_long_as_normal_ones() -> None:
    omega = favor.projection(head_dim=16, features=500)
    assert omega.shape == (500, 16)
    for block in omega.split(16):
        products = block @ block.T
        torch.testing.assert_close(products, torch.diag(products.diagonal()), rtol=0, atol=1e-12)
    assert omega.square().sum(1).mean().item() == pytest.approx(16, rel=0.05)  # the mean of chi-square
    assert omega.mean().item() == pytest.approx(0, abs=0.05)
    assert torch.equal(omega[:40], favor.projection(head_dim=16, features=40))


def test_favor_nears_softmax_as_features_grow() -> None:
    q, k, v = inputs(12, 12)
    q, k = q / 2, k / 2
    softmax = DEFINITIONS["full"].reference(q, k, v, causal=True)

    def error(features: int) -> float:
        out = DEFINITIONS["favor"].reference(q, k, v, causal=True, parameters={"features": features})
        return float((out - softmax).norm() / softmax.norm())

    few, more, many = (error(features) for features in (8, 256, 8192))
    assert many < more < few
    assert many < 0.03


def test_favor_does_not_overflow_where_its_features_would() -> None:
    q, k, v = inputs(9, 9)
    out = DEFINITIONS["favor"].reference(60 * q, 60 * k, v, causal=True, parameters={"features": 16})
    assert out.isfinite().all()
    torch.testing.assert_close(out[:, :, 0], v[:, :, 0].expand(-1, 2, -1))


# ---- operators that read the values alone

Rows = list[list[float]]


def convolved(values: Rows, tokens: int, channels: int, *, head: int, heads: int, causal: bool, width: int) -> Rows:
    taps = depthwise_convolution.filters(heads, width, channels)[head].tolist()
    ahead = 0 if causal else math.floor((width - 1) / 2)

    def at(i: int, c: int) -> float:
        read = [(tap[c], i - t + ahead) for t, tap in enumerate(taps)]
        return math.fsum(tap * values[j][c] for tap, j in read if 0 <= j < len(values))

    return [[at(row + len(values) - tokens, c) for c in range(channels)] for row in range(tokens)]


def convolved_at_length(
    values: Rows, tokens: int, channels: int, *, head: int, heads: int, causal: bool, reach: int
) -> Rows:
    taps = long_convolution.filters(heads, len(values), channels, reach)[head].tolist()

    def at(i: int, c: int) -> float:
        return math.fsum(taps[t][c] * values[i - t][c] for t in range(i + 1))

    return [[at(row + len(values) - tokens, c) for c in range(channels)] for row in range(tokens)]


def recurred(values: Rows, tokens: int, channels: int, **_: Any) -> Rows:
    w, u = (x.tolist() for x in gru.weights(channels))

    def product_of(matrix: Rows, gate: int, c: int, x: list[float]) -> float:
        return math.fsum(a * b for a, b in zip(matrix[gate * channels + c], x, strict=True))

    def sigmoid(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    def channel(c: int, v: list[float], h: list[float]) -> float:
        r, z = (sigmoid(product_of(w, gate, c, v) + product_of(u, gate, c, h)) for gate in (0, 1))
        fresh = math.tanh(product_of(w, 2, c, v) + r * product_of(u, 2, c, h))
        return z * h[c] + (1 - z) * fresh

    states = [[0.0] * channels]
    for value in values:
        states.append([channel(c, value, states[-1]) for c in range(channels)])
    return states[1:]


CONVOLUTIONS = [
    ("depthwise_convolution", convolved, causal, {"width": width})
    for causal in (False, True)
    for width in (1, 4, 5, 30)
]
LONG_CONVOLUTIONS = [("long_convolution", convolved_at_length, True, {"reach": reach}) for reach in (1, 4, 1000)]
VALUES_ALONE = [("gru", recurred, True, {}), *CONVOLUTIONS, *LONG_CONVOLUTIONS]


@pytest.mark.parametrize(("tokens", "kv_tokens"), SIZES)
@pytest.mark.parametrize(("name", "formula", "causal", "parameters"), VALUES_ALONE, ids=label)
def test_oracle_of_the_values_alone_is_the_formula(
    name: str, formula: Callable[..., Rows], causal: bool, parameters: Parameters, tokens: int, kv_tokens: int
) -> None:
    q, k, v = inputs(tokens, kv_tokens)
    if name == "gru" and tokens != kv_tokens:
        with pytest.raises(ValueError, match="tokens = kv_tokens"):
            DEFINITIONS[name].reference(q, k, v, causal=causal)
        return
    got = DEFINITIONS[name].reference(q, k, v, causal=causal, parameters=parameters)
    expected = torch.zeros(2, 2, tokens, 4, dtype=torch.float64)
    for item, head in product(range(2), range(2)) if tokens else ():
        rows = formula(v[item, 0].tolist(), tokens, 4, head=head, heads=2, causal=causal, **parameters)
        expected[item, head] = torch.tensor(rows, dtype=torch.float64)
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)
    assert torch.equal(got, DEFINITIONS[name].reference(q + 1, 2 * k, v, causal=causal, parameters=parameters))


@pytest.mark.parametrize("width", [1, 4, 5, 30])
@pytest.mark.parametrize("causal", [False, True])
def test_visible_pairs_are_the_values_under_the_filter(causal: bool, width: int) -> None:
    definition, parameters = DEFINITIONS["depthwise_convolution"], {"width": width}
    for tokens, kv_tokens in SIZES:
        q, k = torch.zeros(1, 1, tokens, 1), torch.zeros(1, 1, kv_tokens, 1)
        v = torch.eye(kv_tokens, dtype=torch.float64)[None, None]
        weights = definition.reference(q, k, v, causal=causal, parameters=parameters)
        problem = Problem(tokens, kv_tokens=kv_tokens, causal=causal)
        assert definition.visible_pairs(problem, **parameters) == int((weights != 0).sum())


@pytest.mark.parametrize(("causal", "first"), [(True, 3), (False, 2)])
def test_a_convolution_answers_an_impulse_with_its_filter(causal: bool, first: int) -> None:
    v = torch.zeros(1, 2, 8, 5, dtype=torch.float64)
    v[:, :, 3] = 1
    out = DEFINITIONS["depthwise_convolution"].reference(v, v, v, causal=causal, parameters={"width": 4})
    expected = torch.zeros_like(v)
    expected[0, :, first : first + 4] = depthwise_convolution.filters(2, 4, 5)
    assert torch.equal(out, expected)


def test_a_long_convolution_answers_an_impulse_with_its_filter_to_the_end() -> None:
    v = torch.zeros(1, 2, 8, 5, dtype=torch.float64)
    v[:, :, 3] = 1
    out = DEFINITIONS["long_convolution"].reference(v, v, v, causal=True, parameters={"reach": 30})
    assert not out[:, :, :3].any()
    assert torch.equal(out[0, :, 3:], long_convolution.filters(2, 8, 5, 30)[:, :5])
    assert torch.equal(long_convolution.filters(2, 8, 5, 30), long_convolution.filters(2, 700, 5, 30)[:, :8])
    with pytest.raises(ValueError, match="causal only"):
        DEFINITIONS["long_convolution"].reference(v, v, v, causal=False)


def test_windows_of_a_long_convolution_fall_to_a_hundredth_at_their_reaches_and_filters_have_norm_one() -> None:
    falls = long_convolution.decays(5, 1000)
    assert math.exp(-1500 * falls[0]) == pytest.approx(0.01)
    assert math.exp(-300 * falls[-1]) == pytest.approx(0.01)
    torch.testing.assert_close(falls.diff(), falls.diff()[:1].expand(4))
    norms = long_convolution.filters(300, 2000, 4, 400).square().sum(1)
    torch.testing.assert_close(norms.mean(0), torch.ones(4, dtype=torch.float64), rtol=0.05, atol=0)


@pytest.mark.parametrize("tokens", [0, 1, 2, 7, 301, 1024, 4099, 100_003])
def test_a_transform_holds_twice_the_tokens_and_has_small_factors(tokens: int) -> None:
    length = padded_length(tokens)
    assert 2 * tokens <= length <= max(2, 3 * tokens) and length % 2 == 0
    for factor in (2, 3, 5):
        while length % factor == 0:
            length //= factor
    assert length == 1


def test_the_lesser_count_of_both_ways_to_convolve_is_useful() -> None:
    definition = DEFINITIONS["long_convolution"]
    assert definition.useful_flops(Problem(3, heads=1, head_dim=5, causal=True)) == 5 * 2 * 6
    one_of_many = Problem.of_length(4096, mode="decode", heads=1, head_dim=5, causal=True)
    assert definition.useful_flops(one_of_many) == 5 * 2 * 4096
    # two transforms of 2.5 n log2 n, and six operations for each of n/2 + 1 complex products, n = 8192
    assert definition.useful_flops(Problem(4096, heads=1, head_dim=5, causal=True)) == 5 * (5 * 8192 * 13 + 6 * 4097)


def test_gru_without_an_input_stays_at_zero_and_with_one_within_one() -> None:
    v = 100 * torch.randn(1, 1, 9, 6, dtype=torch.float64)
    v[:, :, :4] = 0
    out = DEFINITIONS["gru"].reference(v, v, v, causal=True)
    assert not out[:, :, :4].any()
    assert 0 < out[:, :, 4:].abs().amax() <= 1
    with pytest.raises(ValueError, match="causal only"):
        DEFINITIONS["gru"].reference(v, v, v, causal=False)


def test_frozen_weights_have_the_spread_they_are_said_to_have() -> None:
    taps = depthwise_convolution.filters(64, 9, 64)
    assert taps.std().item() == pytest.approx(1 / 3, rel=0.02)
    assert taps.mean().item() == pytest.approx(0, abs=0.01)
    for matrix in gru.weights(64):
        assert matrix.shape == (192, 64)
        assert float(matrix.abs().max()) == pytest.approx(1 / 8, rel=0.01)
        assert matrix.std().item() == pytest.approx(1 / 8 / math.sqrt(3), rel=0.02)
