"""Record what a PyTorch program gives to `scaled_dot_product_attention`, without changing what the program does.

This module imports torch, safetensors and the standard library only, since it also runs in the
environment of somebody else's program.
"""

import functools
import hashlib
import json
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Final

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

FORMAT: Final = 1
METADATA_KEY: Final = "attnscape_capture"
MOST_MIB: Final = 256.0
MOST_CALLS: Final = 64
TENSORS: Final = ("q", "k", "v", "mask")


class CaptureError(RuntimeError):
    """Nothing was recorded, or what was recorded cannot be written; the message is one line."""


class NothingRecorded(CaptureError):
    """The program ended without a call that could be recorded."""


class Recorder:
    """The calls that were recorded, and the counts of those that were not, by reason."""

    def __init__(self, max_bytes: float, max_calls: int) -> None:
        """Both limits are inclusive."""
        self.max_bytes, self.max_calls = max_bytes, max_calls
        self.calls: list[dict[str, Any]] = []
        self.tensors: dict[str, Tensor] = {}
        self.left_out: dict[str, int] = {}
        self.bytes = 0
        self._seen: set[Any] = set()
        self._lock = threading.Lock()

    def see(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        *,
        scale: float | None = None,
        enable_gqa: bool = False,  # noqa: ARG002  # the shapes say it
    ) -> None:
        """Keep a call, unless its like from the same place was kept before; takes SDPA's own arguments.

        Never raises what a copy to the host may: such a call is left out, and counted.
        """
        named = {"q": query, "k": key, "v": value} | ({} if attn_mask is None else {"mask": attn_mask})
        site, owner = _call_site()
        about = {"site": site, "is_causal": bool(is_causal), "scale": scale, "dropout": float(dropout_p)}
        try:
            with self._lock:
                self._keep(named, about, (site, owner, is_causal, scale, *map(_look, named.values())))
        except (RuntimeError, MemoryError):
            self._leave_out("whose tensors cannot be copied")

    def _keep(self, named: dict[str, Tensor], about: dict[str, Any], identity: Any) -> None:
        if identity in self._seen:
            return
        self._seen.add(identity)
        if len(self.calls) >= self.max_calls:
            self._leave_out(f"beyond {self.max_calls} calls")
            return
        if not all(_is_plain(x) for x in named.values()):
            self._leave_out("of tensors that are not plain ones")
            return
        compact = {name: _without_repeats(x) if name == "mask" else x for name, x in named.items()}
        size = sum(x.numel() * x.element_size() for x in compact.values())
        if self.bytes + size > self.max_bytes:
            self._leave_out(f"beyond {self.max_bytes / 2**20:g} MiB")
            return
        copies = {name: x.detach().to("cpu", copy=True).contiguous() for name, x in compact.items()}
        self.tensors |= {f"{len(self.calls)}.{name}": x for name, x in copies.items()}
        self.calls.append(about)
        self.bytes += size

    def _leave_out(self, reason: str) -> None:
        self.left_out[reason] = self.left_out.get(reason, 0) + 1

    def save(self, path: Path) -> None:
        """Write the file, replaced as a whole; raises `CaptureError`."""
        about = {"format": FORMAT, "digest": self._digest(), "calls": self.calls, "left_out": self.left_out}
        draft = _draft(path)
        try:
            save_file(self.tensors, draft, metadata={METADATA_KEY: json.dumps(about)})
            draft.replace(path)
        except (OSError, SafetensorError) as error:
            raise CaptureError(f"cannot write {path}: {' '.join(str(error).split())}") from error

    def _digest(self) -> str:
        digest = hashlib.sha256(json.dumps(self.calls).encode())
        for name, x in self.tensors.items():
            digest.update(f"{name} {x.dtype} {list(x.shape)}".encode())
            digest.update(x.reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()[:8]


@contextmanager
def recording(path: Path | str, *, max_mib: float = MOST_MIB, calls: int = MOST_CALLS) -> Iterator[Recorder]:
    """Record the attention calls of the block into a file for `attnscape check --inputs`.

    The first call of each place, module and set of shapes is kept, up to `max_mib` MiB and `calls`
    calls. Seen is what calls `torch.nn.functional.scaled_dot_product_attention` by that name, or by
    a name imported within the block; calls inside compiled or scripted code are not. The file is
    written when the block ends, also where it ends with an error.
    Raises OSError at once where the file cannot be written, and at the end `NothingRecorded`.
    """
    path = Path(path)
    draft = _draft(path)
    draft.open("wb").close()
    recorder = Recorder(max_mib * 2**20, calls)
    original = torch.nn.functional.scaled_dot_product_attention
    torch.nn.functional.scaled_dot_product_attention = _watched(original, recorder)
    try:
        yield recorder
        if not recorder.calls:
            raise NothingRecorded(_nothing(recorder))
    finally:
        torch.nn.functional.scaled_dot_product_attention = original
        try:
            if recorder.calls:
                recorder.save(path)
        finally:
            draft.unlink(missing_ok=True)


def _watched(original: Callable[..., Tensor], recorder: Recorder) -> Callable[..., Tensor]:
    @functools.wraps(original)
    def scaled_dot_product_attention(*args: Any, **kwargs: Any) -> Tensor:
        out = original(*args, **kwargs)
        if not torch.compiler.is_compiling():
            recorder.see(*args, **kwargs)
        return out

    # Else code that is scripted while recording would be refused: scripts know functions by their identity.
    torch.jit._builtins._register_builtin(scaled_dot_product_attention, "aten::scaled_dot_product_attention")
    return scaled_dot_product_attention


def _nothing(recorder: Recorder) -> str:
    if recorder.left_out:
        counts = ", ".join(f"{count} {reason}" for reason, count in recorder.left_out.items())
        return f"nothing was recorded: calls left out: {counts}"
    return (
        "nothing was recorded: the program never called torch.nn.functional.scaled_dot_product_attention "
        "outside compiled code (nn.MultiheadAttention does not where it returns weights, nor on its fast path, "
        "which torch.backends.mha.set_fastpath_enabled(False) turns off)"
    )


def _call_site() -> tuple[str, int]:
    """Where attention was called, outside torch, by which module; and that module's identity."""
    frame: FrameType | None = sys._getframe(2)
    place = owner = None
    while frame is not None and (place is None or owner is None):
        name = str(frame.f_globals.get("__name__", "?"))
        if place is None and name != __name__ and name.partition(".")[0] != "torch":
            place = f"{name}:{frame.f_lineno}"
        code = frame.f_code
        if owner is None and code.co_argcount and code.co_varnames[0] == "self":
            found = frame.f_locals.get("self")
            owner = found if isinstance(found, torch.nn.Module) else None
        frame = frame.f_back
    site = place or "?"
    return (site, 0) if owner is None else (f"{site} in {type(owner).__name__}", id(owner))


def _look(x: Any) -> Any:
    return (tuple(x.shape), x.dtype, x.device) if isinstance(x, Tensor) and not x.is_nested else None


def _is_plain(x: Any) -> bool:
    """Whether it holds numbers of its own: no stand-in of a tracer, no nested or sparse tensor, no stream capture."""
    if type(x) not in (Tensor, torch.nn.Parameter) or x.is_nested or x.layout is not torch.strided:
        return False
    if x.device.type == "meta" or torch._C._functorch.is_functorch_wrapped_tensor(x):
        return False
    return not (x.is_cuda and torch.cuda.is_current_stream_capturing())


def _without_repeats(mask: Tensor) -> Tensor:
    """An expanded mask with its repeated axes at length 1, as it broadcasts again."""
    for axis, (size, stride) in enumerate(zip(mask.shape, mask.stride(), strict=True)):
        if stride == 0 and size > 1:
            mask = mask.narrow(axis, 0, 1)
    return mask


def _draft(path: Path) -> Path:
    return path.with_name(path.name + ".part")
