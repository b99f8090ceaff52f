"""The keys cut into parts, each attended to by itself, merged by their log-sum-exps: few queries over a long cache.

Queries that share a key-value head are rows of one tile, so that a cache is read once for its whole group.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from variants.dtypes import TORCH_DTYPES
from variants.problem import Problem
from variants.requirement import Limit
from variants.tiles import SCRATCH_BYTES, accumulator, attend, flatten_heads, hidden_bias, visible
from variants.variant import Attention, variant

KEYS = 512  # of a part: 128 KiB of keys at head_dim 64 in float32, and parts enough for every thread
ROWS = 64  # queries of a step: each part has an output of its own for them

FEW_ON_CUDA = Limit(
    lambda problem: problem.device_type == "cpu" or problem.tokens <= ROWS, f"CUDA: at most {ROWS} queries"
)
"""There each part's scores are held."""


@dataclass(frozen=True, slots=True)
class Step:
    """Some queries of each head: `parts` whole parts that they all see, then the keys up to `stop`, with their bias.

    `bias` and `blind`, the rows that see none of the last keys, are for the rows of a whole group.
    """

    rows: slice
    parts: int
    stop: int
    bias: Tensor | None
    blind: Tensor | None

    @property
    def last(self) -> slice:
        """The keys after the whole parts."""
        return slice(self.parts * KEYS, self.stop)


def steps(problem: Problem) -> list[Step]:
    """A step for each `ROWS` queries; those that see no key have none. Equal biases are one tensor."""
    first = max(0, -problem.offset) if problem.causal else 0
    biases: dict[tuple[int, int, int], tuple[Tensor | None, Tensor | None]] = {}
    plan = []
    for start in range(first, problem.tokens if problem.kv_tokens else 0, ROWS):
        rows = slice(start, min(start + ROWS, problem.tokens))
        seen_by_all = start + problem.offset + 1 if problem.causal else problem.kv_tokens
        stop = rows.stop + problem.offset if problem.causal else problem.kv_tokens
        parts = seen_by_all // KEYS
        shape = rows.stop - start, stop - parts * KEYS, seen_by_all - parts * KEYS
        if shape not in biases:
            biases[shape] = _bias(problem, *shape)
        plan.append(Step(rows, parts, stop, *biases[shape]))
    return plan


def _bias(problem: Problem, rows: int, keys: int, seen_by_first: int) -> tuple[Tensor | None, Tensor | None]:
    """The bias of the last keys, and which rows see none of them."""
    if not problem.causal:
        return None, None
    row = torch.arange(rows, device=problem.device)[:, None] + seen_by_first
    hidden = (torch.arange(keys, device=problem.device)[None, :] >= row).repeat(problem.group, 1)
    blind = hidden.all(-1)
    bias = hidden_bias(hidden, accumulator(TORCH_DTYPES[problem.dtype]))
    return bias, blind if bool(blind.any()) else None


def one_step(
    step: Step,
    q: Float[Tensor, "kv_heads rows dim"],
    k: Float[Tensor, "kv_heads kv_tokens dim"],
    v: Float[Tensor, "kv_heads kv_tokens dim"],
) -> Float[Tensor, "kv_heads rows dim"]:
    """The outputs of all parts, weighed by their shares of the whole sum."""
    outs, lses = [], []
    if step.parts:
        keys, values = (x[:, : step.parts * KEYS].unflatten(1, (step.parts, KEYS)) for x in (k, v))
        out, lse = attend(q[:, None].expand(-1, step.parts, -1, -1), keys, values, None)
        outs.append(out)
        lses.append(lse)
    if step.last.start < step.stop:
        out, lse = attend(q[:, None], k[:, None, step.last], v[:, None, step.last], step.bias)
        outs.append(out)
        lses.append(lse if step.blind is None else lse.masked_fill(step.blind, -torch.inf))
    if len(outs) == 1 and outs[0].shape[1] == 1:
        return outs[0][:, 0]
    lse = torch.cat(lses, 1)
    shares = torch.exp(lse - visible(torch.logsumexp(lse, 1, keepdim=True)))
    merged: Tensor = torch.einsum("hpr,hprd->hrd", shares, torch.cat(outs, 1).to(shares.dtype))
    return merged


def workspace_bytes(problem: Problem) -> int:
    """Of a step the outputs of its parts, twice, and in CUDA its scores; the biases."""
    wide = max(4, problem.element_bytes)
    rows = problem.group * min(ROWS, problem.tokens)
    parts = problem.kv_tokens // KEYS + 1
    heads = problem.batch * problem.kv_heads * rows
    outs = heads * parts * (problem.head_dim * (2 * problem.element_bytes + wide) + 3 * wide)
    scores = 3 * wide * heads * problem.kv_tokens if problem.device_type == "cuda" else 0
    kinds = min(-(-problem.tokens // ROWS), KEYS // ROWS + 1) if problem.causal and problem.tokens > 1 else 0
    biases = kinds * wide * rows * min(KEYS + ROWS, problem.kv_tokens)
    packed = 2 * problem.key_bytes if problem.element_bytes == 2 and rows >= 64 else 0
    return outs + scores + biases + packed + heads * problem.head_dim * problem.element_bytes + SCRATCH_BYTES


def executed_flops(problem: Problem) -> int:
    """The keys up to the last that a step sees, for each of its queries."""
    pairs: int = sum((step.rows.stop - step.rows.start) * step.stop for step in steps(problem.with_(device="cpu")))
    return 4 * problem.batch * problem.heads * problem.head_dim * pairs


@variant(
    "memory_efficient/split_kv",
    summary=f"the keys in parts of {KEYS}, merged by their log-sum-exps; queries of a group share one reading",
    devices=("cpu", "cuda"),
    modes=("forward", "decode"),
    workspace_bytes=workspace_bytes,
    executed_flops=executed_flops,
    requires=(FEW_ON_CUDA,),
    source="the merge: arXiv:2112.05682, section 2; parts of the keys side by side: FlashDecoding, Dao et al. 2023",
)
def build(problem: Problem) -> Attention:
    """The parts and the biases of the last keys are laid out here."""
    plan = steps(problem)

    def run(
        q: Float[Tensor, "batch heads tokens head_dim"],
        k: Float[Tensor, "batch kv_heads kv_tokens head_dim"],
        v: Float[Tensor, "batch kv_heads kv_tokens head_dim"],
    ) -> Float[Tensor, "batch heads tokens head_dim"]:
        whole = sum(step.rows.stop - step.rows.start for step in plan) == problem.tokens
        out = (torch.empty_like if whole else torch.zeros_like)(q, memory_format=torch.contiguous_format)
        fk, fv = flatten_heads(k), flatten_heads(v)
        by_group = q.unflatten(1, (problem.kv_heads, problem.group)).flatten(0, 1)
        out_by_group = out.view(by_group.shape)
        for step in plan:
            rows = by_group[:, :, step.rows]
            tile = one_step(step, rows.flatten(1, 2).contiguous(), fk, fv)
            out_by_group[:, :, step.rows] = tile.view(rows.shape)
        return out

    return run
