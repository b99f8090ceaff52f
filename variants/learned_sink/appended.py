"""The sink as one more column of the scores, dropped again after the softmax."""

import torch
from jaxtyping import Float
from torch import Tensor

from variants.dtypes import TORCH_DTYPES
from variants.learned_sink import sink_logits
from variants.problem import Problem
from variants.sdpa import bottom_right_mask
from variants.tiles import accumulator
from variants.variant import Attention, variant


def workspace_bytes(problem: Problem) -> int:
    """Scores with and without the sink, and weights; gradients of them in training."""
    wide = max(4, problem.element_bytes)
    pairs = problem.batch * problem.heads * problem.tokens * (problem.kv_tokens + 1)
    mask = problem.tokens * problem.kv_tokens * problem.element_bytes if problem.causal else 0
    spread = 2 * problem.key_bytes * problem.group if problem.group > 1 else 0
    matrices = 3 if problem.mode == "training" else 2
    narrow = pairs * problem.element_bytes if problem.element_bytes < wide else 0
    return matrices * pairs * wide + narrow + mask + 3 * problem.query_bytes + spread


def executed_flops(problem: Problem) -> int:
    """Every pair, causal or not."""
    forward = 4 * problem.batch * problem.heads * problem.head_dim * problem.tokens * problem.kv_tokens
    return 3 * forward if problem.mode == "training" else forward


@variant(
    "learned_sink/appended",
    summary="two matrix products around a softmax with one more column",
    devices=("cpu", "cuda"),
    modes=("forward", "training", "decode"),
    workspace_bytes=workspace_bytes,
    executed_flops=executed_flops,
)
def build(problem: Problem) -> Attention:
    """The sinks are drawn and the causal mask is built here."""
    wide = accumulator(TORCH_DTYPES[problem.dtype])
    sink = sink_logits(problem.heads).to(problem.device, wide)[None, :, None, None]
    mask = bottom_right_mask(problem) if problem.causal else None

    def run(
        q: Float[Tensor, "batch heads tokens head_dim"],
        k: Float[Tensor, "batch kv_heads kv_tokens head_dim"],
        v: Float[Tensor, "batch kv_heads kv_tokens head_dim"],
    ) -> Float[Tensor, "batch heads tokens head_dim"]:
        if problem.group > 1:
            k, v = (x.repeat_interleave(problem.group, dim=1) for x in (k, v))
        scores = ((q * q.shape[-1] ** -0.5) @ k.mT).to(wide)
        if mask is not None:
            scores = scores.add_(mask)
        joined = torch.cat((scores, sink.expand(*q.shape[:3], 1)), -1)
        del scores
        return torch.softmax(joined, -1)[..., :-1].to(v.dtype) @ v

    return run
