"""The shape of a sweep: everything of a problem that does not grow with the length."""

from dataclasses import asdict, dataclass
from typing import Final

ELEMENT_BYTES: Final = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}
MODES: Final = ("forward", "training", "decode")


@dataclass(frozen=True, slots=True)
class Shape:
    """All fields of a problem but its length; curves of different shapes are never joined.

    `queries` is 0 where there are as many queries as keys, else the fixed number of queries (1 in decode).
    """

    batch: int
    heads: int
    kv_heads: int
    head_dim: int
    dtype: str
    device: str
    causal: bool
    mode: str
    queries: int = 0

    def input_output_bytes(self, length: int) -> int:
        """Bytes of q, k, v and the output at `length` keys; in training also of their gradients."""
        queries = self.heads * (self.queries or length)
        keys = self.kv_heads * length
        once = 2 * self.batch * (queries + keys) * self.head_dim * ELEMENT_BYTES.get(self.dtype, 4)
        return 2 * once if self.mode == "training" else once

    def cache_bytes(self, length: int) -> int:
        """Bytes of k and v at `length` keys."""
        return 2 * self.batch * self.kv_heads * length * self.head_dim * ELEMENT_BYTES.get(self.dtype, 4)

    def describe(self) -> str:
        """One line: `forward, not causal, float32 on cpu, batch 1, heads 8, head_dim 64`."""
        heads = f"heads {self.heads}"
        if self.kv_heads != self.heads:
            heads += f" over {self.kv_heads} kv_heads"
        queries = f", {self.queries} queries" if self.queries and self.mode != "decode" else ""
        masked = "causal" if self.causal else "not causal"
        return (
            f"{self.mode}, {masked}, {self.dtype} on {self.device}, "
            f"batch {self.batch}, {heads}, head_dim {self.head_dim}{queries}"
        )

    def differences(self, other: "Shape") -> list[str]:
        """What `self` has instead of what `other` has, one text per field."""
        mine, theirs = asdict(self), asdict(other)
        names = [name for name in mine if mine[name] != theirs[name]]
        if "heads" in names and self.heads == self.kv_heads and "kv_heads" in names:
            names.remove("kv_heads")
        if "mode" in names and "queries" in names:
            names.remove("queries")
        return [_field_text(name, mine[name]) for name in names]

    def distance(self, other: "Shape") -> tuple[int, int]:
        """How far another shape is: fields that differ, then the sum of the differences of the sizes."""
        mine, theirs = asdict(self), asdict(other)
        unequal = sum(mine[name] != theirs[name] for name in mine)
        sizes = ("batch", "heads", "kv_heads", "head_dim", "queries")
        return unequal, sum(abs(mine[name] - theirs[name]) for name in sizes)


def _field_text(name: str, value: object) -> str:
    if name == "causal":
        return "causal" if value else "not causal"
    if name == "queries":
        return f"{value} queries" if value else "as many queries as keys"
    return str(value) if name in ("dtype", "device", "mode") else f"{name} {value}"
