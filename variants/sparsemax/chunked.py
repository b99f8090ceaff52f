"""Some rows of scores at a time; the threshold from the largest ones, which mostly hold all that has weight.

Where they do not, by shrinking the support: a key in that of the answer is in that of every step
(Michelot's algorithm), and only scores less than one below the largest can be in it at all.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from variants.problem import Problem
from variants.tiles import SCRATCH_BYTES, accumulator, flatten_heads
from variants.top_k.chunked import group_size, select
from variants.variant import Attention, variant

ELEMENTS = 2**18  # scores of a chunk: 1 MiB in float32
LEADING = 64  # scores among which the support is sought first


def project(scores: Float[Tensor, "rows keys"]) -> Float[Tensor, "rows keys"]:
    """The projection of each row onto the simplex, in place; every row has a finite score."""
    scores.sub_(scores.amax(-1, keepdim=True))
    threshold, found = leading_threshold(scores)
    if not bool(found.all()):
        threshold[~found] = shrunk_threshold(scores[~found])
    return scores.clamp_(min=threshold).sub_(threshold)


def leading_threshold(scores: Float[Tensor, "rows keys"]) -> tuple[Float[Tensor, "rows 1"], Bool[Tensor, " rows"]]:
    """The threshold by algorithm 1 on each row's largest scores, and whether the support ends within them."""
    group = group_size(scores.shape[1], LEADING)
    while scores.shape[1] % group:
        group //= 2
    ordered = select(scores, LEADING, group)[0].sort(-1, descending=True).values
    sums = ordered.cumsum(-1) - 1
    number = torch.arange(1, ordered.shape[1] + 1, dtype=scores.dtype, device=scores.device)
    support = (number * ordered > sums).sum(-1, keepdim=True)
    whole = ordered.shape[1] == scores.shape[1]
    return sums.gather(-1, support - 1) / support, (support < ordered.shape[1]).squeeze(-1) | whole


def shrunk_threshold(scores: Float[Tensor, "rows keys"]) -> Float[Tensor, "rows 1"]:
    """The threshold by shrinking the support until it holds still."""
    threshold = scores.new_full((scores.shape[0], 1), -1.0)
    size = torch.zeros_like(threshold, dtype=torch.int64)
    while True:
        inside = scores > threshold
        count = inside.sum(-1, keepdim=True)
        if torch.equal(count, size):
            return threshold
        threshold = (torch.where(inside, scores, 0.0).sum(-1, keepdim=True) - 1) / count
        size = count


def chunks(problem: Problem) -> list[tuple[slice, slice]]:
    """Slices of the rows that see a key, each with the keys up to the last that it sees."""
    first = max(0, -problem.offset) if problem.causal else 0
    step = chunk_rows(problem)
    stop = problem.tokens if problem.kv_tokens else 0
    pieces = []
    for start in range(first, stop, step):
        end = min(start + step, stop)
        pieces.append((slice(start, end), slice(0, end + problem.offset if problem.causal else problem.kv_tokens)))
    return pieces


def chunk_rows(problem: Problem) -> int:
    """Rows of a chunk."""
    return max(16, ELEMENTS // max(1, problem.kv_tokens))


def weights_of(q: Tensor, k: Tensor, rows: slice, keys: slice, problem: Problem) -> Tensor:
    """The weights of a chunk from its scaled queries."""
    scores = q[rows] @ k[keys].T
    if problem.causal:
        first = rows.start + problem.offset
        later = torch.ones(scores.shape[0], keys.stop - first, dtype=torch.bool, device=q.device).triu_(1)
        scores[:, first:].masked_fill_(later, -torch.inf)
    return project(scores)


class _Sparsemax(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, q: Tensor, k: Tensor, v: Tensor, problem: Problem) -> Tensor:
        out = torch.zeros_like(q, memory_format=torch.contiguous_format)
        wide = accumulator(q.dtype)
        fq, fk, fv, fo = (flatten_heads(x) for x in (q, k, v, out))
        for head in range(fq.shape[0]):
            scaled = fq[head].to(wide) * q.shape[3] ** -0.5
            own_k, own_v = (x[head // problem.group].to(wide) for x in (fk, fv))
            for rows, keys in chunks(problem):
                fo[head, rows] = weights_of(scaled, own_k, rows, keys, problem) @ own_v[keys]
        ctx.save_for_backward(q, k, v)
        ctx.problem = problem  # type: ignore[attr-defined]  # the context takes attributes
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v = ctx.saved_tensors  # type: ignore[attr-defined]  # set by save_for_backward
        problem: Problem = ctx.problem  # type: ignore[attr-defined]  # set in forward
        wide = accumulator(q.dtype)
        dq, dk, dv = (torch.zeros(x.shape, dtype=wide, device=q.device) for x in (q, k, v))
        fq, fk, fv, fg = (flatten_heads(x) for x in (q, k, v, grad))
        fdq, fdk, fdv = (flatten_heads(x) for x in (dq, dk, dv))
        scale = q.shape[3] ** -0.5
        for head in range(fq.shape[0]):
            shared = head // problem.group
            scaled = fq[head].to(wide) * scale
            own_k, own_v = fk[shared].to(wide), fv[shared].to(wide)
            for rows, keys in chunks(problem):
                slope = fg[head, rows].to(wide)
                weights = weights_of(scaled, own_k, rows, keys, problem)
                fdv[shared, keys].addmm_(weights.T, slope)
                # Within the support the mean is taken out, outside it nothing moves (section 2.5).
                inside = (weights > 0).to(wide)
                inner = (slope @ own_v[keys].T).mul_(inside)
                inner.sub_(inside.mul_(inner.sum(-1, keepdim=True) / inside.sum(-1, keepdim=True)))
                fdq[head, rows] = (inner @ own_k[keys]).mul_(scale)
                fdk[shared, keys].addmm_(inner.T, scaled[rows])
        return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype), None


def workspace_bytes(problem: Problem) -> int:
    """A chunk's scores and their copies, one head's inputs widened; in training wide gradients too."""
    wide = max(4, problem.element_bytes)
    rows = min(problem.tokens, chunk_rows(problem))
    head = (problem.tokens + 2 * problem.kv_tokens) * problem.head_dim * wide
    chunk = rows * (problem.kv_tokens * (3 * wide + 2) + 2 * problem.head_dim * wide)
    if problem.mode != "training":
        return head + chunk + SCRATCH_BYTES
    widened = problem.input_output_bytes // 2 * wide // problem.element_bytes if problem.element_bytes < wide else 0
    return head + 2 * chunk + widened + SCRATCH_BYTES


def executed_flops(problem: Problem) -> int:
    """Every pair of every chunk; in training the scores once more and four products."""
    pairs: int = sum((rows.stop - rows.start) * keys.stop for rows, keys in chunks(problem))
    forward = 4 * problem.batch * problem.heads * problem.head_dim * pairs
    return round(forward * 3.5) if problem.mode == "training" else forward


@variant(
    "sparsemax/chunked",
    summary="rows of scores at a time, projected from their largest",
    devices=("cpu", "cuda"),
    modes=("forward", "training", "decode"),
    workspace_bytes=workspace_bytes,
    executed_flops=executed_flops,
)
def build(problem: Problem) -> Attention:
    """Nothing to prepare."""

    def run(
        q: Float[Tensor, "batch heads tokens head_dim"],
        k: Float[Tensor, "batch kv_heads kv_tokens head_dim"],
        v: Float[Tensor, "batch kv_heads kv_tokens head_dim"],
    ) -> Float[Tensor, "batch heads tokens head_dim"]:
        out: Tensor = _Sparsemax.apply(q, k, v, problem)  # type: ignore[no-untyped-call]  # torch types no apply
        return out

    return run
