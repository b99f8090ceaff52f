"""How flash-attn 2, 3 and 4 are called, with stand-ins that do what their documentation says of the arguments."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.stand_ins import check_signature, module, softmaxed, strayed
from variants import Problem
from variants.catalogue import load, names

Edge = int | None


def attended(
    q: Tensor, k: Tensor, v: Tensor, scale: float | None, causal: bool, window_size: tuple[Edge, Edge]
) -> Tensor:
    """A query i sees keys from i + keys − queries − left to i + keys − queries + right, both of them too."""
    left, right = (None if edge is None or edge < 0 else edge for edge in window_size)
    right = 0 if causal else right
    rows = torch.arange(q.shape[1])[:, None] + k.shape[1] - q.shape[1]
    ahead = torch.arange(k.shape[1]) - rows
    hidden = torch.zeros_like(ahead, dtype=torch.bool)
    if left is not None:
        hidden |= ahead < -left
    if right is not None:
        hidden |= ahead > right
    bias = torch.zeros(hidden.shape, dtype=q.dtype).masked_fill(hidden, -torch.inf)
    return softmaxed(q, k, v, bias, q.shape[-1] ** -0.5 if scale is None else scale)


def flash_attn_2(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> Tensor:
    assert not dropout_p and not softcap and alibi_slopes is None and not return_attn_probs
    return attended(q, k, v, softmax_scale, causal, window_size)


def flash_attn_3(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    softmax_scale: float | None = None,
    causal: bool = False,
    qv: Tensor | None = None,
    q_descale: Tensor | None = None,
    k_descale: Tensor | None = None,
    v_descale: Tensor | None = None,
    window_size: tuple[int, int] = (-1, -1),
    attention_chunk: int = 0,
    softcap: float = 0.0,
    num_splits: int = 1,
    pack_gqa: bool | None = None,
    deterministic: bool = False,
    sm_margin: int = 0,
) -> Tensor:
    assert qv is q_descale is k_descale is v_descale is None and not attention_chunk and not softcap
    return attended(q, k, v, softmax_scale, causal, window_size)


def flash_attn_4(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[Edge, Edge] = (None, None),
    learnable_sink: Tensor | None = None,
    softcap: float = 0.0,
    num_splits: int = 1,
    pack_gqa: bool | None = None,
    deterministic: bool = False,
) -> tuple[Tensor, None]:
    """Its log-sum-exp, here none, comes too."""
    assert learnable_sink is None and not softcap
    return attended(q, k, v, softmax_scale, causal, window_size), None


RELEASES = {
    "flash_attn_2": ("flash_attn", flash_attn_2, "flash-attn", "flash_attn/flash_attn_interface.py"),
    "flash_attn_3": ("flash_attn_interface", flash_attn_3, "flash-attn-3", "flash_attn_interface.py"),
    "flash_attn_4": ("flash_attn.cute", flash_attn_4, "flash-attn-4", "flash_attn/cute/interface.py"),
}
VARIANTS = [name for name in names() if name.partition("/")[2].startswith("flash_attn_")]
PROBLEMS = [
    Problem(tokens=20, batch=2, heads=2, head_dim=8, causal=True),
    Problem(tokens=20, batch=2, heads=2, head_dim=8),
    Problem(tokens=12, kv_tokens=20, heads=4, kv_heads=2, head_dim=8, causal=True),
    Problem(tokens=12, kv_tokens=20, heads=4, kv_heads=2, head_dim=8),
    Problem(tokens=20, kv_tokens=12, heads=2, head_dim=8, causal=True),
    Problem.of_length(20, heads=2, head_dim=8, causal=True, mode="decode"),
]
WINDOWS = (1, 6, 9, 40)


@pytest.fixture(autouse=True)
def packages(monkeypatch: pytest.MonkeyPatch) -> None:
    for place, function, *_ in RELEASES.values():
        module(monkeypatch, place, flash_attn_func=function)


@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
@pytest.mark.parametrize("name", VARIANTS)
def test_what_flash_attention_gives_is_the_definitions(name: str, problem: Problem) -> None:
    windows = load(name).definition.parameters
    for parameters in [{"window": window} for window in WINDOWS] if windows else [{}]:
        assert strayed(name, problem, parameters) < 1e-12


def test_every_release_has_a_stand_in_that_a_variant_calls() -> None:
    assert {name.partition("/")[2] for name in VARIANTS} == set(RELEASES)
    assert len(VARIANTS) == 2 * len(RELEASES)


@pytest.mark.parametrize(("function", "distribution", "file"), [found[1:] for found in RELEASES.values()])
def test_the_stand_ins_take_what_the_packages_take(
    function: Callable[..., object], distribution: str, file: str
) -> None:
    check_signature(function, distribution, file, "flash_attn_func")
