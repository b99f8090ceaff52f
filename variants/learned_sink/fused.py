"""The CPU's fused kernel and its log-sum-exp: the sink only scales the output, by σ(lse − c)."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from variants.dtypes import TORCH_DTYPES
from variants.learned_sink import sink_logits
from variants.problem import Problem
from variants.sdpa import bottom_right_mask, fused_workspace_bytes
from variants.tiles import accumulator
from variants.variant import Attention, variant


def dense_rows(x: Tensor) -> Tensor:
    """The last axis dense: the fused kernel reads it as it lies."""
    return x if x.stride(-1) == 1 else x.contiguous()


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx, q: Tensor, k: Tensor, v: Tensor, sink: Tensor, mask: Tensor | None, is_causal: bool
    ) -> Tensor:
        q, k, v = (dense_rows(x) for x in (q, k, v))
        fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        out: Tensor
        out, lse = fused(q, k, v, 0.0, is_causal, attn_mask=mask)
        out.mul_(torch.sigmoid(lse - sink).unsqueeze(-1).to(out.dtype))
        if any(ctx.needs_input_grad):  # type: ignore[attr-defined]  # a member of every context
            ctx.save_for_backward(q, k, v, out, torch.logaddexp(lse, sink))
            ctx.seen = mask, is_causal  # type: ignore[attr-defined]  # the context takes attributes
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        # With the sink in the log-sum-exp, the kernel's own formula gives the gradients of the scaled output.
        q, k, v, out, lse = ctx.saved_tensors  # type: ignore[attr-defined]  # set by save_for_backward
        mask, is_causal = ctx.seen  # type: ignore[attr-defined]  # set in forward
        fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
        dq, dk, dv = fused(dense_rows(grad), q, k, v, out, lse, 0.0, is_causal, attn_mask=mask)
        return dq, dk, dv, None, None, None


def workspace_bytes(problem: Problem) -> int:
    """The log-sum-exps, a copy of rows that are not dense, and the fused kernel's own."""
    lse = max(4, problem.element_bytes) * problem.batch * problem.heads * problem.tokens
    return 4 * lse + fused_workspace_bytes(problem)


@variant(
    "learned_sink/fused",
    summary="the fused kernel, its output scaled by σ(lse − c)",
    devices=("cpu",),
    modes=("forward", "training", "decode"),
    workspace_bytes=workspace_bytes,
)
def build(problem: Problem) -> Attention:
    """The sinks are drawn here, and the mask of a causal problem that is not square is built."""
    dtype = TORCH_DTYPES[problem.dtype]
    sink = sink_logits(problem.heads).to(accumulator(dtype))[:, None]
    square = problem.tokens == problem.kv_tokens
    blind = max(0, -problem.offset) if problem.causal else 0
    mask = bottom_right_mask(problem) if problem.causal and not square else None
    if mask is not None:
        mask = mask[None, None, blind:]

    def run(
        q: Float[Tensor, "batch heads tokens head_dim"],
        k: Float[Tensor, "batch kv_heads kv_tokens head_dim"],
        v: Float[Tensor, "batch kv_heads kv_tokens head_dim"],
    ) -> Float[Tensor, "batch heads tokens head_dim"]:
        if not (q.numel() and k.numel()):  # the kernel takes no empty tensor
            return q * 0 + 0 * (k.sum() + v.sum())
        # The kernel's log-sum-exp of a row that sees no key is 0, not -inf: such rows are left out.
        out: Tensor = _Fused.apply(q[:, :, blind:], k, v, sink, mask, problem.causal and square)  # type: ignore[no-untyped-call]  # torch types no apply
        return torch.nn.functional.pad(out, (0, 0, blind, 0)) if blind else out

    return run
