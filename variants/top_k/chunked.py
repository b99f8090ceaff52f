"""Some rows of scores at a time: their largest selected, the kept values summed without the others.

Scores that decide are float64 for every dtype: of thousands of rows a few hold two scores about
the threshold that float32 cannot tell apart, and another key would be another function.
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional

from variants.problem import Problem
from variants.tiles import SCRATCH_BYTES, accumulator, flatten_heads
from variants.top_k import visible_pairs
from variants.variant import Attention, variant

ELEMENTS = 2**18  # scores of a chunk: 2 MiB
LARGEST_GROUP = 64


def group_size(keys: int, kept: int) -> int:
    """Keys of a group in the selection: about √(keys / kept), where there is least left to sort."""
    group = 1
    while 4 * group * group * kept <= keys and group < LARGEST_GROUP:
        group *= 2
    return group


def select(
    scores: Float[Tensor, "rows keys"], kept: int, group: int
) -> tuple[Float[Tensor, "rows kept"], Int64[Tensor, "rows kept"]]:
    """The largest scores of each row and their keys; of equal scores the earlier keys. `group` divides the keys.

    The largest are among the groups with the largest peaks: only those are sorted.
    """
    if scores.shape[1] <= kept:
        return scores, torch.arange(scores.shape[1], device=scores.device).expand_as(scores)
    if group == 1:
        values, keys = scores.topk(kept + 1)
        tied = values[:, kept] == values[:, kept - 1]
    else:
        groups = scores.shape[1] // group
        peaks, best = scores.view(-1, group, groups).amax(1).topk(kept + 1)
        members = torch.arange(0, scores.shape[1], groups, device=scores.device)
        candidates = (best[:, :kept, None] + members).flatten(1)
        values, places = scores.gather(1, candidates).topk(kept + 1)
        keys = candidates.gather(1, places)
        least = values[:, kept - 1]
        tied = (values[:, kept] == least) | ((peaks[:, kept] == least) & (peaks[:, kept - 1] == least))
    values, keys = values[:, :kept], keys[:, :kept]
    tied &= values[:, -1] > -torch.inf
    if bool(tied.any()):  # torch.topk promises no order of equal scores
        exact = scores[tied].sort(dim=-1, descending=True, stable=True)
        values[tied], keys[tied] = exact.values[:, :kept], exact.indices[:, :kept]
    return values, keys


def chunks(problem: Problem) -> list[slice]:
    """Slices of the rows that see a key."""
    first = max(0, -problem.offset) if problem.causal else 0
    step = chunk_rows(problem)
    stop = problem.tokens if problem.kv_tokens else 0
    return [slice(start, min(start + step, stop)) for start in range(first, stop, step)]


def chunk_rows(problem: Problem) -> int:
    """Rows of a chunk."""
    return max(16, ELEMENTS // max(1, problem.kv_tokens))


def keys_seen(problem: Problem, rows: slice) -> int:
    """Keys up to the last that a row of the chunk sees."""
    return rows.stop + problem.offset if problem.causal else problem.kv_tokens


def scores_of(q: Tensor, k: Tensor, rows: slice, seen: int, group: int, problem: Problem) -> Tensor:
    """Scores of a chunk, its keys filled up to whole groups; hidden ones are -inf."""
    scores = q[rows].double() @ k[: -(-seen // group) * group].T
    scores[:, seen:] = -torch.inf
    if problem.causal:
        first = rows.start + problem.offset
        later = torch.ones(scores.shape[0], seen - first, dtype=torch.bool, device=q.device).triu_(1)
        scores[:, first:seen].masked_fill_(later, -torch.inf)
    return scores


class _TopK(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, q: Tensor, k: Tensor, v: Tensor, problem: Problem, kept: int) -> Tensor:
        out = torch.zeros_like(q, memory_format=torch.contiguous_format)
        wide = accumulator(q.dtype)
        width = min(kept, k.shape[2])
        training = problem.mode == "training"
        shape = (*q.shape[:3], width) if training else (0, 0, 0, width)
        weights = q.new_zeros(shape, dtype=wide)
        keys = q.new_zeros(shape, dtype=torch.int32)
        fq, fk, fv, fo, fw = (flatten_heads(x) for x in (q, k, v, out, weights))
        fi = keys.flatten(0, 1)
        for head in range(fq.shape[0]):
            shared = head // problem.group
            scaled = functional.pad(fk[shared].double() * q.shape[3] ** -0.5, (0, 0, 0, LARGEST_GROUP))
            values = fv[shared].to(wide).contiguous()
            for rows in chunks(problem):
                seen = keys_seen(problem, rows)
                group = group_size(seen, kept)
                top, chosen = select(scores_of(fq[head], scaled, rows, seen, group, problem), kept, group)
                chosen = chosen.clamp(max=seen - 1)  # a place that is left over has no weight
                share = torch.softmax(top, -1).to(wide)
                fo[head, rows] = functional.embedding_bag(chosen, values, per_sample_weights=share, mode="sum")
                if training:
                    fw[head, rows, : share.shape[1]] = share
                    fi[head, rows, : share.shape[1]] = chosen
        if training:
            ctx.save_for_backward(q, k, v, out, weights, keys)
            ctx.problem = problem  # type: ignore[attr-defined]  # the context takes attributes
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, weights, keys = ctx.saved_tensors  # type: ignore[attr-defined]  # set by save_for_backward
        problem: Problem = ctx.problem  # type: ignore[attr-defined]  # set in forward
        wide = weights.dtype
        dq, dk, dv = (torch.zeros(x.shape, dtype=wide, device=q.device) for x in (q, k, v))
        fq, fk, fv, fg, fo, fw = (flatten_heads(x) for x in (q, k, v, grad, out, weights))
        fi = keys.flatten(0, 1)
        fdq, fdk, fdv = (flatten_heads(x) for x in (dq, dk, dv))
        for head in range(fq.shape[0]):
            shared = head // problem.group
            own_k, own_v = fk[shared].to(wide), fv[shared].to(wide)
            for rows in chunks(problem):
                span = slice(0, keys_seen(problem, rows))
                slope, index = fg[head, rows].to(wide), fi[head, rows].long()
                delta = (slope * fo[head, rows].to(wide)).sum(-1, keepdim=True)
                dense = (slope @ own_v[span].T).sub_(delta)
                scores = fw[head, rows] * dense.gather(1, index).mul_(q.shape[3] ** -0.5)
                # A padded place repeats a key with no weight: it has to be added, not written.
                dense.zero_().scatter_add_(1, index, fw[head, rows])
                fdv[shared, span].addmm_(dense.T, slope)
                dense.zero_().scatter_add_(1, index, scores)
                fdq[head, rows] = dense @ own_k[span]
                fdk[shared, span].addmm_(dense.T, fq[head, rows].to(wide))
        return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype), None, None


def workspace_bytes(problem: Problem, *, kept: int) -> int:
    """A chunk's scores with what the selection adds, one head's keys and values; in training the kept weights."""
    wide = max(4, problem.element_bytes)
    head = (problem.kv_tokens + LARGEST_GROUP) * problem.head_dim * (16 + 2 * wide)
    rows = min(problem.tokens, chunk_rows(problem))
    kept = min(kept, problem.kv_tokens)
    group = group_size(problem.kv_tokens, kept) if kept else 1
    candidates = kept * (group * 16 + 64) if group > 1 else kept * 64
    chunk = rows * (8 * problem.kv_tokens * (1 if group == 1 else 2) + candidates + 16 * problem.head_dim)
    if problem.mode != "training":
        return head + chunk + SCRATCH_BYTES
    held = problem.batch * problem.heads * problem.tokens * kept * (wide + 4)
    widened = problem.input_output_bytes // 2 * wide // problem.element_bytes if problem.element_bytes < wide else 0
    return head + chunk + held + widened + SCRATCH_BYTES


def executed_flops(problem: Problem, *, kept: int) -> int:
    """The scores of every chunk and the kept values; in training four dense products more."""
    pairs: int = sum((rows.stop - rows.start) * keys_seen(problem, rows) for rows in chunks(problem))
    scores = 2 * problem.head_dim * pairs
    values = 2 * problem.head_dim * visible_pairs(problem, kept=kept)
    one_head = scores + values + (4 * scores if problem.mode == "training" else 0)
    return problem.batch * problem.heads * one_head


@variant(
    "top_k/chunked",
    summary="rows of scores at a time, the largest selected by groups",
    devices=("cpu", "cuda"),
    modes=("forward", "training", "decode"),
    workspace_bytes=workspace_bytes,
    executed_flops=executed_flops,
)
def build(problem: Problem, *, kept: int) -> Attention:
    """Nothing to prepare."""

    def run(
        q: Float[Tensor, "batch heads tokens head_dim"],
        k: Float[Tensor, "batch kv_heads kv_tokens head_dim"],
        v: Float[Tensor, "batch kv_heads kv_tokens head_dim"],
    ) -> Float[Tensor, "batch heads tokens head_dim"]:
        out: Tensor = _TopK.apply(q, k, v, problem, kept)  # type: ignore[no-untyped-call]  # torch types no apply
        return out

    return run
