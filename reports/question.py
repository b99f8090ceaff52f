"""What is asked of a choice: a problem, the inputs whose errors count, and a budget."""

import math
import re
from dataclasses import dataclass
from typing import Final, Literal, Self

from reports.quantities import BYTES_PER_MIB, rounded_up
from reports.shape import ELEMENT_BYTES, MODES, Shape

Limit = Literal["time", "memory", "error"]
LIMITS: Final[tuple[Limit, ...]] = ("time", "memory", "error")


class InvalidQuestion(ValueError):
    """A question or budget that cannot exist; the message says what was wrong and what would be right."""


@dataclass(frozen=True, slots=True)
class Question:
    """One attention problem; in mode `decode`, `tokens` is the length of the cache.

    `kv_heads` defaults to `heads`. `inputs` names the kind of input whose errors count; where it is
    None, each variant is judged on captured inputs if it was measured on them at this length, else on
    normal ones. Raises `InvalidQuestion`.
    """

    tokens: int
    batch: int = 1
    heads: int = 8
    kv_heads: int | None = None
    head_dim: int = 64
    dtype: str = "float32"
    device: str = "cpu"
    causal: bool = False
    mode: str = "forward"
    inputs: str | None = None

    def __post_init__(self) -> None:
        """Fill in `kv_heads`, and validate."""
        if self.kv_heads is None:
            object.__setattr__(self, "kv_heads", self.heads)
        for name in ("tokens", "batch", "heads", "kv_heads", "head_dim"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InvalidQuestion(f"{name} must be a whole number of at least 1, not {value!r}")
        if self.heads % self.shape.kv_heads:
            raise InvalidQuestion(f"kv_heads must divide heads: {self.kv_heads} does not divide {self.heads}")
        if self.dtype not in ELEMENT_BYTES:
            raise InvalidQuestion(f"dtype must be one of {', '.join(ELEMENT_BYTES)}, not {self.dtype!r}")
        if self.mode not in MODES:
            raise InvalidQuestion(f"mode must be one of {', '.join(MODES)}, not {self.mode!r}")
        if not re.fullmatch(r"cpu|cuda(:\d+)?", self.device):
            raise InvalidQuestion(f"device must be cpu, cuda or cuda:N, not {self.device!r}")

    @property
    def shape(self) -> Shape:
        """All of the problem but its length."""
        return Shape(
            batch=self.batch,
            heads=self.heads,
            kv_heads=self.heads if self.kv_heads is None else self.kv_heads,
            head_dim=self.head_dim,
            dtype=self.dtype,
            device=self.device,
            causal=self.causal,
            mode=self.mode,
            queries=1 if self.mode == "decode" else 0,
        )

    @property
    def input_output_bytes(self) -> int:
        """Bytes of q, k, v and the output: what every variant needs."""
        return self.shape.input_output_bytes(self.tokens)


@dataclass(frozen=True, slots=True)
class Budget:
    """Upper limits, each inclusive; None is no limit.

    Time is seconds per call, memory is bytes in total with inputs and outputs, error is the relative
    error against exact attention. Raises `InvalidQuestion`.
    """

    max_seconds: float | None = None
    max_bytes: float | None = None
    max_error: float | None = None

    def __post_init__(self) -> None:
        """Validate."""
        for name, limit in self.limits().items():
            if not math.isfinite(limit) or limit <= 0:
                raise InvalidQuestion(f"the {name} limit must be a positive finite number, not {limit:g}")

    @classmethod
    def of_options(cls, max_ms: float | None, max_mib: float | None, max_error: float | None) -> Self:
        """The budget in the units of the command line."""
        seconds = None if max_ms is None else max_ms / 1000
        return cls(seconds, None if max_mib is None else max_mib * BYTES_PER_MIB, max_error)

    def limits(self) -> dict[Limit, float]:
        """The limits that are set."""
        values: dict[Limit, float | None] = {
            "time": self.max_seconds,
            "memory": self.max_bytes,
            "error": self.max_error,
        }
        return {name: value for name, value in values.items() if value is not None}

    def raised_to(self, needs: dict[Limit, float]) -> "Budget":
        """This budget with each limit that is set raised to the need, where the need is larger."""
        raised = {name: max(limit, needs.get(name, limit)) for name, limit in self.limits().items()}
        return Budget(raised.get("time"), raised.get("memory"), raised.get("error"))

    def options(self) -> str:
        """The limits as options of `attnscape choose`, rounded up, so that they admit what this budget admits."""
        texts = []
        seconds, size, error = self.max_seconds, self.max_bytes, self.max_error
        if seconds is not None:
            texts.append(f"--max-ms {rounded_up(seconds * 1000, lambda ms: ms / 1000 >= seconds)}")
        if size is not None:
            texts.append(f"--max-mib {rounded_up(size / BYTES_PER_MIB, lambda mib: mib * BYTES_PER_MIB >= size)}")
        if error is not None:
            texts.append(f"--max-error {rounded_up(error, lambda same: same >= error)}")
        return " ".join(texts)
