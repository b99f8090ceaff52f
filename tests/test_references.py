"""References: made once, by a process that runs no variant; of these inputs, or an error; deleted at the end."""

import fcntl
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks import reference_files, references, worker
from benchmarks.accuracy import measure_errors, measure_gradient_error
from benchmarks.inputs import make_inputs
from benchmarks.measurement import Case, Measurement
from benchmarks.provenance import Provenance
from benchmarks.reference_files import Files, own_bytes, shared_bytes
from benchmarks.references import References
from benchmarks.sweep import Settings, Sweep
from benchmarks.worker import Bench, answer
from benchmarks.workers import Fault, Workers
from variants import Problem
from variants.catalogue import load
from variants.variant import Attention

SMALL = Problem(tokens=40, heads=2, head_dim=16)


def case_of(name: str, problem: Problem = SMALL, inputs: str = "normal", **parameters: int) -> Case:
    return Case.of(name, load(name).definition.resolve(parameters), problem, inputs)


def files_of(case: Case, folder: Path) -> Files:
    """The files of a case, made in this process."""
    files = Files(folder / "shared.safetensors", folder / "own.safetensors")
    assert answer(Bench("default"), "refer_shared", (case, 1, files.shared)) == {"status": "ok"}
    assert answer(Bench("default"), "refer_own", (case, 1, files.shared, files.own)) == {"status": "ok"}
    return files


def prepared(case: Case, files: Files | None) -> dict[str, Any]:
    """What the instrument answers, but for the time it took."""
    found = answer(Bench("default"), "prepare", (case, 1, False, files))
    return {name: value for name, value in found.items() if name != "call_seconds"}


# ---- the same figures


PROBLEMS = {
    "grouped": Problem(tokens=60, heads=4, kv_heads=2, head_dim=32, causal=True),
    "sampled-rows": Problem(tokens=1100, heads=1, head_dim=16),
    "training": Problem(tokens=40, heads=2, kv_heads=1, head_dim=32, causal=True, mode="training"),
    "training-double": Problem(tokens=33, heads=2, head_dim=16, mode="training", dtype="float64"),
    "decode-half": Problem(tokens=1, kv_tokens=70, heads=2, head_dim=32, mode="decode", dtype="bfloat16"),
}


@pytest.mark.parametrize("kind", ["normal", "smooth", "captured"])
@pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)
@pytest.mark.parametrize(
    "name", ["full/matmul", "memory_efficient/sdpa_flash", "local_window/tiled", "retention/chunked"]
)
def test_figures_are_the_same_wherever_the_reference_is_made(
    name: str, problem: Problem, kind: str, tmp_path: Path
) -> None:
    case = case_of(name, problem, kind)
    if load(name).refusals(problem) or (kind == "captured" and problem.head_dim < 32):
        pytest.skip("refused")
    if kind == "captured" and problem.tokens > 512:
        pytest.skip("too long")
    found = prepared(case, files_of(case, tmp_path))
    assert found["status"] == "ok", found
    assert found == prepared(case, None)
    inputs, parameters = make_inputs(problem, kind), case.parameters
    variant = load(name)
    q, k, v = (x.requires_grad_(problem.mode == "training") for x in inputs)
    layout = (lambda x: x.transpose(1, 2)) if variant.layout == "bnhd" else (lambda x: x)
    out = layout(variant.build(problem, **parameters)(*(layout(x) for x in (q, k, v))))
    errors = measure_errors(out, inputs, problem, variant.definition, parameters)
    names = {
        "implementation": "implementation_error",
        "approximation": "approximation_error",
        "row_max": "implementation_row_max",
    }
    assert {n: getattr(errors, n) for n in names} == pytest.approx({n: found[m] for n, m in names.items()}, rel=1e-3)
    if problem.mode == "training":
        grad = reference_files.output_gradient(problem, q)
        error = measure_gradient_error(lambda: (out, (q, k, v), grad), problem, variant.definition, parameters)
        assert found["gradient_error"] == pytest.approx(error, rel=0.2)


# ---- what is not as it should be


def install(monkeypatch: pytest.MonkeyPatch, wrong: Callable[[Attention, Tensor, Tensor, Tensor], Tensor]) -> None:
    """Let the instrument find a variant of full attention that misbehaves."""
    right = load("full/matmul")

    def build(problem: Problem, **parameters: int) -> Attention:
        run = right.build(problem, **parameters)
        return lambda q, k, v: wrong(run, q, k, v)

    monkeypatch.setattr(worker, "load", lambda _: replace(right, build=build))


@pytest.mark.parametrize("mode", ["forward", "training"])
def test_a_wrong_variant_is_wrong_by_the_files(monkeypatch: pytest.MonkeyPatch, mode: str, tmp_path: Path) -> None:
    case = case_of("full/matmul", SMALL.with_(mode=mode))
    files = files_of(case, tmp_path)
    install(monkeypatch, lambda run, q, k, v: 1.001 * run(q, k, v))
    assert prepared(case, files)["reason"].startswith("implementation error")
    install(monkeypatch, lambda run, q, k, v: 1.1 * run(q, k, v) - 0.1 * run(q, k, v).detach())
    found = prepared(case, files)
    assert (found["status"], found.get("reason", "")[:14]) == (
        ("wrong", "gradient error") if mode == "training" else ("ok", "")
    )


@pytest.mark.parametrize("handed", [True, False])
def test_a_variant_that_writes_into_its_inputs_is_wrong(
    monkeypatch: pytest.MonkeyPatch, handed: bool, tmp_path: Path
) -> None:
    def spoil(run: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = run(q, k, v)
        v[0, 0, 0, 0] += 1
        return out

    case = case_of("full/matmul")
    files = files_of(case, tmp_path) if handed else None
    install(monkeypatch, spoil)
    assert prepared(case, files) == {"status": "wrong", "reason": "changed its input v"}


def test_inputs_that_were_changed_are_an_error(tmp_path: Path) -> None:
    case = case_of("full/matmul")
    files = files_of(case, tmp_path)
    with reference_files.safe_open(files.shared, "pt") as opened:
        told = opened.metadata()
    tensors = {name: x.clone() for name, x in load_file(files.shared).items()}
    tensors["k"][0, 1, 7, 3] += 1e-6
    save_file(tensors, files.shared, told)
    assert prepared(case, files)["reason"] == "its inputs are not, or no longer, those that its reference was made of"


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (case_of("local_window/tiled", window=9), "own.safetensors is of another case: its parameters differ"),
        (case_of("full/matmul"), "own.safetensors is of another case: its definition, parameters differ"),
        (case_of("local_window/tiled", inputs="smooth", window=8), "shared.safetensors is of another case: its inputs"),
        (case_of("local_window/tiled", SMALL.with_(causal=True), window=8), "its causal differ"),
    ],
)
def test_a_file_of_another_case_is_an_error(other: Case, said: str, tmp_path: Path) -> None:
    found = prepared(case_of("local_window/tiled", window=8), files_of(other, tmp_path))
    assert found["status"] == "error" and said in found["reason"]


def test_own_rows_on_other_inputs_are_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    case = case_of("full/matmul")
    files = files_of(case, tmp_path)
    monkeypatch.setattr(reference_files, "make_inputs", lambda *_: make_inputs(SMALL, "peaky"))
    assert answer(Bench("default"), "refer_shared", (case, 1, files.shared))["status"] == "ok"
    found = prepared(case, files)
    assert found["reason"] == "own.safetensors was made of other inputs than those of shared.safetensors"


def test_a_file_is_as_large_as_predicted(tmp_path: Path) -> None:
    for problem in PROBLEMS.values():
        files = files_of(case_of("full/matmul", problem), tmp_path)
        for file, predicted in ((files.shared, shared_bytes(problem)), (files.own, own_bytes(problem))):
            assert sum(x.numel() * x.element_size() for x in load_file(file).values()) == predicted


# ---- the worker that makes them


@pytest.fixture(scope="module")
def workers() -> Iterator[Workers]:
    with Workers() as started:
        yield started


@pytest.fixture
def kept(workers: Workers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[References]:
    """References whose files are in a folder of the test's own."""
    monkeypatch.setattr(references, "MEMORY_FOLDER", tmp_path)
    monkeypatch.setattr(references, "LIMIT_BYTES", 2**22)
    made = References(workers, 1, 60.0)
    yield made
    made.close()


def noted(kept: References, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The requests to the worker, as they come."""
    asked: list[str] = []
    real = kept._ask

    def ask(method: str, arguments: tuple[Any, ...]) -> None:
        asked.append(f"{method} {arguments[0].variant} {arguments[0].inputs}")
        real(method, arguments)

    monkeypatch.setattr(kept, "_ask", ask)
    return asked


def test_each_reference_of_a_sweep_is_made_once(
    workers: Workers, kept: References, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = noted(kept, monkeypatch)
    sweep = Sweep(workers, Settings(1.0, 1), {"key": "cpu-1", "ceilings": {}}, Provenance("c0de", "", True))
    sweep.references = kept
    names = ("full/matmul", "local_window/masked", "memory_efficient/chunked", "local_window/tiled")
    cases = [case_of(name, inputs=kind) for name in names for kind in ("normal", "smooth")]
    rows: list[Measurement] = []
    sweep.measure_errors(cases, rows.append)
    assert [(row.case, row.status) for row in rows] == [(case, "ok") for case in cases]
    for row in rows:
        found = prepared(row.case, None)
        assert {name: getattr(row, name) for name in found if name != "status"} == {
            name: value for name, value in found.items() if name != "status"
        }
    assert asked == [
        f"{method} {name} {kind}"
        for name, methods in (("full/matmul", ("refer_shared", "refer_own")), ("local_window/masked", ("refer_own",)))
        for kind in ("normal", "smooth")
        for method in methods
    ]
    assert list(tmp_path.iterdir()) == []  # deleted, the folder included
    assert kept._worker is None


def test_a_worker_that_is_killed_costs_its_own_definition_only(
    kept: References, workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept.of(case_of("full/matmul"))
    asked = noted(kept, monkeypatch)
    assert kept._worker is not None
    os.kill(kept._worker.pid, signal.SIGKILL)
    for name in ("local_window/masked", "local_window/tiled"):
        with pytest.raises(Fault, match="its reference: killed by SIGKILL") as caught:
            kept.of(case_of(name))
        assert caught.value.status == "out_of_memory"
    assert kept.of(case_of("linear_scan/chunked")) is not None
    assert kept.of(case_of("memory_efficient/chunked")) is not None
    assert [word.split()[1] for word in asked] == ["local_window/masked", "linear_scan/chunked"]


def test_inputs_that_cannot_be_had_are_refused_as_ever(kept: References) -> None:
    with pytest.raises(Fault) as caught:
        kept.of(case_of("full/matmul", SMALL.with_(tokens=600, kv_tokens=600, head_dim=32), "captured"))
    assert (caught.value.status, caught.value.reason) == (
        "unsupported",
        "captured inputs hold 512 tokens: 600 is too long",
    )


class Instant:
    """Stands in for workers whose files are written at once, and for the worker itself."""

    pid = 0

    def start(self) -> "Instant":
        return self

    def ask(self, method: str, arguments: tuple[Any, ...], _: float) -> dict[str, Any]:
        if arguments[0].inputs == "peaky" and method == "refer_own":
            arguments[-1].with_suffix(".part").write_bytes(b"half")
            return {"status": "error", "reason": "OSError: no space"}
        arguments[-1].write_bytes(b"whole")
        return {"status": "ok"}

    def end(self) -> None:
        pass


@pytest.fixture
def instant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[References]:
    monkeypatch.setattr(references, "MEMORY_FOLDER", tmp_path)
    made = References(Instant(), 1, 60.0)  # type: ignore[arg-type]  # stands in
    yield made
    made.close()


def test_no_more_is_kept_than_the_limit(instant: References, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shared, own = shared_bytes(SMALL), own_bytes(SMALL)
    monkeypatch.setattr(references, "LIMIT_BYTES", shared + 2 * own)
    first, second, third = (instant.of(case_of("local_window/tiled", window=window)) for window in (8, 16, 24))
    assert first is not None and second is not None and third is not None
    assert first.shared == third.shared and third.shared.exists()
    assert [files.own.exists() for files in (first, second, third)] == [False, True, True]
    again = instant.of(case_of("local_window/tiled", window=16))
    assert again == second  # not made anew
    other = instant.of(case_of("local_window/tiled", inputs="smooth", window=16))
    assert other is not None and other.own.exists() and other.shared.exists() and not third.shared.exists()
    assert instant.of(case_of("full/matmul", SMALL.with_(tokens=4000, kv_tokens=4000))) is None


def test_half_a_file_is_not_kept_and_not_tried_again(instant: References, tmp_path: Path) -> None:
    case = case_of("full/matmul", inputs="peaky")
    for _ in range(2):
        with pytest.raises(Fault, match="its reference: OSError: no space"):
            instant.of(case)
    assert list(tmp_path.rglob("*.part")) == []
    assert instant.of(case_of("full/matmul")) is not None


def test_seeds_and_devices_are_told_apart() -> None:
    case = case_of("full/matmul")
    other = msgspec.structs.replace(case, seed=1)
    assert references.shared_key(case) != references.shared_key(other)
    assert references.shared_key(case) == references.shared_key(case_of("local_window/tiled"))
    window = load("local_window/tiled").definition
    keys = {references.own_key(case_of("local_window/tiled", window=each), window) for each in (8, 8, 9)}
    assert len(keys) == 2


def test_what_a_killed_run_left_is_deleted_by_the_next(instant: References, tmp_path: Path) -> None:
    names = ("forsaken", "held", "young", "without-lock")
    folders = {name: tmp_path / f"{references.PREFIX}{name}" for name in names}
    for name, folder in folders.items():
        folder.mkdir()
        if name != "without-lock":
            (folder / "lock").touch()
        if name != "young":
            os.utime(folder, (1, 1))
    handle = os.open(folders["held"] / "lock", os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    instant.of(case_of("full/matmul"))
    os.close(handle)
    assert {name for name, folder in folders.items() if folder.exists()} == {"held", "young", "without-lock"}


def test_without_room_in_memory_the_disk_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(references.tempfile, "gettempdir", lambda: str(tmp_path / "disk"))
    monkeypatch.setattr(references, "MEMORY_FOLDER", tmp_path / "memory")
    monkeypatch.setattr(references, "_free", lambda folder: 2**27 if folder.name == "memory" else 2**40)
    (tmp_path / "memory").mkdir()
    parent, limit = references._place()
    assert parent == tmp_path / "disk" and 0 < limit <= references.LIMIT_BYTES
    monkeypatch.setattr(references, "LIMIT_BYTES", 2**26)
    assert references._place()[0] == tmp_path / "memory"
