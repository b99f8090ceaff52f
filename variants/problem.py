"""The frozen description of one attention problem."""

from dataclasses import dataclass, replace
from typing import Final, Self

DTYPE_BYTES: Final = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}
MODES: Final = ("forward", "training", "decode")


class InvalidProblem(ValueError):
    """A problem that cannot exist; the message says what was wrong and what would be right."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Shape, type, place and mode of one attention call.

    `kv_heads` and `kv_tokens` default to `heads` and `tokens`. Causal masks are aligned to
    the bottom right: query i sees key j where j <= i + (kv_tokens - tokens).
    Mode `training` is forward and backward; `decode` is few queries over a long cache,
    without gradients.

    Raises `InvalidProblem` where a size is out of range or a name is unknown.
    """

    tokens: int
    batch: int = 1
    heads: int = 8
    kv_heads: int = 0
    kv_tokens: int = -1
    head_dim: int = 64
    dtype: str = "float32"
    device: str = "cpu"
    causal: bool = False
    mode: str = "forward"

    def __post_init__(self) -> None:
        """Fill in the defaults that follow from other fields, and validate."""
        if self.kv_heads == 0:
            object.__setattr__(self, "kv_heads", self.heads)
        if self.kv_tokens == -1:
            object.__setattr__(self, "kv_tokens", self.tokens)
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise InvalidProblem(f"{name} must be a whole number of at least {least}, not {value!r}")
        if self.heads % self.kv_heads:
            raise InvalidProblem(f"kv_heads must divide heads: {self.kv_heads} does not divide {self.heads}")
        if self.dtype not in DTYPE_BYTES:
            raise InvalidProblem(f"dtype must be one of {', '.join(DTYPE_BYTES)}, not {self.dtype!r}")
        if self.mode not in MODES:
            raise InvalidProblem(f"mode must be one of {', '.join(MODES)}, not {self.mode!r}")
        if self.device_type not in ("cpu", "cuda"):
            raise InvalidProblem(f"device must be cpu, cuda or cuda:N, not {self.device!r}")

    @classmethod
    def of_length(cls, length: int, *, mode: str = "forward", **fields: object) -> Self:
        """The problem of one point of a sweep: `length` tokens, or one query over `length` keys in decode."""
        if mode == "decode":
            return cls(tokens=1, kv_tokens=length, mode=mode, **fields)  # type: ignore[arg-type]  # fields are checked at construction
        return cls(tokens=length, mode=mode, **fields)  # type: ignore[arg-type]  # as above

    @property
    def device_type(self) -> str:
        """`cpu` or `cuda`, without the index."""
        kind, colon, index = self.device.partition(":")
        return kind if not colon or (kind == "cuda" and index.isascii() and index.isdigit()) else "?"

    @property
    def length(self) -> int:
        """The length that a sweep grows: the number of keys."""
        return self.kv_tokens

    @property
    def offset(self) -> int:
        """The key position of query 0, so that the last query meets the last key."""
        return self.kv_tokens - self.tokens

    @property
    def group(self) -> int:
        """Query heads per key-value head."""
        return self.heads // self.kv_heads

    @property
    def element_bytes(self) -> int:
        """Bytes of one element of the dtype."""
        return DTYPE_BYTES[self.dtype]

    @property
    def query_bytes(self) -> int:
        """Bytes of q, and of the output."""
        return self.batch * self.heads * self.tokens * self.head_dim * self.element_bytes

    @property
    def key_bytes(self) -> int:
        """Bytes of k, and of v."""
        return self.batch * self.kv_heads * self.kv_tokens * self.head_dim * self.element_bytes

    @property
    def input_output_bytes(self) -> int:
        """Bytes of q, k, v and the output; in training also of their gradients."""
        once = 2 * self.query_bytes + 2 * self.key_bytes
        return 2 * once if self.mode == "training" else once

    def with_(self, **fields: object) -> Self:
        """A copy with some fields replaced; `kv_tokens` follows `tokens` where both were equal."""
        if "tokens" in fields and "kv_tokens" not in fields and self.tokens == self.kv_tokens:
            fields["kv_tokens"] = fields["tokens"]
        return replace(self, **fields)  # type: ignore[arg-type]  # fields are checked at construction


_LEAST: Final = {"tokens": 0, "kv_tokens": 0, "batch": 0, "heads": 1, "kv_heads": 1, "head_dim": 1}
