"""Named ranges, for torch's profiler and, on CUDA, for nsys and ncu."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def named_range(name: str, device_type: str) -> Iterator[None]:
    """Mark what runs inside, as `attnscape: NAME`."""
    text = f"attnscape: {name}"
    with torch.profiler.record_function(text):
        if device_type != "cuda":
            yield
            return
        with torch.cuda.nvtx.range(text):
            yield
