"""The variants that run on this machine, as the catalogue finds them, and one call of any of them."""

from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.worker import canonical
from tests.kept_oracles import kept
from variants import Problem
from variants.catalogue import load, names
from variants.dtypes import TORCH_DTYPES

RUNNING = [
    name
    for name in names()
    if not all(load(name).refusals(Problem(tokens=8, causal=causal)) for causal in (False, True))
]
# What compiles for seconds at every new shape has a module of its own, with few shapes: test_flex.
READY = [name for name in RUNNING if not load(name).compiled]
COMPILED = [name for name in RUNNING if load(name).compiled]

# So small that a short sequence has a middle and edges, and is no multiple of any of them.
SMALL = {
    "window": 6,
    "block": 8,
    "rank": 2,
    "sinks": 3,
    "global_tokens": 3,
    "kept": 5,
    "landmarks": 6,
    "projected": 7,
    "selected": 3,
    "random": 2,
    "hidden": 5,
    "dilation": 2,
    "segment": 8,
    "levels": 2,
    "width": 3,
    "grid_width": 9,
    "dropped_percent": 30,
    "seed": 3,
    "reach": 20,
    "chunk": 4,
    "rounds": 3,
    "members": 9,
    "stride": 3,
    "compressed": 2,
    "merged": 2,
    "half_block": 3,
    "refined": 2,
}


def small_parameters(name: str) -> dict[str, int]:
    """A variant's parameters, small where `SMALL` knows them, else their defaults."""
    definition = load(name).definition
    return definition.resolve({p.name: SMALL[p.name] for p in definition.parameters if p.name in SMALL})


def draw(problem: Problem, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v from N(0,1), the same numbers in every dtype."""
    generator = torch.Generator().manual_seed(seed)
    shapes = ((problem.heads, problem.tokens), *[(problem.kv_heads, problem.kv_tokens)] * 2)
    q, k, v = (
        torch.randn(problem.batch, heads, tokens, problem.head_dim, generator=generator, dtype=torch.float64)
        for heads, tokens in shapes
    )
    dtype = TORCH_DTYPES[problem.dtype]
    return q.to(dtype), k.to(dtype), v.to(dtype)


def call(name: str, problem: Problem, inputs: tuple[Tensor, ...], parameters: dict[str, int] | None = None) -> Tensor:
    """The output of one variant, batch-heads-tokens-dim; skips where the variant says why it cannot run."""
    variant = load(name)
    if reasons := variant.refusals(problem):
        pytest.skip("; ".join(reasons))
    chosen = small_parameters(name) if parameters is None else parameters
    run = variant.build(problem, **chosen)
    return canonical(run(*(canonical(x, variant.layout) for x in inputs)), variant.layout)


def reference(
    name: str, problem: Problem, inputs: tuple[Tensor, ...], parameters: dict[str, int] | None = None, **options: Any
) -> Tensor:
    """What the variant's own definition says, in float64."""
    chosen = small_parameters(name) if parameters is None else parameters
    definition, causal = load(name).definition, problem.causal

    def say() -> Tensor:
        return definition.reference(*inputs, causal=causal, parameters=chosen, **options)

    if options or any(x.requires_grad for x in inputs):
        return say()
    return kept(definition, causal, chosen, inputs, say)


def reference_gradients(
    name: str, problem: Problem, inputs: tuple[Tensor, ...], slope: Tensor, parameters: dict[str, int] | None = None
) -> tuple[Tensor, ...]:
    """The gradients of the same for those inputs, by the graph of the oracle."""
    chosen = small_parameters(name) if parameters is None else parameters

    def say() -> tuple[Tensor, ...]:
        return torch.autograd.grad(reference(name, problem, inputs, chosen), inputs, slope)

    return kept(load(name).definition, problem.causal, chosen, (*inputs, slope), say)
