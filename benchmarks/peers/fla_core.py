"""fla-core: the plain-torch forms beside the kernels of flash-linear-attention."""

import importlib.util
import math
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from torch import Tensor
from torch.nn.functional import normalize

from benchmarks.peer_declaration import Peer, query_sizes, score_matrices
from benchmarks.peer_parts import features
from variants import Problem, delta_rule, gated_delta_rule, gated_linear, lightning, retention, rwkv7
from variants.variant import Attention

PACKAGE = "fla-core"
CHUNK = 64


def naive(operation: str) -> ModuleType:
    """The module of plain forms of one operation, from its file: to import its package would need triton.

    Raises `ModuleNotFoundError` where the package has no such file.
    """
    package = importlib.util.find_spec("fla")
    places = list(package.submodule_search_locations or ()) if package is not None else []
    for place in places:
        file = Path(place, "ops", *operation.split("."), "naive.py")
        spec = importlib.util.spec_from_file_location(f"fla_naive_{file.parent.name}", file)
        if file.is_file() and spec is not None and spec.loader is not None:
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            return module
    raise ModuleNotFoundError(f"{PACKAGE} has no plain form of {operation}")


def linear(_: Problem) -> Attention:
    """Chunks of 64, normalised; our features of q and k are made in the call, as on our side."""
    naive_chunk_linear_attn = naive("linear_attn").naive_chunk_linear_attn

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out: Tensor = naive_chunk_linear_attn(features(q), features(k), v, normalize=True)
        return out

    return run


def decaying(log_decays: Callable[[int], Tensor], *, scaled: bool) -> Callable[[Problem], Attention]:
    """Chunks of 64 with one constant decay for each head."""

    def build(problem: Problem) -> Attention:
        naive_chunk_simple_gla = naive("simple_gla").naive_chunk_simple_gla

        decay = log_decays(problem.heads).float().expand(problem.batch, problem.tokens, -1)
        scale = problem.head_dim**-0.5 if scaled else 1.0

        def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            out: Tensor = naive_chunk_simple_gla(q, k, v, decay, chunk_size=CHUNK, scale=scale)[0]
            return out

        return run

    return build


def retained(_: Problem) -> Attention:
    """The whole matrix of decaying scores."""
    naive_retention = naive("retention").naive_retention

    function: Attention = naive_retention
    return function


def delta(problem: Problem) -> Attention:
    """Chunks of 32, its default; keys are brought to unit length in the call, as on our side."""
    delta_rule_chunkwise = naive("delta_rule").delta_rule_chunkwise

    rates = delta_rule.rates(problem.heads, problem.tokens).float().expand(problem.batch, -1, -1)

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out: Tensor = delta_rule_chunkwise(q, normalize(k, dim=-1), v, rates)[0]
        return out

    return run


def gated_delta(problem: Problem) -> Attention:
    """Chunks of 64; keys are brought to unit length in the call, as on our side."""
    naive_chunk_gated_delta_rule = naive("gated_delta_rule").naive_chunk_gated_delta_rule

    rates, decays = (
        x(problem.heads, problem.tokens).float().T.contiguous().expand(problem.batch, -1, -1)
        for x in (gated_delta_rule.rates, gated_delta_rule.log_decays)
    )

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out: Tensor = naive_chunk_gated_delta_rule(
            q, normalize(k, dim=-1), v, g=decays, beta=rates, chunk_size=CHUNK, scale=1.0
        )[0]
        return out

    return run


def gated(problem: Problem) -> Attention:
    """Token after token: there is no plain form by chunks."""
    naive_recurrent_gla = naive("gla").naive_recurrent_gla

    decays = gated_linear.log_decays(problem.heads, problem.tokens, problem.head_dim).float().transpose(0, 1)
    decays = decays.contiguous().expand(problem.batch, -1, -1, -1)

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out: Tensor = naive_recurrent_gla(q, k, v, decays)[0]
        return out

    return run


def rwkv(problem: Problem) -> Attention:
    """The generalised delta rule (diagonal plus low rank) in chunks of 32, fed with what our RWKV-7 makes of k."""
    dplr_chunkwise = naive("generalized_delta_rule.dplr").dplr_chunkwise

    shape = (problem.heads, problem.tokens, problem.head_dim)
    decays = rwkv7.log_decays(*shape).float().expand(problem.batch, -1, -1, -1)
    rates = rwkv7.learning_rates(*shape).float()
    removal, mixing = (x.float()[:, None] for x in rwkv7.key_scales(problem.heads, problem.head_dim))

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        unit = normalize(k * removal, dim=-1)
        out: Tensor = dplr_chunkwise(q, k * (1 + (rates - 1) * mixing), v, -unit, rates * unit, decays)[0]
        return out

    return run


def undo_scale(problem: Problem) -> float:
    """What undoes the scale of q that these forms cannot do without."""
    return math.sqrt(problem.head_dim)


def peer(form: str, variant: str, build: Callable[[Problem], Attention], **details: object) -> Peer:
    """A causal form of this package."""
    given = {"layout": "bnhd", "workspace_bytes": query_sizes(16), **details}
    return Peer(form=form, package=PACKAGE, variant=variant, causal=True, build=build, **given)  # type: ignore[arg-type]  # a Peer's own fields


PEERS = (
    peer("linear", "linear_scan", linear, multiple=CHUNK, note="with our features"),
    peer(
        "simple-gla-retention",
        "retention",
        decaying(lambda heads: retention.decays(heads).log(), scaled=True),
        note="with our decays",
    ),
    peer(
        "simple-gla-lightning",
        "lightning",
        decaying(lambda heads: -lightning.rates(heads), scaled=False),
        note="with our decays",
    ),
    peer("retention", "retention", retained, layout="bhnd", workspace_bytes=score_matrices(4)),
    peer(
        "delta",
        "delta_rule",
        delta,
        layout="bhnd",
        multiple=32,
        factor=undo_scale,
        note="with our β; its scale of d^−½ taken back before the comparison",
    ),
    peer("gated-delta", "gated_delta_rule", gated_delta, note="with our β and decays"),
    peer(
        "gla-recurrent",
        "gated_linear",
        gated,
        factor=undo_scale,
        note="with our decays; token after token; its scale of d^−½ taken back before the comparison",
    ),
    peer(
        "dplr",
        "rwkv7",
        rwkv,
        layout="bhnd",
        multiple=32,
        workspace_bytes=query_sizes(40),
        factor=undo_scale,
        note="with our drawn parts; its scale of d^−½ taken back before the comparison",
    ),
)
