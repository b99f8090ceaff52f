"""What a definition declares at a length, for those who have its name only."""

from collections.abc import Mapping

from variants import InvalidProblem, Problem
from variants.catalogue import UnknownVariant, load


def declared_costs(
    variant: str, parameters: Mapping[str, int], length: int, *, mode: str, queries: int = 0, **fields: object
) -> tuple[int, int] | None:
    """Visible pairs of one head, and useful FLOPs of the whole call; None where no such variant is installed.

    `queries` is 0 where there are as many as keys. Imports the variant, and torch with it.
    """
    from variants.definition import InvalidParameter
    from variants.variant import RegistryError

    try:
        problem = Problem.of_length(length, mode=mode, **fields)
        if queries:
            problem = problem.with_(tokens=queries, kv_tokens=length)
        definition = load(variant).definition
        chosen = definition.resolve(parameters)
        return definition.visible_pairs(problem, **chosen), definition.useful_flops(problem, chosen)
    except (UnknownVariant, RegistryError, InvalidParameter, InvalidProblem, ImportError):
        return None
