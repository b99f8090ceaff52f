"""What is wrong with a peer, found by running it: row sums, leaks from the future and between items, errors."""

import io
import math
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from benchmarks.accuracy import measure_errors, row_errors
from benchmarks.allocator import release_heap
from benchmarks.inputs import make_inputs
from benchmarks.measurement import Case
from benchmarks.peer_declaration import Peer, peers_of
from variants import Problem
from variants.catalogue import load
from variants.tolerance import IMPLEMENTATION_TOLERANCE, ROW_FACTOR

CHANGED_BY: Final = 3.0
SAID_LIMIT: Final = 200

DEFECTS: Final = ("row sums", "future", "batch", "inputs", "error", "not finite")

Call = Callable[[Tensor, Tensor, Tensor], Tensor]
"""q, k, v to the output, all batch-heads-tokens-dim, whatever the peer's own layout."""


def prepare_peer(case: Case, file: Path, name: str) -> tuple[Callable[[], Any], float, dict[str, Any]]:
    """The call to be timed, the seconds of its first one, and the figures: the defects, and what the package said."""
    peer = next(peer for peer in peers_of(file) if peer.name == name)
    problem = case.problem()
    figures: dict[str, Any] = {}
    with listening() as said:
        figures |= find_defects(peer, problem, case)
        run, inputs = built(peer, problem), make_inputs(problem, case.inputs, case.seed)
        own = tuple(fresh(x, peer) for x in inputs)
        begin = time.perf_counter()
        out = run(*own)
        first_seconds = time.perf_counter() - begin
        out = swapped(out, peer)
        if out.shape != inputs[0].shape:
            raise ValueError(f"its output has shape {tuple(out.shape)}, not {tuple(inputs[0].shape)}")
        figures |= error_of(peer, case, out, inputs)
    figures["defects"] = defects_of(figures, problem)
    figures["said"] = "; ".join(dict.fromkeys(said.getvalue().split("\n"))).strip("; ")[:SAID_LIMIT]
    del out
    release_heap()
    return (lambda: run(*own)), first_seconds, figures


@contextmanager
def listening() -> Iterator[io.StringIO]:
    """Catch what a package prints, which would spoil the command's own output; its warnings are not ours to heed."""
    said = io.StringIO()
    with redirect_stdout(said), redirect_stderr(said), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield said


def built(peer: Peer, problem: Problem, seed: int = 0) -> Callable[..., Tensor]:
    """The peer's callable; what it draws is seeded."""
    torch.manual_seed(seed)
    return peer.build(problem)


def swapped(x: Tensor, peer: Peer) -> Tensor:
    """Between batch-heads-tokens-dim and the peer's layout: swapping twice is no change."""
    return x.transpose(1, 2) if peer.layout == "bnhd" else x


def fresh(x: Tensor, peer: Peer) -> Tensor:
    """A copy in the peer's layout."""
    return swapped(x, peer).clone(memory_format=torch.contiguous_format)


def probe_problem(peer: Peer, problem: Problem) -> Problem:
    """Two items of about the peer's `probe_tokens`, or of fewer where the problem has fewer."""
    least = -(-peer.probe_tokens // peer.multiple) * peer.multiple
    return problem.with_(tokens=min(problem.tokens, least), batch=2)


def find_defects(peer: Peer, problem: Problem, case: Case) -> dict[str, Any]:
    """Row sums, and how far an output moves that must not; by the largest row's relative move."""
    probe = probe_problem(peer, problem)
    run = built(peer, probe)

    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        torch.manual_seed(case.seed)  # a peer that draws in every call must draw alike
        # Copies, since a peer may write into its inputs, or give back one that it keeps.
        return swapped(run(*(fresh(x, peer) for x in (q, k, v))), peer).clone()

    inputs = make_inputs(probe, case.inputs, case.seed)
    # Other draws, not the same ones moved about: else every count that a peer sorts or routes by would stay.
    others = tuple(CHANGED_BY * x for x in make_inputs(probe, case.inputs, case.seed + 1))
    call(*inputs)  # a peer may learn its clusters from the first call
    before = call(*inputs)
    found: dict[str, Any] = {"probe_tokens": probe.tokens}
    found["inputs_changed"] = writes_into(run, inputs, peer)
    found["batch_move"] = move_across_batch(call, inputs, others, before)
    if problem.causal:
        found["future_move"] = move_from_future(call, inputs, others, before)
    if not case.variant or load(case.variant).definition.normalised:
        sums = call(inputs[0], inputs[1], torch.ones_like(inputs[2]))
        found["row_sum_low"], found["row_sum_high"] = finite(float(sums.min())), finite(float(sums.max()))
        found["row_sums"] = True
    return found


def writes_into(run: Callable[..., Tensor], inputs: tuple[Tensor, ...], peer: Peer) -> bool:
    """Whether a call changes its inputs."""
    own = [fresh(x, peer) for x in inputs]
    run(*own)
    return not all(torch.equal(swapped(a, peer), b) for a, b in zip(own, inputs, strict=True))


def move_across_batch(
    call: Call, inputs: tuple[Tensor, ...], others: tuple[Tensor, ...], before: Tensor
) -> float | None:
    """How far the first item's output moves when the second is another, and larger."""
    changed = (torch.cat((x[:1], other[1:])) for x, other in zip(inputs, others, strict=True))
    return moved(call(*changed)[:1], before[:1])


def move_from_future(
    call: Call, inputs: tuple[Tensor, ...], others: tuple[Tensor, ...], before: Tensor
) -> float | None:
    """How far outputs move when only later tokens change, from two places off any border of blocks."""
    tokens = before.shape[2]
    moves = []
    for cut in sorted({tokens // 4 + 1, tokens // 2 + 5} & set(range(1, tokens))):
        changed = (torch.cat((x[:, :, :cut], y[:, :, cut:]), 2) for x, y in zip(inputs, others, strict=True))
        moves.append(moved(call(*changed)[:, :, :cut], before[:, :, :cut]))
    return None if None in moves else max((move for move in moves if move is not None), default=0.0)


def moved(after: Tensor, before: Tensor) -> float | None:
    """The largest relative move of a row; None where it is not finite."""
    return finite(float(row_errors(after.double(), before.double()).max()))


def finite(value: float) -> float | None:
    """The value, or None: JSON has no other."""
    return value if math.isfinite(value) else None


def error_of(peer: Peer, case: Case, out: Tensor, inputs: tuple[Tensor, Tensor, Tensor]) -> dict[str, Any]:
    """Against our float64 oracle, where the peer is of the same definition."""
    found: dict[str, Any] = {"finite": bool(torch.isfinite(out).all())}
    if case.variant and peer.agrees:
        problem = case.problem()
        definition = load(case.variant).definition
        errors = measure_errors(out * peer.factor(problem), inputs, problem, definition, case.parameters)
        found |= {"compared": True, "error": finite(errors.implementation), "error_row_max": finite(errors.row_max)}
    return found


def defects_of(figures: dict[str, Any], problem: Problem) -> list[str]:
    """Which of `DEFECTS` the figures show; a figure that is not finite is a defect too."""
    tolerance = IMPLEMENTATION_TOLERANCE[problem.dtype]

    def beyond(name: str, limit: float) -> bool:
        value = figures[name]
        return value is None or value > limit

    sums = (figures.get("row_sum_low"), figures.get("row_sum_high"))
    wrong = {
        "row sums": "row_sums" in figures and any(x is None or abs(x - 1) > ROW_FACTOR * tolerance for x in sums),
        "future": "future_move" in figures and beyond("future_move", ROW_FACTOR * tolerance),
        "batch": beyond("batch_move", ROW_FACTOR * tolerance),
        "inputs": figures["inputs_changed"],
        "error": "compared" in figures
        and (beyond("error", tolerance) or beyond("error_row_max", ROW_FACTOR * tolerance)),
        "not finite": not figures["finite"],
    }
    return [name for name in DEFECTS if wrong[name]]
