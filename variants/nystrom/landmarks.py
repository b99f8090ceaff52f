"""Exact attention from the landmarks and to them, with the pseudo-inverse between.

A half type would lose more in the pseudo-inverse, which magnifies, than it gains: it is widened.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from variants.dtypes import TORCH_DTYPES
from variants.nystrom import ENCODERS_ONLY, SELF_ATTENTION
from variants.problem import Problem
from variants.short_keys import exact_attention, exact_workspace_bytes
from variants.tiles import accumulator
from variants.variant import Attention, variant

STEPS = 6


def segment_means(x: Float[Tensor, "batch heads tokens dim"], count: int) -> Float[Tensor, "batch heads landmarks dim"]:
    """Means of `count` segments, the first ones a token longer where they cannot be equal."""
    size, longer = divmod(x.shape[2], count)
    split = longer * (size + 1)
    means: Tensor = x[:, :, split:].unflatten(2, (count - longer, size)).mean(3)
    if longer:
        means = torch.cat((x[:, :, :split].unflatten(2, (longer, size + 1)).mean(3), means), 2)
    return means


def pseudo_inverse(inner: Float[Tensor, "batch heads m m"]) -> Float[Tensor, "batch heads m m"]:
    """Six steps of the iteration, from the transpose over the largest column sum: rows sum to one."""
    inverse = inner.mT / inner.sum(-2).amax(-1)[..., None, None]
    eye = torch.eye(inner.shape[-1], dtype=inner.dtype, device=inner.device)
    for _ in range(STEPS):
        product = inner @ inverse
        inverse = inverse @ (3.25 * eye - product @ (3.75 * eye - product @ (1.75 * eye - 0.25 * product)))
    return inverse


def workspace_bytes(problem: Problem, *, landmarks: int) -> int:
    """The landmarks, the steps of the pseudo-inverse in float64, wide copies of half types, the fused kernel's own."""
    heads = problem.batch * problem.heads
    count = min(landmarks, problem.tokens)
    square = 8 * heads * count * count
    narrow = 8 * heads * count * problem.head_dim
    widened = 0
    if problem.element_bytes < 4:
        widened = 4 * (2 * problem.query_bytes + 2 * problem.key_bytes) // problem.element_bytes
    kernel = sum(exact_workspace_bytes(each) for each in _parts(problem, count)) + widened
    if problem.mode != "training":
        return kernel + 8 * square + 6 * narrow
    return kernel + (5 * STEPS + 6) * square + 16 * narrow + widened + problem.query_bytes + 2 * problem.key_bytes


def _parts(problem: Problem, count: int) -> tuple[Problem, Problem]:
    """Attention of the landmarks to all keys, and of all queries to the landmarks, a set for each query head."""
    wide = str(accumulator(TORCH_DTYPES[problem.dtype])).removeprefix("torch.")
    few, every = {"tokens": count, "kv_tokens": problem.tokens}, {"tokens": problem.tokens, "kv_tokens": count}
    return problem.with_(dtype=wide, **few), problem.with_(dtype=wide, kv_heads=problem.heads, **every)


@variant(
    "nystrom/landmarks",
    summary="exact attention to the landmarks and from them, the pseudo-inverse in float64",
    devices=("cpu", "cuda"),
    modes=("forward", "training"),
    workspace_bytes=workspace_bytes,
    requires=(ENCODERS_ONLY, SELF_ATTENTION),
)
def build(problem: Problem, *, landmarks: int) -> Attention:
    """Nothing to prepare."""
    wide = accumulator(TORCH_DTYPES[problem.dtype])
    count = min(landmarks, problem.tokens)
    from_landmarks, to_landmarks = (exact_attention(each) for each in _parts(problem, count))

    def run(
        q: Float[Tensor, "batch heads tokens head_dim"],
        k: Float[Tensor, "batch kv_heads kv_tokens head_dim"],
        v: Float[Tensor, "batch kv_heads kv_tokens head_dim"],
    ) -> Float[Tensor, "batch heads tokens head_dim"]:
        if not problem.tokens:
            return q + 0 * (k + v).sum()  # empty, and still a function of all three
        wide_q, wide_k, wide_v = (x.to(wide) for x in (q, k, v))
        short_q, short_k = segment_means(wide_q, count), segment_means(wide_k, count)
        every_k = short_k.repeat_interleave(problem.group, 1).double()
        inner = torch.softmax(short_q.double() @ every_k.mT * q.shape[3] ** -0.5, -1)
        values = from_landmarks(short_q, wide_k, wide_v)
        values = (pseudo_inverse(inner) @ values.double()).to(wide)
        return to_landmarks(wide_q, every_k.to(wide), values).to(q.dtype)

    return run
