"""The drawn inputs that every run and check takes: a control, and one kind for each structure that decides an error."""

import torch
from jaxtyping import Float
from torch import Tensor

from variants import Problem

QKV = tuple[
    Float[Tensor, "batch heads tokens head_dim"],
    Float[Tensor, "batch kv_heads kv_tokens head_dim"],
    Float[Tensor, "batch kv_heads kv_tokens head_dim"],
]


def normal(problem: Problem, generator: torch.Generator) -> QKV:
    """Independent N(0,1): the control."""
    p = problem
    shapes = ((p.heads, p.tokens), (p.kv_heads, p.kv_tokens), (p.kv_heads, p.kv_tokens))
    q, k, v = (
        torch.randn(p.batch, heads, tokens, p.head_dim, generator=generator, dtype=torch.float64)
        for heads, tokens in shapes
    )
    return q, k, v


def smooth(problem: Problem, generator: torch.Generator) -> QKV:
    """Each channel an AR(1) series over the tokens, with correlation 0.95 and unit variance."""
    q, k, v = (autoregress(x, 0.95) for x in normal(problem, generator))
    return q, k, v


def autoregress(noise: Tensor, rho: float) -> Tensor:
    """x_t = rho x_{t-1} + sqrt(1 - rho²) e_t, by doubling: log2(tokens) passes instead of a loop."""
    x: Tensor = noise * (1 - rho * rho) ** 0.5
    if x.shape[2]:
        x[:, :, 0] = noise[:, :, 0]
    shift, weight = 1, rho
    while shift < x.shape[2]:
        moved = torch.zeros_like(x)
        moved[:, :, shift:] = x[:, :, :-shift] * weight
        x = x + moved
        shift, weight = 2 * shift, weight * weight
    return x


def peaky(problem: Problem, generator: torch.Generator) -> QKV:
    """N(0,1) with q and k doubled: logits of standard deviation 4, so that few keys hold the mass."""
    q, k, v = normal(problem, generator)
    return 2 * q, 2 * k, v


def sink(problem: Problem, generator: torch.Generator) -> QKV:
    """The first four keys attract every query (arXiv:2309.17453, section 3.1); their values are small."""
    q, k, v = normal(problem, generator)
    direction = torch.randn(problem.head_dim, generator=generator, dtype=torch.float64)
    direction = direction / direction.norm()
    q = q + 4 * direction
    k[:, :, :4] += 1.5 * problem.head_dim**0.5 * direction
    v[:, :, :4] *= 0.1
    return q, k, v


def local(problem: Problem, generator: torch.Generator) -> QKV:
    """Logits that fall with distance, as rotary embeddings give them: one direction, turned by position."""
    q, k, v = normal(problem, generator)
    frequencies = 10000.0 ** -torch.arange(0, problem.head_dim // 2, dtype=torch.float64).div(problem.head_dim / 2)

    def turned(x: Tensor, first: int) -> Tensor:
        angle = (torch.arange(x.shape[2], dtype=torch.float64) + first)[:, None] * frequencies
        wave = torch.cat((angle.cos(), angle.sin()), -1)
        pad = x.shape[3] - wave.shape[1]
        turned_wave: Tensor = torch.nn.functional.pad(wave, (0, pad)) * 2**0.5 * 1.5
        return turned_wave + 0.5 * x

    return turned(q, problem.offset), turned(k, 0), v
