"""Where float32 decides in place of float64 it decides the same."""

import pytest
import torch

from benchmarks.accuracy import relative_error
from tests.ready_variants import call, draw, reference
from variants import Problem
from variants.lsh import rotations
from variants.lsh.sorted import exact, hashes, sure
from variants.monarch.alternating import SMALL, fitting_dtype
from variants.tolerance import IMPLEMENTATION_TOLERANCE


@pytest.mark.parametrize("scale", [1.0, 1e-25, 1e-38, 1e36])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("dim", "half"), [(64, 64), (16, 4), (1, 3), (5, 1), (40, 33)])
def test_buckets_are_those_of_float64(dim: int, half: int, dtype: torch.dtype, scale: float) -> None:
    turns = rotations(3, dim, 2 * half)
    together = turns.transpose(0, 1).flatten(1)
    x = (scale * torch.randn(3000, dim)).to(dtype)
    x[7] = 0
    assert torch.equal(hashes(x, turns), exact(x, together, half).T)


def test_a_vector_on_the_edge_of_two_buckets_is_decided_in_float64() -> None:
    turns = rotations(1, 8, 32)
    first, second = turns[0, :, 3], turns[0, :, 7]
    edge = first / first.norm() ** 2 + second / second.norm() ** 2
    step = first - first @ edge / edge.norm() ** 2 * edge
    for nudge in torch.linspace(-1e-6, 1e-6, 41, dtype=torch.float64):
        x = (edge + nudge * step).float().unsqueeze(0)
        assert torch.equal(hashes(x, turns), exact(x, turns[0], 16).T)


def test_what_lies_within_the_error_is_left_undecided() -> None:
    turned = torch.tensor([[[1.0, -2.0, 0.5]], [[1.0, -1.05, 0.0]], [[0.1, 0.05, 0.0]], [[torch.nan, 1.0, 2.0]]])
    assert sure(turned, torch.tensor([0.1, 0.1, 0.18, 0.1]).view(-1, 1, 1)).flatten().tolist() == [4, -1, -1, -1]


@pytest.mark.parametrize("seed", range(5))
def test_the_largest_logits_that_monarch_fits_in_float32(seed: int) -> None:
    torch.manual_seed(seed)
    problem = Problem(tokens=301, heads=1)
    q, k, v = draw(problem)
    q = q * (0.999 * SMALL * problem.head_dim**0.5 / (q.norm(dim=3).amax() * k.norm(dim=3).amax()))
    assert fitting_dtype(q[0, 0], k[0, 0]) == torch.float32
    assert fitting_dtype(1.01 * q[0, 0], k[0, 0]) == torch.float64
    out = call("monarch/alternating", problem, (q, k, v))
    expected = reference("monarch/alternating", problem, (q, k, v))
    assert relative_error(out.double(), expected) <= IMPLEMENTATION_TOLERANCE["float32"] / 4
