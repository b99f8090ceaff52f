"""The compiled variants, on few shapes: each costs seconds of compiling."""

import shutil
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.accuracy import relative_error
from benchmarks.measurement import Case
from benchmarks.worker import Bench
from tests.ready_variants import COMPILED, READY, call, draw, reference
from variants import Problem, flex
from variants.catalogue import load, names
from variants.flex import BLOCK, Band, Compiler, block_map, blocks_of
from variants.tolerance import IMPLEMENTATION_TOLERANCE

BANDS = [Band(None, None), Band(None, 0), Band(0, 0), Band(5, 0), Band(127, 0), Band(128, 128), Band(300, 17)]
SIZES = [(1, 1), (128, 128), (129, 300), (300, 129), (301, 301), (700, 130), (1, 700), (600, 1024)]


def seen(problem: Problem, band: Band) -> torch.Tensor:
    """The band as a mask of pairs, written out."""
    ahead = torch.arange(problem.kv_tokens) - torch.arange(problem.tokens)[:, None] - problem.offset
    before, after = (10**9 if reach is None else reach for reach in (band.before, band.after))
    return (ahead <= after) & (ahead >= -before)


# ---- without compiling


def test_compiled_variants_are_kept_out_of_the_tests_of_many_shapes() -> None:
    assert not set(COMPILED) & set(READY)
    assert {name for name in names() if name.endswith("/flex")} <= {name for name in names() if load(name).compiled}
    assert not any(load(name).compiled for name in READY)


@pytest.mark.parametrize("band", BANDS, ids=str)
@pytest.mark.parametrize(("tokens", "kv_tokens"), SIZES)
def test_a_map_holds_every_visible_pair_and_its_whole_blocks_no_other(tokens: int, kv_tokens: int, band: Band) -> None:
    problem = Problem(tokens, kv_tokens=kv_tokens, mode="training")
    blocks = block_map(problem, band)
    assert blocks is not None and blocks.full_kv_num_blocks is not None and blocks.full_kv_indices is not None
    visible = seen(problem, band)
    query, key = torch.arange(tokens)[:, None], torch.arange(kv_tokens)
    assert torch.equal(band.mask(problem.offset)(query, query, query, key).expand_as(visible), visible)
    listed = {}
    for kind, counts, places in (
        ("partial", blocks.kv_num_blocks, blocks.kv_indices),
        ("whole", blocks.full_kv_num_blocks, blocks.full_kv_indices),
    ):
        for row, (count, order) in enumerate(zip(counts[0, 0].tolist(), places[0, 0].tolist(), strict=True)):
            listed |= {(row, place): kind for place in order[:count]}
    for row, rows in enumerate(visible.split(BLOCK)):
        for place, part in enumerate(rows.split(BLOCK, 1)):
            whole = bool(part.all()) and part.shape == (BLOCK, BLOCK)
            expected = "whole" if whole else "partial" if bool(part.any()) else None
            assert listed.get((row, place)) == expected
    assert blocks_of(problem, band) == len(listed)


def test_what_a_machine_lacks_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = Problem(8)
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert Compiler().unmet(problem) == "needs a C++ compiler (no-such-compiler is not on the path)"
    assert Compiler().unmet(problem) in load("memory_efficient/flex").refusals(problem)
    monkeypatch.setattr(shutil, "which", lambda _: "/usr/bin/c++")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    assert Compiler().unmet(problem) == "CPU: needs AVX2, and Linux"
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    monkeypatch.setattr(flex.sys, "platform", "linux")
    assert Compiler().unmet(problem) is None
    monkeypatch.setattr(flex, "find_spec", lambda _: None)
    assert Compiler().unmet(Problem(8, device="cuda")) == "needs Triton (not installed)"


@pytest.mark.parametrize("name", [name for name in names() if name.endswith("/flex")])
def test_what_the_library_does_not_do_is_refused(name: str) -> None:
    refusals = load(name).refusals
    assert "CPU: inference only" in refusals(Problem(8, mode="training"))
    assert "CPU: inference only" not in refusals(Problem(8, mode="training", device="cuda"))
    assert "no float64 (has float32, bfloat16, float16)" in refusals(Problem(8, dtype="float64"))
    assert "needs queries and keys" in refusals(Problem(8, kv_tokens=0))
    assert any(reason.startswith("no decode") for reason in refusals(Problem(1, kv_tokens=8, mode="decode")))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("mode", ["forward", "training"])
@pytest.mark.parametrize("name", [name for name in names() if name.endswith("/flex")])
def test_no_compiled_variant_does_less_than_the_formula_asks(name: str, mode: str, causal: bool) -> None:
    for tokens in (7, 300, 2000):
        problem = Problem(tokens, mode=mode, causal=causal, device="cuda")
        assert load(name).flops(problem) >= load(name).definition.useful_flops(problem)


# ---- compiled


def compiled(test: Callable[..., None]) -> Callable[..., None]:
    """Skipped where nothing compiles, with time to compile; torch's compiler imports what torch deprecates."""
    marks = (
        pytest.mark.skipif(not COMPILED, reason="nothing compiles on this machine"),
        pytest.mark.timeout(300),
        pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning"),
    )
    for mark in marks:
        test = mark(test)
    return test


FORMS: list[tuple[str, dict[str, Any], dict[str, int]]] = [
    ("memory_efficient/flex", {"causal": False, "dtype": "bfloat16"}, {}),
    ("local_window/flex", {"causal": True, "tokens": 333}, {"window": 2}),
    ("alibi/flex", {"causal": True, "kv_tokens": 333}, {}),
]
MORE_FORMS: list[tuple[str, dict[str, Any], dict[str, int]]] = [
    ("memory_efficient/flex", {"causal": True, "kv_tokens": 333}, {}),
    ("memory_efficient/flex", {"causal": True, "tokens": 1, "kv_tokens": 700, "dtype": "float16"}, {}),
    ("local_window/flex", {"causal": False}, {"window": 129}),
    ("local_window/flex", {"causal": False, "head_dim": 64, "batch": 2}, {"window": 256}),
    ("alibi/flex", {"causal": False}, {}),
    ("alibi/flex", {"causal": True, "tokens": 333, "dtype": "bfloat16"}, {}),
]


@compiled
@pytest.mark.parametrize(
    ("name", "fields", "parameters"),
    [*FORMS, *(pytest.param(*form, marks=pytest.mark.slow) for form in MORE_FORMS)],
    ids=str,
)
def test_a_compiled_output_is_the_oracles(name: str, fields: dict[str, Any], parameters: dict[str, int]) -> None:
    problem = Problem(**{"tokens": 301, "kv_tokens": 301, "heads": 4, "kv_heads": 2, "head_dim": 16} | fields)
    inputs = draw(problem)
    out = call(name, problem, inputs, parameters)
    expected = reference(name, problem, inputs, parameters)
    assert relative_error(out.double(), expected) <= IMPLEMENTATION_TOLERANCE[problem.dtype]
    blind = max(0, -problem.offset) if problem.causal else 0
    assert not out[:, :, :blind].any()  # queries that see no key


def test_every_compiled_variant_is_compared_with_its_oracle() -> None:
    assert set(COMPILED) <= {name for name, _, _ in FORMS}


@compiled
def test_a_compiled_case_is_measured_and_its_compiling_is_not(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def eager(*_: Any, **__: Any) -> None:
        raise AssertionError("the uncompiled form ran")

    library = import_module("torch._higher_order_ops.flex_attention")
    monkeypatch.setattr(library, "math_attention", eager)
    problem = Problem(333, kv_tokens=301, heads=4, kv_heads=2, head_dim=16, causal=True)  # compiled above, and kept
    bench = Bench("default")
    case = Case.of("local_window/flex", {"window": 2}, problem, "normal")
    found = bench.prepare(case, 1, True)
    assert found["kernel"] == "compiled"
    assert found["warm_seconds"] < 0.1
    predicted = load("local_window/flex").workspace_bytes(problem, window=2)
    assert found["extra_bytes"] <= predicted * 1.05 + 64 * 1024
    assert predicted <= 3 * found["extra_bytes"] + 10 * 2**20
    monkeypatch.setattr(torch._dynamo.config, "error_on_recompile", True)
    assert bench.sample()["sample"].wall_seconds < 1
    traced = bench.profile(case, tmp_path / "flex.trace.json.gz")
    assert traced["operators"][0]["name"].startswith("Torch-Compiled Region")
    assert traced["launches"] >= 1 and traced["flops"] == 0  # what its kernel does is declared, not counted
