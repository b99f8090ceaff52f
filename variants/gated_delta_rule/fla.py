"""flash-linear-attention's chunk_gated_delta_rule, on CUDA."""

from importlib import metadata
from importlib.util import find_spec

import torch
from jaxtyping import Float
from packaging.version import Version
from torch import Tensor
from torch.nn import functional

from variants.dtypes import TORCH_DTYPES
from variants.flash_linear import DTYPES, REQUIRES, chunk_bytes, kernel
from variants.gated_delta_rule import log_decays, rates
from variants.problem import Problem
from variants.variant import Attention, variant


class CorrectBackward:
    """On Hopper its gated backward kernel is wrong with some releases of Triton, and raises (its issue 640)."""

    def unmet(self, problem: Problem) -> str | None:
        """Asks the driver where there is a card."""
        if problem.mode != "training" or not torch.cuda.is_available() or find_spec("tilelang") is not None:
            return None
        try:
            release = Version(metadata.version("triton"))
        except metadata.PackageNotFoundError:  # then fla-core, which brings it, is not there either
            return None
        if torch.cuda.get_device_capability(problem.device)[0] != 9 or not Version("3.4") <= release < Version("3.7.1"):
            return None
        return "training on Hopper needs triton ≥ 3.7.1 or tilelang"


@variant(
    "gated_delta_rule/fla",
    summary="the package flash-linear-attention, its chunk_gated_delta_rule",
    devices=("cuda",),
    dtypes=DTYPES,
    modes=("forward", "training"),
    workspace_bytes=chunk_bytes,
    layout="bnhd",
    requires=(*REQUIRES, CorrectBackward()),
    source="github.com/fla-org/flash-linear-attention, fla/ops/gated_delta_rule",
)
def build(problem: Problem) -> Attention:
    """Rates and log decays go to the card here, tokens before heads; what is timed includes the norms of the keys."""
    attend = kernel(problem, "gated_delta_rule", "chunk_gated_delta_rule")

    beta = rates(problem.heads, problem.tokens).T.to(problem.device, TORCH_DTYPES[problem.dtype])
    decays = log_decays(problem.heads, problem.tokens).T.to(problem.device).float()
    beta, decays = (x.expand(problem.batch, -1, -1).contiguous() for x in (beta, decays))

    def run(
        q: Float[Tensor, "batch tokens heads head_dim"],
        k: Float[Tensor, "batch tokens heads head_dim"],
        v: Float[Tensor, "batch tokens heads head_dim"],
    ) -> Float[Tensor, "batch tokens heads head_dim"]:
        out: Tensor = attend(q, functional.normalize(k, dim=-1), v, decays, beta, scale=1.0)[0]
        return out

    return run
