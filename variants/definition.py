"""A definition: a function of q, k and v, with its parameters, oracle and costs."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from variants.problem import Problem

Parameters = Mapping[str, int]

BACKWARD_FACTOR = 2.5
"""Backward FLOPs over forward FLOPs, recomputation of the scores included (FlashAttention-2, section 4.1)."""


class InvalidParameter(ValueError):
    """A parameter that the definition does not have, or a value outside its range."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """A whole-number parameter of a definition, with its inclusive range."""

    name: str
    default: int
    low: int
    high: int
    meaning: str

    def validate(self, value: int) -> int:
        """The value itself; `InvalidParameter` where it is outside the range."""
        if isinstance(value, bool) or not isinstance(value, int) or not self.low <= value <= self.high:
            raise InvalidParameter(f"{self.name} must be a whole number from {self.low} to {self.high}, not {value!r}")
        return value


Oracle = Callable[..., Float64[Tensor, "batch heads rows value_dim"]]
"""The dense float64 formula, written without any variant's code: `oracle(q, k, v, rows, *, causal, **parameters)`.

q is (batch, heads, tokens, head_dim), k and v have as many heads, `rows` holds the indices of the
queries whose output is wanted; all in float64.
"""


@dataclass(frozen=True, slots=True)
class Definition:
    """What a variant computes: formula, parameters, oracle, visible pairs and source.

    `visible_pairs(problem, **parameters)` counts, for one head, the query-key (or query-state)
    products that the formula itself asks for; `flops_per_head` replaces 4 * head_dim per pair.
    `default` names the variant to begin with. `attention` is false of what is here for comparison only.
    `constraint(**parameters)` says why parameters do not go together, or None.
    Where query heads of one key-value head choose together, `by_group` has the oracle told `group`, how many they are.
    `by_token`: the oracle goes through the tokens one after the other, so it is asked for all rows at once.
    """

    name: str
    title: str
    formula: str
    source: str
    exact: bool
    oracle: Oracle
    visible_pairs: Callable[..., int]
    default: str
    parameters: tuple[Parameter, ...] = ()
    normalised: bool = True
    flops_per_head: Callable[..., int] | None = None
    constraint: Callable[..., str | None] | None = None
    by_group: bool = False
    attention: bool = True
    by_token: bool = False

    def resolve(self, given: Parameters | None = None) -> dict[str, int]:
        """Every parameter with its given or default value; `InvalidParameter` for an unknown name."""
        given = given or {}
        known = {parameter.name: parameter for parameter in self.parameters}
        for name in given:
            if name not in known:
                has = ", ".join(known) or "no parameters"
                raise InvalidParameter(f"{self.name} has no parameter {name!r}; it has {has}")
        chosen = {name: p.validate(given.get(name, p.default)) for name, p in known.items()}
        if self.constraint is not None and (reason := self.constraint(**chosen)) is not None:
            raise InvalidParameter(f"{self.name}: {reason}")
        return chosen

    def reference(
        self,
        q: Float[Tensor, "batch heads tokens head_dim"],
        k: Float[Tensor, "batch kv_heads kv_tokens head_dim"],
        v: Float[Tensor, "batch kv_heads kv_tokens value_dim"],
        *,
        causal: bool,
        rows: Int64[Tensor, " rows"] | None = None,
        parameters: Parameters | None = None,
    ) -> Float64[Tensor, "batch heads rows value_dim"]:
        """The oracle's output in float64, key-value heads repeated for grouped queries."""
        group = q.shape[1] // k.shape[1]
        q, k, v = (x.to(torch.float64) for x in (q, k, v))
        if group > 1:
            k, v = (x.repeat_interleave(group, dim=1) for x in (k, v))
        if rows is None:
            rows = torch.arange(q.shape[2], device=q.device)
        chosen = self.resolve(parameters) | ({"group": group} if self.by_group else {})
        return self.oracle(q, k, v, rows, causal=causal, **chosen)

    def useful_flops(self, problem: Problem, parameters: Parameters | None = None) -> int:
        """FLOPs that the formula asks for, over batch and heads; training adds the backward pass."""
        chosen = self.resolve(parameters)
        if self.flops_per_head is not None:
            one_head = self.flops_per_head(problem, **chosen)
        else:
            one_head = 4 * problem.head_dim * self.visible_pairs(problem, **chosen)
        forward = problem.batch * problem.heads * one_head
        return round(forward * (1 + BACKWARD_FACTOR)) if problem.mode == "training" else forward
