"""By the fast Fourier transform, padded to at least twice the length so that nothing wraps around."""

import torch
from jaxtyping import Complex, Float
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from variants.dtypes import TORCH_DTYPES
from variants.long_convolution import CAUSAL_ONLY, filters
from variants.problem import Problem
from variants.tiles import SCRATCH_BYTES, accumulator
from variants.variant import Attention, variant


def padded_length(tokens: int) -> int:
    """The least 2^a 3^b 5^c that is even and not less than twice the tokens: the transforms know these factors."""
    found = 2
    while found < 2 * tokens:
        found *= 2
    for three in range(21):
        for five in range(14):
            odd = 3**three * 5**five
            if odd >= found:
                break
            length = 2 * odd
            while length < 2 * tokens:
                length *= 2
            found = min(found, length)
    return found


class _Convolved(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, q: Tensor, k: Tensor, v: Tensor, spectra: Tensor, problem: Problem) -> Tensor:
        out = torch.zeros_like(q, memory_format=torch.contiguous_format)
        rows, keys = _places(problem)
        wide, length = accumulator(q.dtype), padded_length(problem.kv_tokens)
        for shared in range(problem.kv_heads if out.numel() and v.numel() else 0):
            values = torch.fft.rfft(v[:, shared].to(wide), length, 1)
            for head in range(shared * problem.group, (shared + 1) * problem.group):
                out[:, head, rows] = torch.fft.irfft(values * spectra[head], length, 1)[:, keys].to(q.dtype)
        ctx.save_for_backward(q, k, v, spectra)
        ctx.problem = problem  # type: ignore[attr-defined]  # the context takes attributes
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, spectra = ctx.saved_tensors  # type: ignore[attr-defined]  # set by save_for_backward
        problem: Problem = ctx.problem  # type: ignore[attr-defined]  # set in forward
        rows, keys = _places(problem)
        wide, length = accumulator(q.dtype), padded_length(problem.kv_tokens)
        dv = torch.zeros_like(v, memory_format=torch.contiguous_format)
        slope = torch.zeros(len(q), problem.kv_tokens, q.shape[3], dtype=wide, device=q.device)
        for shared in range(problem.kv_heads if grad.numel() and v.numel() else 0):
            total = torch.zeros_like(spectra[0]).expand(len(q), -1, -1)
            for head in range(shared * problem.group, (shared + 1) * problem.group):
                slope[:, keys] = grad[:, head, rows].to(wide)
                total = total + torch.fft.rfft(slope, length, 1).mul_(spectra[head].conj())  # the filter reversed
            dv[:, shared] = torch.fft.irfft(total, length, 1)[:, : problem.kv_tokens].to(v.dtype)
        return torch.zeros_like(q), torch.zeros_like(k), dv, None, None


def _places(problem: Problem) -> tuple[slice, slice]:
    """The rows that see a key, and their positions among the keys."""
    first = max(0, -problem.offset)
    return slice(first, problem.tokens), slice(problem.offset + first, problem.kv_tokens)


def workspace_bytes(problem: Problem, *, reach: int) -> int:
    """The filters' spectra; of one key-value head the spectra, their product and the padded values."""
    wide = max(4, problem.element_bytes)
    one = (padded_length(problem.kv_tokens) + 2) * problem.head_dim * wide
    held = problem.heads * one + SCRATCH_BYTES
    return held + (5 if problem.mode == "training" else 4) * problem.batch * one


@variant(
    "long_convolution/fft",
    summary="a product of spectra, padded to twice the length",
    devices=("cpu", "cuda"),
    modes=("forward", "training"),
    workspace_bytes=workspace_bytes,
    requires=(CAUSAL_ONLY,),
    spectral=True,
)
def build(problem: Problem, *, reach: int) -> Attention:
    """The filters are drawn and transformed here, in float64. A half type is widened: no transform knows it."""
    taps = filters(problem.heads, problem.kv_tokens, problem.head_dim, reach)
    exact = torch.fft.rfft(taps, padded_length(problem.kv_tokens), 1)
    narrow = accumulator(TORCH_DTYPES[problem.dtype]) == torch.float32
    spectra: Complex[Tensor, "heads frequencies head_dim"] = exact.to(
        problem.device, torch.complex64 if narrow else torch.complex128
    )

    def run(
        q: Float[Tensor, "batch heads tokens head_dim"],
        k: Float[Tensor, "batch kv_heads kv_tokens head_dim"],
        v: Float[Tensor, "batch kv_heads kv_tokens head_dim"],
    ) -> Float[Tensor, "batch heads tokens head_dim"]:
        out: Tensor = _Convolved.apply(q, k, v, spectra, problem)  # type: ignore[no-untyped-call]  # torch types no apply
        return out

    return run
