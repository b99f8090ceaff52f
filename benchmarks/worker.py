"""The measuring side of the instrument: one process, one case, killed when it is done or at fault."""

import gc
import math
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.accuracy import Errors, checked_gradients, checked_rows, errors_of, gradient_error
from benchmarks.allocator import release_heap, retain_heap
from benchmarks.call_contract import BrokenContract, WatchedCalls
from benchmarks.clock import (
    CPU_TIMER,
    CUDA_TIMER,
    REFILL_UP_TO_SECONDS,
    CudaClock,
    Sample,
    calls_for,
    measure_cpu,
    spin_test,
)
from benchmarks.inputs import UnavailableInputs, make_inputs
from benchmarks.kernel_names import kernel_on_card, kernel_on_cpu
from benchmarks.machine import describe_machine, measure_ceilings
from benchmarks.measurement import Case
from benchmarks.memory import measure_cpu_bytes, measure_cuda_bytes, self_test, self_test_on_card
from benchmarks.nvml import braked, read_card, underclocked
from benchmarks.plain_precision import FACTOR, allowed
from benchmarks.ranges import named_range
from benchmarks.reference_files import (
    Files,
    Reference,
    ReferenceMismatch,
    make_reference,
    output_gradient,
    read_reference,
    write_own,
    write_shared,
)
from variants import Problem
from variants.catalogue import load
from variants.tolerance import GRADIENT_TOLERANCE, IMPLEMENTATION_TOLERANCE, ROW_FACTOR
from variants.variant import Variant

WARM_UP_CALLS = 3
WARM_UP_SECONDS = 4.0
RECOVERY_SECONDS = 0.2
"""A pause after a sample that is rejected, for the card to cool or wake up."""
HOT_UP_TO_SECONDS = 0.25
"""Launches are nothing beside longer calls, and a graph of a hundred thousand kernels would take the card's memory."""
SMALL_PAIRS = 2**21
"""Up to so many pairs the proof runs on one thread: many small steps on several wait for one another, on a
busy machine ten times longer than they work."""


class Failure(Exception):
    """A case without figures: a status and a reason."""

    def __init__(self, status: str, reason: str) -> None:
        """Both as they go into the row."""
        super().__init__(status, reason)
        self.status, self.reason = status, reason


def serve(connection: Connection) -> None:
    """Answer requests until the other side hangs up: `(method, arguments)` in, a dictionary out."""
    allocator = retain_heap()
    prefer_as_victim()
    torch.set_flush_denormal(True)
    bench = Bench(allocator)
    while True:
        try:
            method, arguments = connection.recv()
        except EOFError:
            return
        connection.send(answer(bench, method, arguments))


def answer(bench: "Bench", method: str, arguments: tuple[Any, ...]) -> dict[str, Any]:
    """The result of one request; any failure of the measured code becomes a status and a reason."""
    try:
        result: dict[str, Any] = getattr(bench, method)(*arguments)
    except Failure as failure:
        return {"status": failure.status, "reason": failure.reason}
    except (MemoryError, torch.OutOfMemoryError) as error:
        return {"status": "out_of_memory", "reason": first_line(error)}
    except Exception as error:  # noqa: BLE001  # the boundary: whatever a variant raises is kept as its row
        out_of_memory = isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
        status = "out_of_memory" if out_of_memory else "error"
        return {"status": status, "reason": f"{type(error).__name__}: {first_line(error)}"}
    return {"status": "ok", **result}


def first_line(error: BaseException) -> str:
    """What went wrong, without the stack that torch appends."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def prefer_as_victim() -> None:
    """Where memory runs out, let the kernel end this process and not its parent."""
    score = Path("/proc/self/oom_score_adj")
    with suppress(OSError):  # where there is none, or it may not be written
        score.write_text("1000")


class Bench:
    """One prepared case: inputs, the built callable, and the clock that fits its device."""

    def __init__(self, allocator: str) -> None:
        """Nothing is touched before a request: CUDA starts in the worker only."""
        self.allocator = allocator
        self.call: Callable[[], Any] = lambda: None
        self.ranged_call = self.call
        self.calls, self.refill = 1, True
        self.operators: list[str] = []
        self.ran = ""
        self.call_seconds = self.warm_seconds = 0.0
        self.cuda: CudaClock | None = None
        self.uuid = ""
        self.spoilt = False

    def machine(self, device: str, threads: int, dtypes: Collection[str] | None = None) -> dict[str, Any]:
        """Describe the machine and measure its ceilings, for those dtypes only; proves the memory instrument first."""
        torch.set_num_threads(threads)
        take_card(device)
        self_test()
        if device != "cpu":
            self_test_on_card(device)
            spin_test(device)
        description = describe_machine(device, threads, self.allocator)
        return {"machine": {**description, "ceilings": measure_ceilings(device, dtypes)}}

    def describe(self, device: str, threads: int) -> dict[str, Any]:
        """Describe the machine, without its ceilings."""
        return {"machine": describe_machine(device, threads, self.allocator)}

    def refer_shared(self, case: Case, threads: int, file: Path) -> dict[str, Any]:
        """Write the inputs of a case and what all definitions are held against on them; runs no variant."""
        take_card(case.device)
        limit_threads(case.problem(), threads)
        try:
            write_shared(case, file)
        except UnavailableInputs as error:
            raise Failure("unsupported", str(error)) from error
        return self._tidied(case)

    def refer_own(self, case: Case, threads: int, shared: Path, own: Path) -> dict[str, Any]:
        """Write what the definition of a case is held against, on the inputs of the shared file; runs no variant."""
        take_card(case.device)
        limit_threads(case.problem(), threads)
        write_own(case, Files(shared, own), load(case.variant).definition)
        return self._tidied(case)

    def prepare(self, case: Case, threads: int, timed: bool, files: Files | None = None) -> dict[str, Any]:
        """Build the case, prove it against its oracle, and read its memory; its reference is made here without files.

        Raises `Failure` where it cannot run or is wrong: then it has no time.
        """
        problem = case.problem()
        take_card(case.device)
        limit_threads(problem, threads)
        variant = load(case.variant)
        if reasons := variant.refusals(problem):
            raise Failure("unsupported", "; ".join(reasons))
        reference = self._reference(case, variant, files)
        built: list[Callable[..., Tensor]] = []
        held_bytes = 0

        def build() -> None:
            built.append(variant.build(problem, **variant.definition.resolve(case.parameters)))

        with named_range("build", problem.device_type):
            if timed:
                held_bytes = self._bytes(build, problem)[1]
            else:
                build()
        run = built[0]
        inputs, self.call, self.ranged_call = self._calls(run, reference.inputs, problem, variant.layout)
        self.ran = getattr(run, "ran", "")
        try:
            figures, least_seconds = self._prove(run, inputs, reference, problem, variant.layout)
        except BrokenContract as broken:
            raise Failure("wrong", str(broken)) from broken
        del reference
        release_heap()
        if not timed:
            return figures | {"call_seconds": self.call_seconds}
        torch.set_num_threads(threads)
        seconds = self._warm_up(problem, least_seconds)
        # Before the clock, whose buffer is no memory of the call.
        peak_bytes, _, reserved_bytes = self._bytes(self._counted_call, problem)
        self._set_clock(problem, calls_for(seconds), seconds)
        # The output, and in training the gradients, are allocated in the call but are no extra.
        results = problem.input_output_bytes // 2 if problem.mode == "training" else problem.query_bytes
        extra_bytes = max(0, held_bytes + peak_bytes - results)
        return figures | {
            "extra_bytes": extra_bytes,
            "total_bytes": problem.input_output_bytes + extra_bytes,
            "reserved_bytes": reserved_bytes,
            "kernel": kernel_on_cpu(self.operators) if self.cuda is None else "",
            "calls_per_sample": 1 if self.cuda else self.calls,
            "timer": CUDA_TIMER if self.cuda else CPU_TIMER,
            "warm_seconds": seconds,
            "call_seconds": self.call_seconds,
        }

    def renew(self, case: Case, threads: int, calls: int) -> dict[str, Any]:
        """Be ready to sample a case that another process has proved; `calls` in a sample, as there."""
        problem, variant = case.problem(), load(case.variant)
        take_card(case.device)
        torch.set_num_threads(threads)
        run = variant.build(problem, **variant.definition.resolve(case.parameters))
        inputs = make_inputs(problem, case.inputs, case.seed)
        _, self.call, self.ranged_call = self._calls(run, inputs, problem, variant.layout)
        begin = time.perf_counter()
        self.call()
        wait_for(problem)
        self.call_seconds = first_seconds = time.perf_counter() - begin
        self._set_clock(problem, calls, self._warm_up(problem, first_seconds))
        return {"call_seconds": self.call_seconds}

    def prepare_peer(self, case: Case, threads: int, file: Path, name: str) -> dict[str, Any]:
        """Build another package's attention, look for its defects, and be ready to sample it as any case."""
        from benchmarks.peer_probe import prepare_peer  # only `attnscape peers` asks for it

        problem = case.problem()
        limit_threads(problem, threads)
        self.call, first_seconds, figures = prepare_peer(case, file, name)
        torch.set_num_threads(threads)
        seconds = self._warm_up(problem, first_seconds)
        self.calls, self.refill = calls_for(seconds), seconds <= REFILL_UP_TO_SECONDS
        return figures | {"calls_per_sample": self.calls, "warm_seconds": seconds}

    def sample(self) -> dict[str, Any]:
        """One sample; on CUDA with the card's state read just after it, and whether it braked or was not awake."""
        begin = time.perf_counter()
        sample: Sample = (
            self.cuda.measure(self.call) if self.cuda else measure_cpu(self.call, self.calls, refill=self.refill)
        )
        spent = time.perf_counter() - begin
        state = read_card(self.uuid) if self.cuda else {}
        rejected = "brake" if braked(state) else "clock" if underclocked(state) else ""
        if rejected:
            time.sleep(RECOVERY_SECONDS)
        return {"sample": sample, "state": state, "rejected": rejected, "call_seconds": spent}

    def card_figures(self) -> dict[str, Any]:
        """The hot time and what ran on the card, after the samples: both may tell on what comes later.

        A capture that fails leaves its marks in the process (torch 2.11), and a profiler may slow later launches.
        """
        from benchmarks.profiling import names_of_call  # of no use on a machine without a card

        assert self.cuda is not None
        figures = hot_figures(self.cuda, self.call, self.warm_seconds)
        self.spoilt = self.warm_seconds <= HOT_UP_TO_SECONDS and "hot_seconds" not in figures
        try:
            return figures | {"kernel": kernel_on_card(*names_of_call(self.call, self.cuda.device), self.ran)}
        except RuntimeError as error:  # another profiler may hold the card: no reason to lose what was measured
            return figures | {"kernel": f"not seen: {first_line(error)}"}

    def wake(self, device: str) -> dict[str, Any]:
        """Make ready what a card takes seconds for, while others do the same."""
        take_card(device)
        torch.empty(1, device=device)
        return {}

    def rest(self) -> dict[str, Any]:
        """Let go of the case, so that this process may stay for another one of its variant.

        Raises `Failure` where it would not be as good as a fresh one.
        """
        if self.spoilt:
            raise Failure("error", "a capture failed in this process")
        self.call = self.ranged_call = lambda: None
        self.cuda, self.operators, self.call_seconds = None, [], 0.0
        gc.collect()
        torch.cuda.empty_cache()
        return {}

    def energy(self) -> dict[str, Any]:
        """Joules of one call of the prepared case, or why there are none."""
        from benchmarks.energy import measure_energy, meter_of

        begin = time.perf_counter()
        meter = meter_of(self.uuid)
        wait = partial(torch.cuda.synchronize, self.cuda.device) if self.cuda else lambda: None
        figures: dict[str, Any] = measure_energy(self.call, meter, wait, call_seconds=self.warm_seconds)
        if not figures:
            figures = {"lacking": "no counter to be read"}
        return figures | {"spent_seconds": time.perf_counter() - begin}

    def profile(self, case: Case, trace: Path) -> dict[str, Any]:
        """What one call of the prepared case does, and where its time goes; the trace is written to that file."""
        from benchmarks.profiling import profile_call  # only `attnscape profile` asks for it

        figures = self.card_figures() if self.cuda is not None else {}
        compiled = load(case.variant).compiled
        return figures | profile_call(self.call, self.ranged_call, case.problem(), trace, compiled=compiled)

    def _reference(self, case: Case, variant: Variant, files: Files | None) -> Reference:
        try:
            if files is not None:
                return read_reference(case, files, variant.definition)
            return make_reference(case, make_inputs(case.problem(), case.inputs, case.seed), variant.definition)
        except UnavailableInputs as error:
            raise Failure("unsupported", str(error)) from error
        except ReferenceMismatch as error:
            raise Failure("error", str(error)) from error

    def _tidied(self, case: Case) -> dict[str, Any]:
        """Give memory back, since this process stays while others work."""
        release_heap()
        if case.device != "cpu":
            torch.cuda.empty_cache()
        return {}

    def _proof(self, out: Tensor, reference: Reference, problem: Problem) -> dict[str, Any]:
        try:
            reference.check_inputs()
        except ReferenceMismatch as error:
            raise Failure("error", str(error)) from error
        errors: Errors = errors_of(out, reference.expected, checked_rows(problem))
        tolerance = IMPLEMENTATION_TOLERANCE[problem.dtype]
        if not errors.finite:
            raise Failure("wrong", "the output holds infinities or NaN")
        if not errors.implementation <= tolerance:
            raise Failure("wrong", f"implementation error {errors.implementation:.2e} > {tolerance:.0e}")
        plain = reference.expected.plain
        _hold_to_plain("implementation error", errors.implementation, plain, tolerance, problem.dtype)
        if not errors.row_max <= ROW_FACTOR * tolerance:
            raise Failure("wrong", f"a row's implementation error {errors.row_max:.2e} > {ROW_FACTOR * tolerance:.0e}")
        return {
            "implementation_error": errors.implementation,
            "implementation_row_p50": errors.row_p50,
            "implementation_row_p99": errors.row_p99,
            "implementation_row_max": errors.row_max,
            "approximation_error": errors.approximation,
            "mean_of_v_error": errors.mean_of_v,
            "checked_rows": errors.rows,
            "plain_error": known_or_none(plain),
        }

    def _prove(
        self, run: Any, inputs: tuple[Tensor, ...], reference: Reference, problem: Problem, layout: str
    ) -> tuple[dict[str, Any], float]:
        """Figures of the first output, and the seconds of the fastest call; a later call must be as right as that.

        None of these calls is timed; the first compiles whatever compiles. Raises `BrokenContract`.
        """
        calls = WatchedCalls(run, inputs, training=problem.mode == "training", wait=partial(wait_for, problem))
        figures = self._proof(canonical(calls.once(), layout), reference, problem)
        calls.require_dependence()
        calls.spoil()
        out = canonical(calls.once(), layout)
        try:
            self._proof(out, reference, problem)
        except Failure as failure:
            raise Failure(failure.status, f"in a later call: {failure.reason}") from failure
        if problem.mode == "training":
            figures |= self._gradients(out, inputs, reference, problem, layout)
            calls.require_inputs()
        self.call_seconds = calls.total_seconds
        return figures | {"descriptors": reference.descriptors}, calls.least_seconds

    def _gradients(
        self, out: Tensor, inputs: tuple[Tensor, ...], reference: Reference, problem: Problem, layout: str
    ) -> dict[str, float | None]:
        q, k, v = inputs
        found = checked_gradients(out, (q, k, v), output_gradient(problem, q), checked_rows(problem))
        error = gradient_error(tuple(canonical(x, layout) for x in found), reference.gradients)
        tolerance = GRADIENT_TOLERANCE[problem.dtype]
        if not error <= tolerance:
            raise Failure("wrong", f"gradient error {error:.2e} > {tolerance:.0e}")
        plain = reference.plain_gradient
        _hold_to_plain("gradient error", error, plain, tolerance, problem.dtype)
        return {"gradient_error": error, "plain_gradient_error": known_or_none(plain)}

    def _calls(
        self, run: Callable[..., Tensor], plain: tuple[Tensor, ...], problem: Problem, layout: str
    ) -> tuple[tuple[Tensor, ...], Callable[[], Any], Callable[[], Any]]:
        """The inputs in the variant's layout, the call that is timed, and the same with its parts named."""
        training = problem.mode == "training"
        # Detached: else the oracle, which shares these tensors, would keep a graph of its own.
        inputs = tuple(canonical(x, layout).contiguous().detach().requires_grad_(training) for x in plain)
        device = problem.device_type

        def forward() -> Tensor:
            with named_range("forward", device):
                return run(*inputs)

        if not training:
            return inputs, lambda: run(*inputs), forward
        grad = torch.randn_like(inputs[0])

        def both() -> tuple[Tensor, ...]:
            out = forward()
            with named_range("backward", device):
                return torch.autograd.grad(out, inputs, grad)

        return inputs, lambda: torch.autograd.grad(run(*inputs), inputs, grad), both

    def _warm_up(self, problem: Problem, first_seconds: float) -> float:
        """Seconds of the fastest of three more calls, or of as many as fit the time for warming up."""
        # On CUDA the first call may have compiled for longer than that.
        begin = 0.0 if problem.device_type == "cuda" else first_seconds
        best, spent = begin or math.inf, begin
        for _ in range(WARM_UP_CALLS):
            if spent > WARM_UP_SECONDS:
                break
            start = time.perf_counter()
            self.call()
            wait_for(problem)
            seconds = time.perf_counter() - start
            best, spent = min(best, seconds), spent + seconds
        self.call_seconds += spent - begin
        return best

    def _set_clock(self, problem: Problem, calls: int, seconds: float) -> None:
        """What `sample` and `energy` take, for a call of so many seconds."""
        self.warm_seconds = seconds
        if problem.device_type == "cuda":
            self.cuda = CudaClock(problem.device, seconds)
            self.uuid = f"GPU-{torch.cuda.get_device_properties(problem.device).uuid}"
        self.calls, self.refill = calls, seconds <= REFILL_UP_TO_SECONDS

    def _counted_call(self) -> Any:
        """The call, its seconds added to those that calls took."""
        begin = time.perf_counter()
        result = self.call()
        self.call_seconds += time.perf_counter() - begin
        return result

    def _bytes(self, call: Callable[[], Any], problem: Problem) -> tuple[int, int, int | None]:
        """Peak and final bytes of a call; on CUDA also the allocator's reserve, on a CPU its operators are kept."""
        if problem.device_type == "cuda":
            return measure_cuda_bytes(call, problem.device)
        peak, held, self.operators = measure_cpu_bytes(call)
        return peak, held, None


def take_card(device: str) -> None:
    """Make it the present one, for kernels that ask for no other; nothing on a CPU."""
    if device != "cpu":
        torch.cuda.set_device(device)


def known_or_none(value: float) -> float | None:
    """As a row has it."""
    return None if math.isnan(value) else value


def _hold_to_plain(what: str, error: float, plain: float, tolerance: float, dtype: str) -> None:
    """Raises `Failure` where it is more than twice what the plain formula errs in that type."""
    if error > allowed(plain, tolerance, dtype):
        raise Failure(
            "wrong", f"{what} {error:.2e}, more than {FACTOR} times the plain formula's in {dtype}, {plain:.2e}"
        )


def limit_threads(problem: Problem, threads: int) -> None:
    """As many as are asked for, or one for a short problem's proof."""
    torch.set_num_threads(threads if problem.tokens * problem.kv_tokens > SMALL_PAIRS else 1)


def wait_for(problem: Problem) -> None:
    """Until the problem's card has done what was queued; nothing on a CPU."""
    if problem.device_type == "cuda":
        torch.cuda.synchronize(problem.device)


def canonical(x: Tensor, layout: str) -> Tensor:
    """Between batch-heads-tokens-dim and the variant's own layout: swapping twice is no change."""
    return x.transpose(1, 2) if layout == "bnhd" else x


def hot_figures(clock: CudaClock, call: Callable[[], Any], seconds: float) -> dict[str, Any]:
    """The time of a graph's replay, or why there is none: what a call does on the host cannot be captured."""
    if seconds > HOT_UP_TO_SECONDS:
        return {"hot_reason": f"no graph: a call takes {seconds:.2g} s, more than {HOT_UP_TO_SECONDS} s"}
    try:
        return {"hot_seconds": clock.measure_hot(call)}
    except RuntimeError as error:
        # A capture that fails leaves its own stream the current one.
        torch.cuda.set_stream(torch.cuda.default_stream(clock.device))
        torch.cuda.synchronize(clock.device)
        return {"hot_reason": f"no graph: {first_line(error)}"}
