"""cosFormer's features: a rectified vector times the cosine and the sine of its position."""

import torch
from jaxtyping import Float
from torch import Tensor

from variants.dtypes import TORCH_DTYPES
from variants.problem import Problem
from variants.requirement import Limit
from variants.scan import chunk_groups
from variants.tiles import accumulator

EQUAL_LENGTHS = (Limit(lambda problem: problem.tokens == problem.kv_tokens, "needs tokens = kv_tokens"),)
"""Queries and keys count their positions alike."""


def waves(problem: Problem) -> tuple[Float[Tensor, "1 tokens 1"], Float[Tensor, "1 tokens 1"]]:
    """cos(πi/2M) and sin(πi/2M): cos of a difference is the sum of their products."""
    angle = torch.arange(problem.tokens, dtype=torch.float64)[None, :, None] * (torch.pi / 2 / max(1, problem.tokens))
    wide = accumulator(TORCH_DTYPES[problem.dtype])
    return angle.cos().to(problem.device, wide), angle.sin().to(problem.device, wide)


def cosine_features(
    x: Float[Tensor, "rows tokens dim"], cosine: Float[Tensor, "1 tokens 1"], sine: Float[Tensor, "1 tokens 1"]
) -> Float[Tensor, "rows tokens 2*dim"]:
    """relu(x) cos and relu(x) sin, in the waves' dtype."""
    x = x.to(cosine.dtype).relu()
    return torch.cat((x * cosine, x * sine), -1)


def feature_gradient(
    slope: Float[Tensor, "rows tokens 2*dim"],
    x: Float[Tensor, "rows tokens dim"],
    cosine: Float[Tensor, "1 tokens 1"],
    sine: Float[Tensor, "1 tokens 1"],
) -> Float[Tensor, "rows tokens dim"]:
    """The gradient of x from that of its features."""
    of_cosine, of_sine = slope.tensor_split(2, -1)
    return (of_cosine * cosine).addcmul_(of_sine, sine).mul_(x > 0)


def wave_groups(problem: Problem) -> list[slice]:
    """Tokens whose features are held together."""
    return chunk_groups(problem.tokens, problem.batch * problem.heads * 2 * problem.head_dim)
