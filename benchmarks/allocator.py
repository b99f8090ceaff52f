"""The C allocator, fixed: with glibc's default a large tensor costs a page fault for every page, each call."""

import ctypes
import sys

RETAINED = "glibc, heap retained"
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4


def retain_heap() -> str:
    """Keep freed memory in the heap of this process; returns the name of the setting in force.

    The same as MALLOC_MMAP_MAX_=0, MALLOC_TRIM_THRESHOLD_ and MALLOC_TOP_PAD_, without a new process.
    """
    if not sys.platform.startswith("linux"):
        return f"{sys.platform}, default"
    library = ctypes.CDLL(None)
    if not hasattr(library, "mallopt"):
        return "no mallopt, default"
    settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_TOP_PAD, 64 * 2**20))
    refused = [name for name, value in settings if library.mallopt(name, value) != 1]
    return RETAINED if not refused else "mallopt refused, default"


def release_heap() -> None:
    """Give free memory back to the system, where glibc can."""
    library = ctypes.CDLL(None)
    if hasattr(library, "malloc_trim"):
        library.malloc_trim(0)
