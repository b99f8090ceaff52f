"""How a quantity is written: three significant digits and a unit."""

from collections.abc import Callable
from decimal import Decimal
from typing import Final

BYTES_PER_MIB: Final = 2**20
_TIME_UNITS: Final = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"))


def seconds_text(seconds: float) -> str:
    """`0.0123` as `12.3 ms`."""
    for scale, unit in _TIME_UNITS:
        if seconds >= 0.9995 * scale:
            return f"{digits(seconds / scale)} {unit}"
    return f"{digits(seconds / 1e-9)} ns"


def interval_text(low: float, high: float) -> str:
    """Two times as one range, with the unit once where both share it."""
    low_text, high_text = seconds_text(low), seconds_text(high)
    if low_text.split()[1] == high_text.split()[1]:
        low_text = low_text.split()[0]
    return f"{low_text} to {high_text}"


def joules_text(joules: float) -> str:
    """`0.0123` as `12.3 mJ`."""
    for scale, unit in ((1e3, "kJ"), (1.0, "J"), (1e-3, "mJ"), (1e-6, "µJ")):
        if joules >= 0.9995 * scale:
            return f"{digits(joules / scale)} {unit}"
    return f"{digits(joules / 1e-9)} nJ"


def mib_text(size_bytes: float) -> str:
    """Bytes as a number of MiB, without the unit."""
    return digits(size_bytes / BYTES_PER_MIB)


def size_text(size_bytes: float) -> str:
    """Bytes with the largest binary unit that leaves a number of at least 1: `8 GiB`, `1.5 MiB`."""
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if size_bytes >= scale:
            return f"{size_bytes / scale:.4g} {unit}"
    return f"{size_bytes:g} bytes"


def milliseconds_text(seconds: float) -> str:
    """A limit of time as it is asked for: `5 ms`."""
    return f"{seconds * 1e3:g} ms"


def error_text(error: float) -> str:
    """A relative error with two digits: `0.31`, `3.1e-7`."""
    if error == 0 or error >= 1e-3:
        return digits(error, 2)
    mantissa, _, exponent = f"{error:.1e}".partition("e")
    return f"{mantissa}e{int(exponent)}"


def factor_text(factor: float) -> str:
    """A ratio with three digits: `1.44`, `310`, `1.4e9`."""
    return digits(factor) if factor < 1e5 else f"{factor:.1e}".replace("e+0", "e").replace("e+", "e")


def percent_text(share: float) -> str:
    """A share as whole percent."""
    return f"{100 * share:.0f} %" if share >= 0.01 else "less than 1 %"


def digits(value: float, count: int = 3) -> str:
    """A number with `count` significant digits, never in exponent form above 1e-4."""
    if value == 0:
        return "0"
    if abs(value) >= 10 ** (count - 1):
        return f"{value:.0f}"
    text = f"{value:#.{count}g}"
    return text if "e" in text else text.rstrip(".")


def rounded_up(value: float, is_enough: Callable[[float], bool], count: int = 3) -> str:
    """`value` with `count` significant digits, as it is where that is enough, else the next larger."""
    text = Decimal(f"{value:.{count}g}")
    if not is_enough(float(text)):
        text += Decimal(1).scaleb(Decimal(value).adjusted() - count + 1)
    return format(text, "f") if 1e-4 <= text < 1e7 else f"{text:.{count}g}"


def printable(text: str) -> str:
    """Text from a file on one line, with control characters shown as escapes: it may reach a terminal."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
