"""What the variants that call a flash-attention package share."""

from collections.abc import Callable
from typing import Any, Final

from jaxtyping import Float
from torch import Tensor

from variants.problem import Problem
from variants.requirement import Limit, Package
from variants.variant import Attention

DTYPES: Final = ("bfloat16", "float16")
HEAD_SIZES: Final = Limit(lambda p: p.head_dim <= 256 and p.head_dim % 8 == 0, "head_dim ≤ 256 and a multiple of 8")
FLASH_ATTN_4: Final = Package("flash-attn-4", "4.0.0b1", ("cutlass", "quack", "tvm_ffi"))
SOME_KEYS: Final = Limit(lambda p: p.tokens > 0 and p.kv_tokens > 0, "needs queries and keys")


def lse_bytes(problem: Problem, **_: int) -> int:
    """The log-sum-exp; in training also the gradient of q in float32 and Σ out·gradient of each row.

    Parameters, such as a window, change nothing.
    """
    rows = problem.batch * problem.heads * problem.tokens
    if problem.mode != "training":
        return 4 * rows
    return 4 * rows * (2 + problem.head_dim)


def calling(function: Callable[..., Any], **options: object) -> Attention:
    """The package's function, causal to the bottom right; some releases return the log-sum-exp besides."""

    def run(
        q: Float[Tensor, "batch tokens heads head_dim"],
        k: Float[Tensor, "batch kv_tokens kv_heads head_dim"],
        v: Float[Tensor, "batch kv_tokens kv_heads head_dim"],
    ) -> Float[Tensor, "batch tokens heads head_dim"]:
        found = function(q, k, v, **options)
        out: Tensor = found[0] if isinstance(found, tuple) else found
        return out

    return run
