"""How flash-linear-attention is called, with stand-ins that do its documented recurrences token by token."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.stand_ins import check_signature, module, strayed
from variants import Problem, flash_linear
from variants.catalogue import names


def recurred(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float | None,
    decay: Callable[[int], Tensor] | None = None,
    beta: Tensor | None = None,
) -> tuple[Tensor, None]:
    """Tokens before heads: S = α S + k (β (v − Sᵀk))ᵀ, or k vᵀ without β; o = scale · Sᵀq, by default by 1/√d."""
    state = q.new_zeros(q.shape[0], q.shape[2], q.shape[3], v.shape[3])
    out = torch.empty_like(v)
    for token in range(q.shape[1]):
        key, value = k[:, token], v[:, token]
        if decay is not None:
            state = state * decay(token)
        if beta is not None:
            value = beta[:, token, :, None] * (value - torch.einsum("bhd,bhde->bhe", key, state))
        state = state + key[..., None] * value[:, :, None]
        out[:, token] = torch.einsum("bhd,bhde->bhe", q[:, token], state)
    return out * (q.shape[-1] ** -0.5 if scale is None else scale), None


def chunk_linear_attn(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    normalize: bool = True,
) -> tuple[Tensor, None]:
    """Normalised by scale · q·Σk, so that the scale is lost then."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    out, _ = recurred(q, k, v, scale)
    return (out / (q * scale * k.cumsum(1)).sum(-1, keepdim=True) if normalize else out), None


def chunk_retention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
) -> tuple[Tensor, None]:
    gamma = 1 - 2 ** (-5.0 - torch.arange(q.shape[2], dtype=q.dtype))
    return recurred(q, k, v, scale, lambda _: gamma[:, None, None])


def chunk_gla(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
) -> tuple[Tensor, None]:
    """`g`, of one value a channel, is in log space."""
    assert g.shape == k.shape
    return recurred(q, k, v, scale, lambda token: g[:, token, :, :, None].exp())


def chunk_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
) -> tuple[Tensor, None]:
    assert beta.shape == k.shape[:3]
    return recurred(q, k, v, scale, beta=beta)


def chunk_gated_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
) -> tuple[Tensor, None]:
    """`g`, of one value a head, is in log space."""
    assert g.shape == beta.shape == k.shape[:3]
    return recurred(q, k, v, scale, lambda token: g[:, token, :, None, None].exp(), beta)


FUNCTIONS = {
    "linear_scan": ("linear_attn", chunk_linear_attn),
    "retention": ("retention", chunk_retention),
    "gated_linear": ("gla", chunk_gla),
    "delta_rule": ("delta_rule", chunk_delta_rule),
    "gated_delta_rule": ("gated_delta_rule", chunk_gated_delta_rule),
}
VARIANTS = [name for name in names() if name.endswith("/fla")]


@pytest.fixture(autouse=True)
def package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLA_CACHE_RESULTS", "1")  # which the builders change
    monkeypatch.setattr(flash_linear, "_CHOSEN", {"rows": 0})
    for place, function in FUNCTIONS.values():
        module(monkeypatch, f"fla.ops.{place}", **{function.__name__: function})


@pytest.mark.parametrize(("tokens", "batch", "heads", "head_dim"), [(20, 2, 3, 8), (70, 1, 2, 4), (3, 1, 3, 5)])
@pytest.mark.parametrize("name", VARIANTS)
def test_what_the_package_gives_is_the_definitions(
    name: str, tokens: int, batch: int, heads: int, head_dim: int
) -> None:
    problem = Problem(tokens=tokens, batch=batch, heads=heads, head_dim=head_dim, causal=True)
    assert strayed(name, problem) < 2e-5  # log decays reach the package in float32


def test_every_function_has_a_stand_in() -> None:
    assert {name.partition("/")[0] for name in VARIANTS} == set(FUNCTIONS)


@pytest.mark.parametrize(("place", "function"), FUNCTIONS.values())
def test_the_stand_ins_take_what_the_package_takes(place: str, function: Callable[..., object]) -> None:
    check_signature(function, "fla-core", f"fla/ops/{place}/chunk.py", function.__name__)
