"""How a described machine is called: its card, or its processor with what decides which kernels run there."""

from typing import Any, Final

EXTENSIONS: Final = (
    "amx_bf16",
    "avx512_bf16",
    "avx512f",
    "avx2",
    "avx",
    "svebf16",
    "bf16",
    "sve",
    "asimd",
)
"""The widest first; names as the kernel of Linux gives them."""


def processor_name(description: dict[str, Any]) -> str:
    """The card's name, or the processor's with its widest vector extension: a virtual machine may name all alike."""
    gpu = description.get("gpu")
    if isinstance(gpu, dict):
        return str(gpu.get("name", "unknown card"))
    flags = description.get("cpu_flags") or ()
    widest = next((f" with {extension}" for extension in EXTENSIONS if extension in flags), "")
    return f"{description.get('cpu', 'unknown processor')}{widest}"


def machine_name(description: dict[str, Any]) -> str:
    """The card, or the processor with the threads that were used."""
    threads = None if description.get("gpu") else description.get("threads")
    return processor_name(description) + (f", {threads} threads" if threads else "")
