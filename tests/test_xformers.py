"""How xformers is called, with a stand-in that does what its documentation says of biases, axes and kernels."""

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.stand_ins import check_signature, module, softmaxed, strayed
from variants import Problem
from variants.catalogue import names


class LowerTriangularMask:
    """Aligned to the upper left."""

    def materialize(self, shape: tuple[int, int]) -> Tensor:
        return torch.ones(shape, dtype=torch.float64).tril().log()


class LowerTriangularFromBottomRightMask:
    """The last query sees the last key."""

    def materialize(self, shape: tuple[int, int]) -> Tensor:
        return torch.ones(shape, dtype=torch.float64).tril(shape[1] - shape[0]).log()


CUTLASS = ("cutlass.FwOp", "cutlass.BwOp")
SPLIT_K = "triton_splitk.FwOp"
asked: list[Any] = []
"""By which kernels the last call was to be computed."""


def memory_efficient_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_bias: LowerTriangularMask | LowerTriangularFromBottomRightMask | None = None,
    p: float = 0.0,
    scale: float | None = None,
    *,
    op: Any = None,
) -> Tensor:
    """Tokens before heads; with five axes groups before heads, of which keys and values have one, expanded."""
    assert not p and query.ndim == key.ndim == value.ndim
    asked[:] = [op]
    shape = query.shape
    if query.ndim == 5:
        assert key.shape[2:4] == value.shape[2:4] == shape[2:4] and key.stride(3) == value.stride(3) == 0
        query, key, value = (x.flatten(2, 3) for x in (query, key, value))
    assert key.shape[2] == query.shape[2]  # no grouped heads otherwise
    rows, columns = query.shape[1], key.shape[1]
    bias = torch.zeros(rows, columns) if attn_bias is None else attn_bias.materialize((rows, columns))
    return softmaxed(query, key, value, bias, query.shape[-1] ** -0.5 if scale is None else scale).reshape(shape)


@pytest.fixture(autouse=True)
def xformers(monkeypatch: pytest.MonkeyPatch) -> None:
    module(monkeypatch, "xformers")
    module(
        monkeypatch,
        "xformers.ops",
        memory_efficient_attention=memory_efficient_attention,
        MemoryEfficientAttentionCutlassOp=CUTLASS,
    )
    module(
        monkeypatch,
        "xformers.ops.fmha.attn_bias",
        LowerTriangularMask=LowerTriangularMask,
        LowerTriangularFromBottomRightMask=LowerTriangularFromBottomRightMask,
    )
    module(monkeypatch, "xformers.ops.fmha.triton_splitk", FwOp=SPLIT_K)


KERNELS = {"xformers": None, "xformers_cutlass": CUTLASS, "xformers_splitk": (SPLIT_K, None)}
VARIANTS = [name for name in names() if name.partition("/")[2].startswith("xformers")]


@pytest.mark.parametrize(
    "problem",
    [
        Problem(tokens=20, batch=2, heads=2, head_dim=8, causal=True),
        Problem(tokens=20, batch=2, heads=2, head_dim=8),
        Problem(tokens=12, kv_tokens=20, heads=4, kv_heads=2, head_dim=8, causal=True),
        Problem(tokens=12, kv_tokens=20, heads=4, kv_heads=2, head_dim=8),
        Problem.of_length(20, heads=4, kv_heads=1, head_dim=8, causal=True, mode="decode"),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", VARIANTS)
def test_what_xformers_gives_is_the_definitions(name: str, problem: Problem) -> None:
    assert strayed(name, problem) < 1e-12
    assert asked == [KERNELS[name.partition("/")[2]]]


def test_every_variant_says_its_kernels() -> None:
    assert {name.partition("/")[2] for name in VARIANTS} == set(KERNELS)


def test_the_stand_in_takes_what_the_package_takes() -> None:
    check_signature(
        memory_efficient_attention, "xformers", "xformers/ops/fmha/__init__.py", "memory_efficient_attention"
    )
