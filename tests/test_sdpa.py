"""That each variant of scaled_dot_product_attention is held to the kernel of its name."""

from contextlib import nullcontext

import pytest
from torch.nn.attention import SDPBackend

from tests.stand_ins import strayed
from variants import Problem
from variants.catalogue import names

VARIANTS = [name for name in names() if name.partition("/")[2].startswith("sdpa_")]


def backend(name: str) -> SDPBackend:
    kind = name.partition("/")[2].removeprefix("sdpa_").upper()
    return SDPBackend.__members__[kind if kind == "MATH" else f"{kind}_ATTENTION"]


@pytest.mark.parametrize(
    "problem",
    [
        Problem(tokens=20, heads=4, kv_heads=2, head_dim=8, causal=True),
        Problem(tokens=20, heads=4, kv_heads=2, head_dim=8),
        Problem(tokens=12, kv_tokens=20, batch=2, heads=2, head_dim=8, causal=True),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", VARIANTS)
def test_the_kernel_is_the_one_that_the_name_says(name: str, problem: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[SDPBackend] = []

    def sdpa_kernel(asked: SDPBackend) -> nullcontext[None]:
        held.append(asked)
        return nullcontext()  # a CPU has not all of them

    monkeypatch.setattr("variants.sdpa.sdpa_kernel", sdpa_kernel)
    assert strayed(name, problem) < 1e-12
    assert held == [backend(name)]


def test_all_kernels_of_torch_are_held_to() -> None:
    assert {backend(name) for name in VARIANTS} == {
        kind for kind in SDPBackend.__members__.values() if kind not in (SDPBackend.ERROR, SDPBackend.OVERRIDEABLE)
    }
