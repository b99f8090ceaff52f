"""Recorded calls as inputs: which problem each one is, or why it is none, and its q, k and v."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from benchmarks.capture import FORMAT, METADATA_KEY, TENSORS
from benchmarks.drawn_inputs import QKV
from variants import Problem

SUFFIX: Final = ".safetensors"
HIDDEN_BELOW: Final = -1e4
"""An additive mask's value from which on nothing of a key is left, in any dtype."""

_KIND: Final = re.compile(rf"(?P<path>.+{re.escape(SUFFIX)})#(?P<index>\d+)@(?P<digest>[0-9a-f]{{8}})")


class InvalidCapture(ValueError):
    """A file that holds no recorded calls, or not those that are asked for; the message names the file."""


class _Call(msgspec.Struct):
    site: str
    is_causal: bool
    scale: float | None
    dropout: float


class _About(msgspec.Struct):
    format: int
    digest: str
    calls: list[_Call]
    left_out: dict[str, int]


@dataclass(frozen=True, slots=True)
class RecordedCall:
    """One call: its kind of input by name, where it was made, and its problem; or why it is skipped."""

    kind: str
    site: str
    problem: Problem | None
    reason: str = ""

    def describe(self) -> str:
        """One line for a reader."""
        if (p := self.problem) is None:
            return f"{self.kind} ({self.site}), which no variant can be held against: {self.reason}"
        heads = f"{p.heads}" if p.kv_heads == p.heads else f"{p.heads} of queries and {p.kv_heads} of keys"
        tokens = f"{p.tokens}" if p.kv_tokens == p.tokens else f"{p.tokens} over {p.kv_tokens}"
        mask = "causal" if p.causal else "not causal"
        return f"{self.kind} ({self.site}): batch {p.batch}, heads {heads}, tokens {tokens}, {p.dtype}, {mask}"


@dataclass(frozen=True, slots=True)
class Recording:
    """What a file holds; `left_out` counts the calls that were not recorded, by reason."""

    path: Path
    calls: tuple[RecordedCall, ...]
    left_out: dict[str, int]


def read_recording(path: Path) -> Recording:
    """Read which calls a file holds. Raises `InvalidCapture`, and OSError where there is no file."""
    with path.open("rb"):  # for the reason of the system, which safetensors does not give
        pass
    try:
        with safe_open(path, framework="pt") as file:
            about = _about(path, file)
            calls = [_described(file, path, about, index) for index in range(len(about.calls))]
    except (SafetensorError, msgspec.DecodeError) as error:
        raise InvalidCapture(f"{path} is no recording of `attnscape capture`: {error}") from error
    return Recording(path, tuple(calls), about.left_out)


def is_recorded(kind: str) -> bool:
    """Whether a kind of input is a recorded call."""
    return _KIND.fullmatch(kind) is not None


def load_recorded(kind: str, problem: Problem) -> QKV:
    """q, k and v of a recorded call, the program's own scale put into q.

    Raises `InvalidCapture` where the file is not the one that was named, or the call another problem.
    """
    match = _KIND.fullmatch(kind)
    assert match is not None
    path, index = Path(match["path"]), int(match["index"])
    try:
        with safe_open(path, framework="pt") as file:
            about = _about(path, file)
            if about.digest != match["digest"] or index >= len(about.calls):
                raise InvalidCapture(f"{path} is not the file that {kind} was recorded in")
            found = _described(file, path, about, index)
            q, k, v = _four_axes([file.get_tensor(f"{index}.{name}") for name in TENSORS[:3]])
    except (SafetensorError, OSError) as error:
        raise InvalidCapture(f"cannot read {path}: {error}") from error
    if found.problem is None or found.problem != problem.with_(device="cpu", mode="forward"):
        raise InvalidCapture(f"{kind} was recorded from another problem")
    scale = about.calls[index].scale
    usual = 1 / math.sqrt(problem.head_dim)
    if scale is not None and not math.isclose(scale, usual):
        q = (q.to(torch.float64) * (scale / usual)).to(q.dtype)
    return q, k, v


def recorded_problems(recording: Recording, device: str, modes: Sequence[str]) -> list[tuple[Problem, str]]:
    """Each call that is a problem, in each mode, with its kind of input. Raises `InvalidCapture` where none is."""
    found = [
        (call.problem.with_(device=device, mode=mode), call.kind)
        for call in recording.calls
        for mode in modes
        if call.problem is not None
    ]
    if not found:
        reasons = "; ".join(sorted({call.reason for call in recording.calls})) or "it holds no calls"
        raise InvalidCapture(f"nothing in {recording.path} can be used: {reasons}")
    return found


def _about(path: Path, file: Any) -> _About:
    text = (file.metadata() or {}).get(METADATA_KEY)
    if text is None:
        raise InvalidCapture(f"{path} is no recording of `attnscape capture`")
    about = msgspec.json.decode(text, type=_About)
    if about.format != FORMAT:
        raise InvalidCapture(f"{path} has format {about.format}; this version reads format {FORMAT} only")
    return about


def _described(file: Any, path: Path, about: _About, index: int) -> RecordedCall:
    kind, call = f"{path}#{index}@{about.digest}", about.calls[index]
    shapes = [torch.empty(file.get_slice(f"{index}.{name}").get_shape(), device="meta") for name in TENSORS[:3]]
    if (reason := _unlike(shapes)) is not None:
        return RecordedCall(kind, call.site, None, reason)
    dtype = file.get_slice(f"{index}.q").get_dtype()
    q, k, _ = _four_axes(shapes)
    mask = file.get_tensor(f"{index}.mask") if f"{index}.mask" in file.keys() else None  # noqa: SIM118  # no mapping
    causal = _causality(mask, call.is_causal, q.shape[2], k.shape[2])
    if isinstance(causal, str) or dtype not in _DTYPES:
        return RecordedCall(kind, call.site, None, causal if isinstance(causal, str) else f"no dtype {dtype}")
    problem = Problem(
        tokens=q.shape[2],
        batch=q.shape[0],
        heads=q.shape[1],
        kv_heads=k.shape[1],
        kv_tokens=k.shape[2],
        head_dim=q.shape[3],
        dtype=_DTYPES[dtype],
        causal=causal,
    )
    return RecordedCall(kind, call.site, problem)


_DTYPES: Final = {"F64": "float64", "F32": "float32", "BF16": "bfloat16", "F16": "float16"}


def _unlike(shapes: list[Tensor]) -> str | None:
    """Why three shapes are no problem of this project, or None."""
    if not all(x.numel() for x in shapes):
        return "it is empty"
    q, k, v = _four_axes(shapes)
    if k.shape[-1] != v.shape[-1]:
        return f"its values have size {v.shape[-1]}, its keys {k.shape[-1]}"
    if k.shape != v.shape or q.shape[0] != k.shape[0] or q.shape[1] % k.shape[1]:
        return "its q, k and v are broadcast: " + ", ".join("×".join(map(str, x.shape)) for x in shapes)
    return None


def _four_axes(tensors: Sequence[Tensor]) -> list[Tensor]:
    """As batch, heads, tokens, head_dim: further axes go into the batch, missing ones have length 1."""
    wide = [x[(None,) * max(0, 4 - x.dim())] for x in tensors]
    return [x.flatten(0, x.dim() - 4) for x in wide]


def _causality(mask: Tensor | None, is_causal: bool, tokens: int, kv_tokens: int) -> bool | str:
    """Whether the call was causal; or, where its mask is neither absent nor causal, that as a reason."""
    if mask is None:
        if is_causal and tokens != kv_tokens:
            return "it is causal from the top left, and problems are causal from the bottom right"
        return is_causal
    hidden = ~mask if mask.dtype == torch.bool else mask <= HIDDEN_BELOW
    if mask.dtype != torch.bool and bool((mask[~hidden] != 0).any()):
        return "its mask adds a bias"
    if not hidden.any():
        return False
    later = torch.ones(tokens, kv_tokens, dtype=torch.bool).triu(kv_tokens - tokens + 1)
    if bool((hidden == later).all()):
        return True
    seen = 1 - float(torch.broadcast_to(hidden, (*hidden.shape[:-2], tokens, kv_tokens)).double().mean())
    return f"its mask is not causal ({100 * seen:.0f} % of the pairs are visible)"
