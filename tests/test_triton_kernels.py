"""The Triton kernels: run by Triton's interpreter against the oracles, and compiled for cards that are not at hand.

Triton reads TRITON_INTERPRET as it is imported, so the interpreter has a process of its own.
"""

import importlib
import multiprocessing
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from importlib import metadata
from tempfile import NamedTemporaryFile
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from packaging.version import Version
from torch import Tensor

from benchmarks.accuracy import gradient_error, relative_error
from tests.ready_variants import draw
from variants import Problem, flash_linear, triton_scan
from variants.blockwise_low_rank import triton as low_rank
from variants.catalogue import load, names
from variants.dtypes import TORCH_DTYPES
from variants.lightning import rates
from variants.local_window import reach
from variants.local_window import triton as window
from variants.powers import LOG2_E
from variants.problem import DTYPE_BYTES
from variants.retention import decays
from variants.tolerance import GRADIENT_TOLERANCE, IMPLEMENTATION_TOLERANCE
from variants.triton_launch import Launch, Tile, padded, shared_bytes, softmax_tiles

pytest.importorskip("triton", reason="built for Linux on x86-64 only")

TILE = Tile(16, 16, 4, 1)
Interpreter = Callable[..., Any]


def started() -> bool:
    """In the interpreter's process: whether it is one."""
    torch.set_num_threads(1)
    return bool(kernels_of("scan").INTERPRETED)


def kernels_of(name: str) -> ModuleType:
    return importlib.import_module(f"variants.kernels_{name}")


@pytest.fixture(scope="module")
def interpreter() -> Iterator[Interpreter]:
    """Calls a function of this module where Triton interprets."""
    if Version(metadata.version("triton")) < Version("3.7"):
        pytest.skip("the interpreter of older releases needs a NumPy before 2.4")
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TRITON_INTERPRET", "1")
            assert pool.submit(started).result()
        yield lambda function, *given: pool.submit(function, *given).result()


@dataclass(frozen=True)
class Case:
    """One definition's kernels on one problem, with small tiles."""

    name: str
    problem: Problem
    parameters: dict[str, int]
    tile: Tile = TILE
    columns: int = 16
    state_columns: int = 0

    @property
    def kernels(self) -> str:
        return {"local_window": "window", "blockwise_low_rank": "low_rank"}.get(self.name, "scan")

    def run(self, kernels: ModuleType, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        problem, tile = self.problem, self.tile
        if self.name == "local_window":
            plan = window.Plan(*reach(self.parameters["window"], problem.causal), tile, tile, tile)
            return window.attend(q, k, v, kernels, plan)
        if self.name == "blockwise_low_rank":
            block, rank = self.parameters["block"], self.parameters["rank"]
            return low_rank.attend(
                q, k, v, kernels, low_rank.Plan(problem.causal, block, block // rank, tile, tile, tile, tile)
            )
        log_decay = {"retention": decays(problem.heads).log(), "lightning": -rates(problem.heads)}.get(self.name)
        plan_of_scan = triton_scan.Plan(
            causal=problem.causal,
            features=self.name == "linear_scan",
            rates=None if log_decay is None else (log_decay * LOG2_E).float(),
            scale=problem.head_dim**-0.5 if self.name == "retention" else 1.0,
            chunk=tile.own,
            columns=self.columns,
            state_columns=self.state_columns or self.columns,
            **dict.fromkeys(triton_scan.KERNELS, Launch(tile.warps, tile.stages)),
        )
        return triton_scan.attend(q, k, v, kernels, plan_of_scan)


class Found(NamedTuple):
    out: Tensor
    gradients: tuple[Tensor, ...]


def differentiated(call: Callable[..., Tensor], inputs: tuple[Tensor, ...], slope: Tensor) -> Found:
    leaves = tuple(x.detach().requires_grad_() for x in inputs)
    out = call(*leaves)
    return Found(out.detach(), torch.autograd.grad(out, leaves, slope.to(out.dtype)))


def slope_of(problem: Problem) -> Tensor:
    shape = (problem.batch, problem.heads, problem.tokens, problem.head_dim)
    generator = torch.Generator().manual_seed(1)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(TORCH_DTYPES[problem.dtype])


def kernels_answer(case: Case, inputs: tuple[Tensor, ...]) -> Found:
    return differentiated(lambda *given: case.run(kernels_of(case.kernels), *given), inputs, slope_of(case.problem))


def oracles_answer(case: Case, inputs: tuple[Tensor, ...]) -> Found:
    definition = load(f"{case.name}/triton").definition
    return differentiated(
        lambda *given: definition.reference(*given, causal=case.problem.causal, parameters=case.parameters),
        tuple(x.double() for x in inputs),
        slope_of(case.problem),
    )


def case_of(name: str, parameters: dict[str, int], tile: Tile = TILE, columns: int = 16, **fields: Any) -> Case:
    problem = Problem(**{"heads": 2, "kv_heads": 1, "head_dim": 32, "mode": "training"} | fields)
    return Case(name, problem, parameters, tile, columns)


def named(case: Case) -> str:
    problem = case.problem
    shape = f"{problem.tokens}x{problem.kv_tokens}x{problem.head_dim}-{problem.heads}/{problem.kv_heads}"
    return "-".join([case.name, shape, *map(str, case.parameters.values()), "causal" if problem.causal else "all"])


BOTH = [
    case_of("local_window", {"window": 1}, tokens=20, heads=1),
    case_of("local_window", {"window": 20}, tokens=50),
    # Tiles of unequal sides, and a window of several inner tiles.
    case_of("local_window", {"window": 64}, Tile(16, 32, 4, 1), tokens=100, heads=1),
    case_of("local_window", {"window": 33}, Tile(32, 16, 4, 1), tokens=33, kv_tokens=80, head_dim=40, batch=2, heads=1),
    case_of("local_window", {"window": 20}, tokens=40, kv_tokens=23, heads=4, kv_heads=2, head_dim=16),
    case_of("local_window", {"window": 50}, tokens=1, kv_tokens=70),
    case_of("blockwise_low_rank", {"block": 16, "rank": 4}, tokens=90, heads=1),
    case_of("blockwise_low_rank", {"block": 24, "rank": 2}, Tile(16, 32, 4, 1), tokens=40, kv_tokens=103),
    case_of("blockwise_low_rank", {"block": 7, "rank": 7}, tokens=40, kv_tokens=20, heads=1, head_dim=12),
    # So long that the queries of a far segment are divided.
    case_of("blockwise_low_rank", {"block": 64, "rank": 4}, Tile(64, 16, 4, 1), tokens=257, heads=1, head_dim=16),
    case_of("blockwise_low_rank", {"block": 16, "rank": 4}, tokens=1, kv_tokens=70),
    case_of("linear_scan", {}, tokens=40, heads=1),
    case_of("linear_scan", {}, columns=64, tokens=33, kv_tokens=80, head_dim=40, heads=1, batch=2),
    case_of("linear_scan", {}, tokens=40, kv_tokens=23, heads=4, kv_heads=2, head_dim=16),
    case_of("linear_scan", {}, tokens=135, heads=1, head_dim=16),
    case_of("linear_scan", {}, tokens=1, kv_tokens=70, head_dim=16),
]
CASES = [
    *[replace(case, problem=case.problem.with_(causal=causal)) for case in BOTH for causal in (False, True)],
    *[case_of(name, {}, columns=32, tokens=40, causal=True) for name in ("retention", "lightning")],
    case_of("retention", {}, columns=64, tokens=7, causal=True, batch=2, heads=4, kv_heads=2, head_dim=40),
    case_of("local_window", {"window": 9}, tokens=20, causal=True, heads=1, head_dim=128),
    case_of("blockwise_low_rank", {"block": 8, "rank": 1}, tokens=40, causal=True, heads=1, head_dim=128),
    case_of("linear_scan", {}, columns=64, tokens=20, causal=True, heads=1, head_dim=128),
    # States by tiles of their own.
    *[
        replace(case_of(name, {}, columns=32, tokens=40, causal=True, kv_heads=2), state_columns=16)
        for name in ("linear_scan", "retention")
    ],
    replace(case_of("linear_scan", {}, columns=16, tokens=40, head_dim=40), state_columns=64),
]


class Errors(NamedTuple):
    out: float
    worst: float
    gradients: list[float]


def errors_of(got: Found, want: Found) -> Errors:
    pairs = zip(got.gradients, want.gradients, strict=True)
    return Errors(
        relative_error(got.out.double(), want.out.double()),
        gradient_error(tuple(x.double() for x in got.gradients), want.gradients),
        [gradient_error((x.double(),), (y.double(),)) for x, y in pairs],
    )


def kernels_errors(case: Case, factor: int = 1) -> Errors:
    q, k, v = draw(case.problem)
    return errors_of(kernels_answer(case, (factor * q, k, v)), oracles_answer(case, (factor * q, k, v)))


@pytest.mark.parametrize("case", CASES, ids=named)
def test_output_and_gradients_are_the_oracles(case: Case, interpreter: Interpreter) -> None:
    found = interpreter(kernels_errors, case)
    assert found.out <= IMPLEMENTATION_TOLERANCE["float32"] / 10
    assert found.worst <= GRADIENT_TOLERANCE["float32"] / 2


# ---- half precision


def seen(problem: Problem) -> Tensor:
    rows = torch.arange(problem.tokens)[:, None] + problem.offset
    keys = torch.arange(problem.kv_tokens)[None, :]
    return keys <= rows if problem.causal else torch.ones(problem.tokens, problem.kv_tokens, dtype=torch.bool)


def plain_answer(case: Case, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The formula with dense matrices, every step rounded to the inputs' dtype: what a kernel is held to."""
    problem = case.problem
    k, v = (x.repeat_interleave(problem.group, 1) for x in (k, v))
    distance = torch.arange(problem.tokens)[:, None] + problem.offset - torch.arange(problem.kv_tokens)[None, :]
    visible = seen(problem)
    if case.name == "linear_scan":
        features = [torch.nn.functional.elu(x) + 1 for x in (q, k)]
        weights = (features[0] @ features[1].mT).masked_fill(~visible, 0)
        return (weights @ v) / weights.sum(-1, keepdim=True)
    if case.name in ("retention", "lightning"):
        log = decays(problem.heads).log() if case.name == "retention" else -rates(problem.heads)
        fading = (log[:, None, None] * distance).exp().masked_fill(~visible, 0).to(q.dtype)
        scale = problem.head_dim**-0.5 if case.name == "retention" else 1.0
        return ((q * scale) @ k.mT * fading) @ v
    scores = (q * problem.head_dim**-0.5) @ k.mT
    if case.name == "local_window":
        before, after = reach(case.parameters["window"], problem.causal)
        visible = (distance <= before) & (distance >= -after)
    else:
        block, segment = case.parameters["block"], case.parameters["block"] // case.parameters["rank"]
        means = torch.stack([part.mean(2) for part in k.split(segment, 2)], 2).repeat_interleave(segment, 2)
        apart = (torch.arange(problem.tokens)[:, None] + problem.offset) // block
        apart = (apart - torch.arange(problem.kv_tokens)[None, :] // block).abs()
        coarse = (q * problem.head_dim**-0.5) @ means[:, :, : problem.kv_tokens].mT
        scores = torch.where(apart <= 1, scores, coarse)
    return torch.softmax(scores.masked_fill(~visible, -torch.inf), -1) @ v


OF_HALF = {"local_window": {"window": 24}, "blockwise_low_rank": {"block": 16, "rank": 2}}
SHAPES_OF_HALF = (
    {"tokens": 36, "head_dim": 32, "heads": 4, "kv_heads": 2},
    {"tokens": 52, "head_dim": 64, "heads": 1},
    {"tokens": 20, "head_dim": 256, "heads": 1},
    {"tokens": 36, "head_dim": 128, "heads": 1, "causal": False},
    {"tokens": 21, "kv_tokens": 36, "head_dim": 256, "heads": 1},
    # Interpreted, tiles of all columns are many times as fast.
    {"tokens": 33, "head_dim": 256, "heads": 2, "kv_heads": 1, "causal": False, "columns": 256},
)
HALF = [
    case_of(name, OF_HALF.get(name, {}), **{"causal": True, "columns": 64} | shape)
    for name in ("local_window", "blockwise_low_rank", "linear_scan", "retention", "lightning")
    for shape in SHAPES_OF_HALF
    # The scans with decay are causal over their own tokens only.
    if name not in ("retention", "lightning") or not {"causal", "kv_tokens"} & shape.keys()
]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("case", HALF, ids=named)
def test_half_precision_errs_at_most_twice_as_much_as_the_plain_formula(
    case: Case, dtype: str, interpreter: Interpreter
) -> None:
    case = replace(case, problem=case.problem.with_(dtype=dtype))
    inputs = draw(case.problem)
    plain = differentiated(lambda *given: plain_answer(case, *given), inputs, slope_of(case.problem))
    allowed = errors_of(plain, oracles_answer(case, inputs))
    found = interpreter(kernels_errors, case)
    assert found.out <= 2 * allowed.out
    assert all(mine <= 2 * its for mine, its in zip(found.gradients, allowed.gradients, strict=True))


def largest_sums(case: Case) -> tuple[torch.dtype, float]:
    q, k, v = draw(case.problem)
    out = case.run(kernels_of("scan"), q, k * 500, v * 0 + 60).detach()
    return out.dtype, float((out.double() - 60).abs().max())


def test_float16_sums_may_leave_its_range(interpreter: Interpreter) -> None:
    case = case_of("linear_scan", {}, columns=32, tokens=70, heads=1, causal=True, dtype="float16")
    assert (draw(case.problem)[1].abs().double() * 500 * 60).sum() > 1e6
    dtype, strayed = interpreter(largest_sums, case)
    assert dtype is torch.float16 and strayed <= 4e-3 * 60


# ---- strides, large logits, and an answer that is wrong


def strayed_by_strides(case: Case) -> list[float]:
    plain = draw(case.problem)
    strided = tuple(x.transpose(1, 2).contiguous().transpose(1, 2) for x in plain)
    by_channel = tuple(x.mT.contiguous().mT for x in plain)
    expected = kernels_answer(case, plain)
    found = []
    for inputs in (strided, by_channel):
        assert not inputs[0].is_contiguous()
        errors = errors_of(kernels_answer(case, inputs), expected)
        found += [errors.out, errors.worst]
    return found


@pytest.mark.parametrize("name", ["local_window", "blockwise_low_rank", "linear_scan"])
def test_strides_do_not_matter(name: str, interpreter: Interpreter) -> None:
    parameters = {"local_window": {"window": 20}, "blockwise_low_rank": {"block": 16, "rank": 2}}.get(name, {})
    case = case_of(name, parameters, Tile(32, 32, 4, 1), tokens=12, kv_tokens=18, causal=True, head_dim=16, kv_heads=2)
    assert max(interpreter(strayed_by_strides, case)) <= 1e-6


@pytest.mark.parametrize("case", [BOTH[1], BOTH[6]], ids=named)
def test_large_logits(case: Case, interpreter: Interpreter) -> None:
    found = interpreter(kernels_errors, case, 30)
    assert found.out <= IMPLEMENTATION_TOLERANCE["float32"]
    assert found.worst <= GRADIENT_TOLERANCE["float32"]


def largest_of_nothing(case: Case) -> float:
    got = kernels_answer(case, draw(case.problem))
    return float(sum(x.abs().sum() for x in (got.out, *got.gradients)))


@pytest.mark.parametrize("shape", [{"tokens": 0}, {"tokens": 5, "kv_tokens": 0}, {"tokens": 5, "batch": 0}], ids=str)
@pytest.mark.parametrize("case", [BOTH[1], BOTH[6], BOTH[11]], ids=lambda case: case.name)
def test_nothing_to_see(case: Case, shape: dict[str, int], interpreter: Interpreter) -> None:
    case = replace(case, problem=Problem(heads=2, head_dim=16, mode="training", **shape))
    assert interpreter(largest_of_nothing, case) == 0


def errors_of_another_window(case: Case) -> Errors:
    inputs = draw(case.problem)
    return errors_of(kernels_answer(replace(case, parameters={"window": 21}), inputs), oracles_answer(case, inputs))


def test_a_kernel_that_is_wrong_is_seen(interpreter: Interpreter) -> None:
    found = interpreter(
        errors_of_another_window, case_of("local_window", {"window": 20}, tokens=40, heads=1, causal=True)
    )
    assert min(found.out, *found.gradients) > IMPLEMENTATION_TOLERANCE["bfloat16"]


# ---- compiled for a card that is not here


class Compiler(ModuleType):
    """Stands in for a module of kernels: each launch compiles its kernel for a card, and notes what it takes of it.

    That is shared memory, and the bytes of a thread that its registers do not hold.
    """

    INTERPRETED = False

    def __init__(self, kernels: ModuleType, capability: int) -> None:
        super().__init__(kernels.__name__)
        self.kernels, self.capability = kernels, capability
        self.shared: dict[str, int] = {}
        self.spilled: dict[str, int] = {}

    def __getattr__(self, name: str) -> Any:
        kernel = getattr(self.kernels, name)

        class Grid:
            def __getitem__(_, grid: tuple[int, ...]) -> Callable[..., None]:
                return lambda *given, **constants: self.compile(kernel, given, constants)

        return Grid()

    def compile(self, kernel: Any, given: tuple[Any, ...], constants: dict[str, Any]) -> None:
        import triton
        from triton.backends.compiler import GPUTarget
        from triton.compiler import ASTSource

        options = {name: constants.pop(name) for name in ("num_warps", "num_stages") if name in constants}
        values = dict(zip(kernel.arg_names, given, strict=False)) | constants
        assert set(values) == set(kernel.arg_names)
        signature, fixed, aligned = {}, {}, {}
        for index, (name, parameter) in enumerate(zip(kernel.arg_names, kernel.params, strict=True)):
            signature[name] = argument_type(values[name], parameter.is_constexpr)
            if signature[name] == "constexpr":
                fixed[(index,)] = values[name]
            elif signature[name].startswith("*") or (signature[name] == "i32" and values[name] % 16 == 0):
                aligned[(index,)] = [["tt.divisibility", 16]]
        source = ASTSource(kernel, signature, fixed, aligned)
        built = triton.compile(source, target=GPUTarget("cuda", self.capability, 32), options=options)
        for found, value in ((self.shared, built.metadata.shared), (self.spilled, stack_bytes(built.asm["cubin"]))):
            found[kernel.__name__] = max(found.get(kernel.__name__, 0), value)


def stack_bytes(cubin: bytes) -> int:
    """Of a thread, by the tool that Triton brings."""
    import triton

    with NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", file.name]
        said = subprocess.run(command, capture_output=True, text=True, check=True)
    (found,) = re.findall(r"STACK:(\d+)", said.stdout + said.stderr)
    return int(found)


def argument_type(value: Any, constant: bool) -> str:
    """As Triton's launcher would specialise it."""
    if isinstance(value, Tensor):
        return {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16"}[value.dtype]
    if constant or (isinstance(value, int) and value == 1):
        return "constexpr"
    return "fp32" if isinstance(value, float) else "i32"


def compiled(case: Case, capability: int) -> dict[str, int]:
    """Shared memory of every kernel that the case launches, forth and back."""
    compiler: Any = Compiler(kernels_of(case.kernels), capability)
    differentiated(lambda *given: case.run(compiler, *given), draw(case.problem), slope_of(case.problem))
    return compiler.shared


@pytest.mark.parametrize("case", [CASES[3], CASES[12], CASES[23], CASES[32]], ids=named)
def test_every_kernel_compiles(case: Case, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))  # else an earlier run's would do
    case = replace(case, problem=case.problem.with_(dtype="bfloat16", head_dim=16, tokens=64))
    count = {"window": 4, "low_rank": 6}.get(case.kernels, 5 if case.name == "linear_scan" else 4)
    assert len(compiled(case, 90)) == count


PARTS = ("forward", "queries", "keys")
PARTS_OF = {
    "forward": ("forward", 1),
    "query_gradient": ("queries", 2),
    "key_gradients": ("keys", 2),
    "segment_gradients": ("keys", 2),
}
"""By kernel: whose tiles it takes, and how many matrices of its own rows it holds."""
LAST = 9
MOST_SPILLED = 160
"""Bytes of a thread: a few values that wait outside the inner loop."""

OWN = [("local_window", True), ("blockwise_low_rank", False), ("linear_scan", True), ("retention", True)]


def compiled_as_built(name: str, problem: Problem, capability: int, index: int) -> Any:
    """The kernels of a definition with the tiles of that place in the builder's order, or its last; scans have one."""
    compiler: Any = Compiler(
        kernels_of({"local_window": "window", "blockwise_low_rank": "low_rank"}.get(name, "scan")), capability
    )
    forward, queries, keys = (at_most(softmax_tiles(problem, part), index) for part in PARTS)
    if name == "local_window":
        plan: Any = window.Plan(255, 0, forward, queries, keys)
        attend: Callable[..., Tensor] = window.attend
    elif name == "blockwise_low_rank":
        plan, attend = low_rank.Plan(problem.causal, 128, 32, forward, queries, keys, keys), low_rank.attend
    else:
        log_decay = None if name == "linear_scan" else decays(problem.heads).log()
        plan = triton_scan.planned(problem, features=name == "linear_scan", log_decay=log_decay)
        attend = triton_scan.attend
    differentiated(lambda *x: attend(*x, compiler, plan), draw(problem), slope_of(problem))
    return compiler


def check_shared_memory(compiler: Any, name: str, problem: Problem, index: int) -> None:
    if name not in ("local_window", "blockwise_low_rank"):
        assert max(compiler.shared.values()) <= 99 * 1024  # what the smallest cards have
        return
    tiled = PARTS_OF.keys() & compiler.shared.keys()
    assert len(tiled) == (3 if name == "local_window" else 4)
    for kernel in tiled:
        part, owned = PARTS_OF[kernel]
        tile = at_most(softmax_tiles(problem, part), index)
        assert compiler.shared[kernel] <= shared_bytes(problem, tile, owned, 2)


@pytest.mark.parametrize(
    ("name", "causal"),
    [pytest.param(*own, marks=pytest.mark.slow if own[0] == "blockwise_low_rank" else ()) for own in OWN],
)
def test_the_smallest_tiles_of_long_heads_compile_for_an_older_card(
    name: str, causal: bool, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    problem = problem_of_tiles(128, "float16", causal)
    compiler = compiled_as_built(name, problem, 80, LAST)
    check_shared_memory(compiler, name, problem, LAST)
    assert max(compiler.spilled.values()) <= MOST_SPILLED


def problem_of_tiles(head_dim: int, dtype: str, causal: bool) -> Problem:
    return Problem(tokens=1024, heads=4, kv_heads=2, head_dim=head_dim, dtype=dtype, causal=causal, mode="training")


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("head_dim", [64, 128, 256])
@pytest.mark.parametrize(("dtype", "capability"), [("bfloat16", 90), ("float16", 80), ("float32", 90)])
@pytest.mark.parametrize(("name", "causal"), OWN)
def test_tiles_fit_their_shared_memory(name: str, causal: bool, dtype: str, head_dim: int, capability: int) -> None:
    problem = problem_of_tiles(head_dim, dtype, causal)
    for index in range(5 if name in ("local_window", "blockwise_low_rank") else 1):
        check_shared_memory(compiled_as_built(name, problem, capability, index), name, problem, index)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("name", "causal"), OWN)
def test_the_first_tiles_leave_a_thread_its_registers(name: str, causal: bool) -> None:
    """Of the named speeds' head size and card; of the low-rank kernels the one over keys does not, with any tile."""
    compiler = compiled_as_built(name, problem_of_tiles(128, "bfloat16", causal), 90, 0)
    spilled = {kernel: stack for kernel, stack in compiler.spilled.items() if stack}
    assert spilled.keys() <= ({"key_gradients"} if name == "blockwise_low_rank" else set())
    assert max(spilled.values(), default=0) <= MOST_SPILLED


def at_most(tiles: list[Tile], index: int) -> Tile:
    return tiles[min(index, len(tiles) - 1)]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("head_dim", [1, 32, 64, 100, 128, 192, 256])
def test_some_tile_fits_the_smallest_cards(dtype: str, head_dim: int) -> None:
    problem = Problem(tokens=1024, head_dim=head_dim, dtype=dtype)
    for part, owned in (("forward", 1), ("queries", 2), ("keys", 2)):
        fits = [tile for tile in softmax_tiles(problem, part) if shared_bytes(problem, tile, owned, 2) <= 99 * 1024]
        assert fits
        assert all(tile.own >= 16 and tile.visited >= 16 for tile in softmax_tiles(problem, part))
    assert [padded(size) for size in (1, 16, 17, 64, 100, 129, 256)] == [16, 16, 32, 64, 128, 256, 256]


# ---- what runs where


TRITON = [name for name in names() if name.endswith("/triton")]


@pytest.mark.parametrize("name", TRITON)
def test_the_interpreter_is_for_these_tests_only(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = Problem(tokens=64, causal=True, dtype="bfloat16")
    assert load(name).refusals(problem) == ["needs CUDA"]
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert load(name).refusals(problem) == ["needs CUDA", "needs TRITON_INTERPRET to be unset"]
    assert load(name).refusals(problem.with_(dtype="float64", head_dim=257))[1:3] == [
        "no float64 (has float32, bfloat16, float16)",
        "head_dim ≤ 256",
    ]


def test_the_kernels_are_compiled_outside_the_interpreters_process(interpreter: Interpreter) -> None:
    assert len(TRITON) == 5
    assert not any(kernels_of(name).INTERPRETED for name in ("window", "low_rank", "scan"))


@pytest.mark.parametrize(
    ("name", "package"),
    [
        ("memory_efficient/flash_attn_2", "flash-attn ≥ 2.7"),
        ("memory_efficient/flash_attn_3", "flash-attn-3 ≥ 3.0.0b1"),
        ("memory_efficient/flash_attn_4", "flash-attn-4 ≥ 4.0.0b1"),
        ("local_window/flash_attn_2", "flash-attn ≥ 2.7"),
        ("local_window/flash_attn_3", "flash-attn-3 ≥ 3.0.0b1"),
        ("local_window/flash_attn_4", "flash-attn-4 ≥ 4.0.0b1"),
        ("local_window/natten", "natten ≥ 0.21"),
        ("neighborhood/natten", "natten ≥ 0.21"),
        ("neighborhood_2d/natten", "natten ≥ 0.21"),
        *[
            (f"{family}/fla", "fla-core ≥ 0.4")
            for family in ("linear_scan", "retention", "gated_linear", "delta_rule", "gated_delta_rule")
        ],
    ],
)
def test_a_package_that_is_not_here_is_named(name: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(wanted: str) -> str:
        raise metadata.PackageNotFoundError(wanted)

    monkeypatch.setattr("variants.requirement.metadata.version", missing)
    reasons = load(name).refusals(Problem(tokens=64, head_dim=12, causal=True))
    types = f"no float32 (has {', '.join(load(name).dtypes)})"
    assert reasons[:3] == ["needs CUDA", types, f"needs {package} (not installed)"]
    assert load(name).predicted_bytes(Problem(tokens=64, causal=True, mode="training")) > 0


def test_what_a_package_imports_in_turn_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("variants.requirement.metadata.version", lambda _: "4.0.0b36")
    problem = Problem(tokens=64, causal=True, dtype="bfloat16")
    for name in ("memory_efficient/flash_attn_4", "local_window/flash_attn_4"):
        said = "needs what flash-attn-4 imports (cutlass, quack, tvm_ffi: not found)"
        assert load(name).refusals(problem) == ["needs CUDA", said]
    monkeypatch.setattr("variants.requirement.find_spec", lambda name: None if name == "quack" else object())
    assert load("memory_efficient/flash_attn_4").refusals(problem)[1:] == [
        "needs what flash-attn-4 imports (quack: not found)"
    ]


@pytest.mark.parametrize(
    ("release", "capability", "mode", "refused"),
    [
        ("3.6.0", (9, 0), "training", True),
        ("3.6.0", (9, 0), "forward", False),
        ("3.6.0", (8, 0), "training", False),
        ("3.7.1", (9, 0), "training", False),
        ("3.3.1", (9, 0), "training", False),
    ],
)
def test_a_backward_kernel_that_is_wrong_on_hopper_is_refused_there(
    release: str, capability: tuple[int, int], mode: str, refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda _: capability)
    monkeypatch.setattr("variants.requirement.metadata.version", lambda _: release)
    reasons = load("gated_delta_rule/fla").refusals(
        Problem(tokens=64, causal=True, mode=mode, dtype="bfloat16", device="cuda")
    )
    assert ("training on Hopper needs triton ≥ 3.7.1 or tilelang" in reasons) is refused


def test_without_triton_its_release_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(wanted: str) -> str:
        raise metadata.PackageNotFoundError(wanted)

    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr("variants.requirement.metadata.version", missing)
    problem = Problem(tokens=64, causal=True, mode="training", dtype="bfloat16", device="cuda")
    assert load("gated_delta_rule/fla").refusals(problem) == ["needs fla-core ≥ 0.4 (not installed)"]


def test_flash_linear_attention_chooses_its_tiles_for_about_the_length(monkeypatch: pytest.MonkeyPatch) -> None:
    tuner = SimpleNamespace(cache={"of 64": "small"}, configs=[], fn=None)
    plain = SimpleNamespace(cache={"kept": True}, fn=None)
    module = ModuleType("fla.ops.linear_attn")
    vars(module).update(chunk_linear_attn=len, kernel=SimpleNamespace(fn=tuner), other=plain)
    monkeypatch.setitem(sys.modules, "fla", ModuleType("fla"))
    monkeypatch.setitem(sys.modules, "fla.ops", ModuleType("fla.ops"))
    monkeypatch.setitem(sys.modules, "fla.ops.linear_attn", module)
    monkeypatch.setattr(flash_linear, "_CHOSEN", {"rows": 0})
    monkeypatch.setenv("FLA_CACHE_RESULTS", "1")
    for tokens, chosen_anew in ((333, True), (333, False), (1000, False), (4096, True), (16384, False), (100, False)):
        tuner.cache["tiles"] = "chosen"
        assert flash_linear.kernel(Problem(tokens=tokens), "linear_attn", "chunk_linear_attn") is len
        assert ("tiles" not in tuner.cache) is chosen_anew
    assert plain.cache and os.environ["FLA_CACHE_RESULTS"] == "0"


def test_fused_kernels_refuse_what_they_do_not_take() -> None:
    def said(name: str, **fields: Any) -> list[str]:
        return load(f"memory_efficient/{name}").refusals(Problem(**{"tokens": 64, "dtype": "bfloat16"} | fields))[1:]

    assert said("sdpa_cudnn", tokens=1) == ["two keys or more"]
    assert said("sdpa_cudnn", head_dim=256, mode="training") == ["head_dim ≤ 128 in training"]
    assert said("sdpa_cudnn", head_dim=256) == said("sdpa_cudnn", head_dim=128, mode="training") == []
    assert said("sdpa_efficient", head_dim=12) == ["rows of a head in whole 16 bytes"]
    assert said("sdpa_efficient", head_dim=12, dtype="float32") == []
    one = {"tokens": 1, "kv_tokens": 64, "mode": "decode"}
    assert said("xformers_splitk", head_dim=96, **one)[-1] == "head_dim 16, 32, 64, 128, 256, 512"
    assert load("linear_scan/fla").dtypes == ("bfloat16",)


def test_split_k_is_for_one_query() -> None:
    split = load("memory_efficient/xformers_splitk")
    assert split.refusals(Problem.of_length(64, mode="decode", causal=True, dtype="bfloat16")) == ["needs CUDA"]
    assert "one query only" in split.refusals(Problem(tokens=2, kv_tokens=64, mode="decode", dtype="bfloat16"))
    assert set(split.dtypes) <= set(DTYPE_BYTES)


def test_torchs_packed_window_takes_grouped_heads_from_the_release_on_that_has_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one, grouped = (Problem(tokens=64, heads=4, kv_heads=kv, causal=True, dtype="bfloat16") for kv in (4, 2))
    packed = load("local_window/torch_varlen")
    for release, alone, together in (
        ("2.10.0", ["needs torch ≥ 2.11 (2.10.0 is installed)"], 2),
        ("2.11.0+cu128", [], 1),
        ("2.13.0", [], 0),
    ):
        monkeypatch.setattr("variants.requirement.metadata.version", lambda _, release=release: release)
        assert packed.refusals(one) == ["needs CUDA", *alone]
        assert len(packed.refusals(grouped)) == 1 + together


@pytest.mark.parametrize("causal", [False, True])
def test_torchs_packed_window_is_called_as_it_wants_to_be(causal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = Problem(tokens=30, kv_tokens=40, batch=2, heads=4, kv_heads=2, head_dim=16, causal=causal)
    seen: dict[str, object] = {}

    def attend(q: Tensor, k: Tensor, v: Tensor, *borders: object, **options: object) -> Tensor:
        seen.update(shapes=(q.shape, k.shape, v.shape), borders=borders, options=options)
        return torch.zeros_like(q)

    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", attend)
    run = load("local_window/torch_varlen").build(problem, window=8)
    out = run(torch.zeros(2, 30, 4, 16), torch.zeros(2, 40, 2, 16), torch.zeros(2, 40, 2, 16))
    assert out.shape == (2, 30, 4, 16)
    assert seen["shapes"] == ((60, 4, 16), (80, 2, 16), (80, 2, 16))
    of_queries, of_keys, *longest = seen["borders"]  # type: ignore[misc]  # what varlen_attn was given
    assert (of_queries.tolist(), of_keys.tolist(), longest) == ([0, 30, 60], [0, 40, 80], [30, 40])
    # Of the window's eight keys the query's own is one.
    assert seen["options"] == {"window_size": (7, 0) if causal else (4, 4), "enable_gqa": True}
