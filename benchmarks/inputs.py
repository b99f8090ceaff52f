"""The kinds of input: q, k and v from a control to the real ones of a model.

Why several: on N(0,1) inputs the mean of V beats most approximations, because no key stands
out; rankings there say nothing about inputs with structure.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from benchmarks.drawn_inputs import QKV, local, normal, peaky, sink, smooth
from benchmarks.recorded import InvalidCapture, is_recorded, load_recorded
from benchmarks.structured_inputs import FEWEST_HEAD_DIM, STRUCTURED
from variants import Problem
from variants.dtypes import TORCH_DTYPES

CAPTURED = Path(__file__).parent / "data" / "captured_minilm.safetensors"
CAPTURED_TOKENS: Final = 512
CAPTURED_HEAD_DIM: Final = 32

Draw = Callable[[Problem, torch.Generator], QKV]


class UnavailableInputs(ValueError):
    """This kind of input cannot be had for the problem; the message says why."""


def make_inputs(problem: Problem, kind: str, seed: int = 0) -> QKV:
    """q, k, v of one kind, in the problem's dtype, on its device, batch-heads-tokens-dim.

    Drawn in float64 on the CPU, so that every dtype and device sees the same numbers. A recorded
    call (`benchmarks.recorded`) is a kind too, of its own problem.
    Raises `UnavailableInputs`.
    """
    generator = torch.Generator().manual_seed(seed)
    if (reason := inputs_refusal(problem, kind)) is not None:
        raise UnavailableInputs(reason)
    try:
        q, k, v = load_recorded(kind, problem) if is_recorded(kind) else ALL_KINDS[kind](problem, generator)
    except InvalidCapture as error:
        raise UnavailableInputs(str(error)) from error
    dtype = TORCH_DTYPES[problem.dtype]
    return q.to(problem.device, dtype), k.to(problem.device, dtype), v.to(problem.device, dtype)


def inputs_refusal(problem: Problem, kind: str) -> str | None:
    """Why this kind of input cannot be had for the problem, or None."""
    if is_recorded(kind):
        return None  # what a file holds is known when it is read
    if kind not in ALL_KINDS:
        return f"inputs must be one of {', '.join(KINDS)}, not {kind!r}; there are also {', '.join(STRUCTURED)}"
    if problem.head_dim < (fewest := FEWEST_HEAD_DIM.get(kind, 1)):
        return f"{kind} inputs need head_dim ≥ {fewest}: {problem.head_dim} is too small"
    return _captured_refusal(problem) if kind == "captured" else None


def _captured_refusal(problem: Problem) -> str | None:
    if not CAPTURED.is_file():
        return f"captured inputs: {CAPTURED.name} is missing from this installation"
    if problem.head_dim < CAPTURED_HEAD_DIM:
        return f"captured inputs have head_dim {CAPTURED_HEAD_DIM}: {problem.head_dim} is too small"
    if (longest := max(problem.tokens, problem.kv_tokens)) > CAPTURED_TOKENS:
        return f"captured inputs hold {CAPTURED_TOKENS} tokens: {longest} is too long"
    return None


def _captured(problem: Problem, generator: torch.Generator) -> QKV:
    """Real q, k, v of all-MiniLM-L6-v2, a window of the captured text for each batch item.

    Heads are dealt round; narrower heads are padded with zeros, q rescaled so that the logits stay.
    """
    from safetensors.torch import load_file  # a file is read here, never at import

    stored = load_file(CAPTURED)
    tensors = [stored[name].to(torch.float64).flatten(0, -3) for name in ("q", "k", "v")]
    _, tokens, size = tensors[0].shape
    slack = tokens - max(problem.tokens, problem.kv_tokens)
    starts = torch.randint(0, slack + 1, (problem.batch,), generator=generator).tolist()
    wanted = ((problem.heads, problem.tokens), (problem.kv_heads, problem.kv_tokens))
    q, k, v = (
        _deal(x, count, starts, length, problem)
        for x, (count, length) in zip(tensors, (wanted[0], wanted[1], wanted[1]), strict=True)
    )
    return q * (problem.head_dim / size) ** 0.5, k, v


def _deal(x: Tensor, heads: int, starts: list[int], length: int, problem: Problem) -> Tensor:
    chosen = [(head * problem.heads // heads) % x.shape[0] for head in range(heads)]
    longest = max(problem.tokens, problem.kv_tokens)
    windows = [x[chosen, start + longest - length : start + longest] for start in starts]
    out = torch.stack(windows) if windows else x[chosen, :length].unsqueeze(0)[:0]
    return torch.nn.functional.pad(out, (0, problem.head_dim - x.shape[2]))


KINDS: Final[dict[str, Draw]] = {
    "normal": normal,
    "smooth": smooth,
    "peaky": peaky,
    "sink": sink,
    "local": local,
    "captured": _captured,
}
"""What `run` and `check` take unless they are asked for others."""

ALL_KINDS: Final[dict[str, Draw]] = KINDS | STRUCTURED
"""With the further kinds, which are asked for by name, or all together as `all`."""
