"""The memory that the process of a case will need, foretold before it is started."""

import math

from benchmarks.machine import available_bytes
from benchmarks.measurement import Case
from variants.catalogue import load

WORKER_BYTES = 300 * 2**20
"""A worker without a case."""
ON_CARD_BYTES = 2**30
"""What a process with a context on a card takes of the host, about."""


def most_at_once(device: str) -> float:
    """How many cases a session may hold for the sake of the host's memory, where their own lies on a card."""
    return math.inf if device == "cpu" else max(1, available_bytes("cpu") // (2 * ON_CARD_BYTES))


def predicted_process_bytes(case: Case) -> int:
    """What the worker of a case will need: the process, the case, and the float64 oracle's pieces."""
    from benchmarks.accuracy import PIECE_ROWS

    problem = case.problem()
    score_bytes = 8 * problem.batch * problem.heads * min(PIECE_ROWS, max(1, problem.tokens)) * problem.kv_tokens
    inputs = 8 * (problem.query_bytes + 2 * problem.key_bytes * problem.group) // problem.element_bytes
    check_bytes = 4 * score_bytes + 2 * inputs * (2 if problem.mode == "training" else 1)
    own = load(case.variant).predicted_bytes(problem, case.parameters)
    if problem.device_type == "cuda":
        return own + check_bytes + 2 * WORKER_BYTES
    return max(own, problem.input_output_bytes + check_bytes) + WORKER_BYTES
