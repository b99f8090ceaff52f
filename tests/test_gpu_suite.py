"""What `attnscape gpu` would do on a card, and how it judges what was measured; nothing here needs one."""

import json
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import attnscape
from benchmarks.campaign import InvalidRequest, Outcome, Request
from benchmarks.gpu_suite import PROOF_INPUTS, Stage, cuda_variants, further_problems, proof_problems, run_suite, stages
from benchmarks.profile_session import Asked, file_stem
from benchmarks.workers import Workers
from reports.gpu_goals import LENGTHS, Goal, goals
from tests.results_builder import as_rows, case, line
from variants import Problem
from variants.catalogue import load, names


def test_every_variant_for_cuda_is_proven_and_mapped() -> None:
    wanted = {name for name in names() if "cuda" in load(name).devices}
    by_name = {stage.name: stage for stage in stages("cuda")}
    assert set(cuda_variants()) == wanted
    assert set(by_name["landscape"].variants) == wanted
    proofs = ("right, with gradients", "right: other packages", "right")
    gradients, others, forward = (set(by_name[name].variants) for name in proofs)
    assert gradients | others | forward == wanted and not (gradients & forward or gradients & others)
    assert all(("training" in load(name).modes) == (name not in forward) for name in wanted)
    assert {name.partition("/")[2] for name in others} == {"fla", "flash_attn_4"}
    first = by_name["right: the card's own"]
    assert [name.partition("/")[2] for name in first.variants[:5]] == ["triton"] * 5
    assert all(load(name).devices == ("cuda",) and name in gradients for name in first.variants)
    assert set(first.problems) <= set(by_name["right, with gradients"].problems)
    further = by_name["right: further shapes"]
    assert set(further.variants) == gradients and list(by_name)[4] == further.name  # after all other proofs
    assert not set(further.problems) & set(by_name["right, with gradients"].problems)
    assert sum(stage.share for stage in by_name.values()) == pytest.approx(1.0)
    assert "local_window/tiled" in by_name["window"].variants
    assert by_name["window"].parameters == {"window": 2048}
    for name in ("crossing", "scans"):
        kinds = {variant.partition("/")[2] for variant in by_name[name].variants}
        assert {"triton", "fla", "chunked"} <= kinds and "recurrent" not in kinds


def test_every_stage_can_be_planned() -> None:
    for stage in stages("cuda:1"):
        assert all(problem.device == "cuda:1" for problem in stage.problems)
        if stage.name in ("exact", "window", "scans"):
            timed, untimed = stage.request().cases()
            assert len(timed) == len(stage.variants) * len(stage.problems) and untimed == []
    proof = proof_problems("cuda", "training")
    assert {problem.head_dim for problem in proof} == {32, 64, 128, 256}
    assert {problem.dtype for problem in proof} == {"bfloat16", "float16"}
    assert {problem.mode for problem in proof} == {"training"}
    assert any(problem.group > 1 for problem in proof)
    assert any(problem.tokens != problem.kv_tokens for problem in proof)
    assert all(problem.tokens % 16 for problem in proof if problem.tokens not in (1, 1000))
    further = {
        (p.head_dim, p.dtype, p.causal) for p in further_problems("cuda") if p.group > 1 and p.mode == "training"
    }
    assert further == {(*shape, causal) for shape in ((96, "bfloat16"), (256, "float16")) for causal in (True, False)}


@pytest.mark.parametrize("name", [name for name in cuda_variants() if name.endswith("/flash_attn_4")])
def test_another_packages_kernel_is_proven_by_both_masks_and_with_grouped_heads(name: str) -> None:
    others = {stage.name: stage for stage in stages("cuda")}["right: other packages"]
    assert name in others.variants
    assert {problem.causal for problem in others.problems} == {True, False}
    assert any(problem.group > 1 for problem in others.problems)


def test_the_landscape_is_whole_and_goes_curve_by_curve() -> None:
    problems = {stage.name: stage for stage in stages("cuda")}["landscape"].problems
    lengths = [2**exponent for exponent in range(8, 18)]
    assert len(set(problems)) == len(problems) == 2 * 3 * 2 * len(lengths)
    assert [problem.length for problem in problems] == 12 * lengths
    first = problems[0]
    assert (first.head_dim, first.mode, first.causal, first.dtype) == (128, "forward", True, "bfloat16")
    assert {(p.head_dim, p.mode, p.causal) for p in problems} == {
        (head_dim, mode, causal)
        for head_dim in (64, 128)
        for mode in ("forward", "training", "decode")
        for causal in (True, False)
    }


def test_what_a_stage_leaves_goes_to_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = []
    clock = [50.0]
    monkeypatch.setattr("benchmarks.gpu_suite.monotonic", lambda: clock[0])
    start = Workers.__enter__

    def slow_start(workers: Workers) -> Workers:
        clock[0] += 10
        return start(workers)

    monkeypatch.setattr(Workers, "__enter__", slow_start)
    crews = set()

    def campaign(request: Request, out: Path, how: Any, *_: Any, machine: Any, workers: Any, **__: Any) -> Outcome:
        assert machine == ({"stage": len(given)} if given else None)  # read once, and handed on
        assert how.keep_workers
        crews.add(workers)
        given.append((how.seconds, how.stop_after_seconds, how.energy))
        clock[0] += 1
        return Outcome(seconds=1.0, interrupted=len(given) == 3, machine={"stage": len(given)})

    monkeypatch.setattr("benchmarks.gpu_suite.run_campaign", campaign)
    monkeypatch.setattr("benchmarks.gpu_suite.require_device", lambda _: None)
    problem = (Problem(tokens=8),)
    chosen = [Stage(str(number), 0.25, ("full",), problem, energy=number == 1) for number in range(4)]
    done = run_suite(tmp_path, "cuda", 100.0, lambda _: lambda *_: None, chosen)
    assert [stage.name for stage, _ in done] == ["0", "1", "2"]
    # Of a hundred seconds the start took ten.
    assert given == [(22.5, 22.5, False), (89 / 3, 89 / 3, True), (44.0, 44.0, False)]
    assert len(crews) == 1  # one for all: to start another takes seconds


def test_after_the_proofs_a_kernel_is_profiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    ran: list[tuple[str, int]] = []
    faults = ["", "unused", "no answer within 30 s"]

    def campaign(request: Request, out: Path, how: object, progress: str, **_: Any) -> Outcome:
        ran.append((progress, len(said)))
        return Outcome(machine={"key": "here"})

    def profiled(asked: Asked, machine: object, out: Path, *_: object) -> Path:
        case = asked.case
        assert (case.variant, case.head_dim, machine) == ("local_window/triton", 8, {"key": "here"})
        assert 0 < asked.timeout_seconds <= 30 and out.is_dir()
        if fault := faults[len(said)]:
            raise InvalidRequest(fault)
        file = out / f"{file_stem(case)}.json"
        file.touch()
        return file

    monkeypatch.setattr("benchmarks.gpu_suite.run_campaign", campaign)
    monkeypatch.setattr("benchmarks.gpu_suite.require_device", lambda _: None)
    monkeypatch.setattr("benchmarks.gpu_suite.Workers", nullcontext)
    monkeypatch.setattr("benchmarks.gpu_profile.profile_case", profiled)
    proof = Stage("proof", 0.4, ("full",), (Problem(tokens=8, head_dim=8),), (PROOF_INPUTS,))
    chosen = [proof, replace(proof, name="more"), Stage("times", 0.2, (), ())]
    for out in (tmp_path, tmp_path, tmp_path / "other"):
        run_suite(out, "cuda", 60.0, lambda name: name, chosen, said.append)  # type: ignore[arg-type, return-value]  # a name does for the progress
    assert ran[:4] == [("proof", 0), ("more", 0), ("times", 1), ("proof", 1)]  # before what is timed
    file = tmp_path / "profiles" / "local_window-triton-window256-forward-full-8-float32-cpu.json"
    assert said[:2] == 2 * [f"Profile of local_window/triton: {file}"]  # made once
    assert said[2] == "No profile of local_window/triton: no answer within 30 s"
    run_suite(tmp_path / "late", "cuda", 1e-9, lambda name: name, chosen, said.append)  # type: ignore[arg-type, return-value]  # likewise
    assert said[3] == "No profile of local_window/triton: no time was left"
    assert len(ran) == 12


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card")
def test_without_a_card_one_line_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert attnscape.main(["gpu", "--out", str(tmp_path / "out")]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and "CUDA" in err
    assert not (tmp_path / "out").exists()


def test_the_plan_needs_no_card(capsys: pytest.CaptureFixture[str]) -> None:
    assert attnscape.main(["gpu", "--plan"]) == 0
    out = capsys.readouterr().out
    assert all(stage.name in out for stage in stages("cuda"))


@pytest.mark.parametrize(("name", "status"), [("NVIDIA H200", 1), ("NVIDIA A100-SXM4-80GB", 0)])
def test_a_missed_goal_is_a_failure_on_the_card_that_it_is_named_for(
    name: str, status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    slow = on_card("memory_efficient/sdpa_flash", 16384, 1.0, exact=True)
    (tmp_path / "measurements.jsonl").write_text(json.dumps(slow) + "\n")
    outcome = Outcome(machine={"key": slow["machine"], "gpu": {"name": name}})
    monkeypatch.setattr("benchmarks.gpu_suite.run_suite", lambda *_, **__: [(stages("cuda")[0], outcome)])
    assert attnscape.main(["gpu", "--out", str(tmp_path)]) == status
    assert ("named for an H200" in capsys.readouterr().out) is (status == 0)


def test_ctrl_c_before_the_card_is_known_is_no_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "measurements.jsonl").write_text(json.dumps(on_card("full/matmul", 16384, 1.0)) + "\n")
    monkeypatch.setattr(
        "benchmarks.gpu_suite.run_suite", lambda *_, **__: [(stages("cuda")[0], Outcome(interrupted=True))]
    )
    assert attnscape.main(["gpu", "--out", str(tmp_path)]) == attnscape.INTERRUPTED


# ---- goals


def on_card(variant: str, tokens: int, seconds: float, *, exact: bool = False, **fields: Any) -> dict[str, Any]:
    shape = {"heads": 16, "head_dim": 128, "dtype": "bfloat16", "device": "cuda", "causal": True}
    a_case = case(variant, tokens, **shape | fields)
    pairs = tokens * (tokens + 1) // 2
    return line(a_case, exact=exact, seconds=seconds, useful_flops=4 * 16 * 128 * pairs)


def judged(*lines: dict[str, Any], card: str = "NVIDIA H200") -> dict[str, Goal]:
    return {goal.name: goal for goal in goals(as_rows(lines), card)}


def test_goals_are_open_without_figures() -> None:
    found = judged(on_card("memory_efficient/sdpa_flash", 16384, 1.0, exact=True, head_dim=64))
    assert len(found) == 7
    assert all(goal.reached is None for goal in found.values())


@pytest.mark.parametrize(("tflops", "reached"), [(599, False), (601, True)])
def test_the_exact_goal_is_in_useful_flops(tflops: int, reached: bool) -> None:
    flops = 4 * 16 * 128 * (16384 * 16385 // 2)
    slow = on_card("full/matmul", 16384, 1.0, exact=True)
    best = on_card("memory_efficient/sdpa_cudnn", 16384, flops / (tflops * 1e12), exact=True)
    goal = judged(slow, best)["best exact variant, 16384 tokens"]
    assert goal.reached is reached
    assert goal.found == f"{tflops} TFLOP/s, memory_efficient/sdpa_cudnn"


@pytest.mark.parametrize(("factor", "reached"), [(9.9, False), (10.5, True)])
def test_the_window_is_held_against_the_best_full_attention(factor: float, reached: bool) -> None:
    rows = [
        on_card("memory_efficient/sdpa_flash", 32768, 0.020, exact=True),
        on_card("memory_efficient/sdpa_cudnn", 32768, 0.015, exact=True),
        on_card("local_window/triton", 32768, 0.015 / factor, parameters={"window": 2048}),
        on_card("local_window/triton", 32768, 1e-9, parameters={"window": 256}),
    ]
    goal = judged(*rows)["window of 2048, 32768 tokens"]
    assert goal.reached is reached
    assert goal.found == f"{factor:.1f}× memory_efficient/sdpa_cudnn"


def side_by_side(speed: float = 2.0, **slower: float) -> list[dict[str, Any]]:
    """At each planned length every linear kernel `speed` times as fast as exact, but those of `slower`."""
    return [
        on_card(variant, tokens, tokens / factor, exact=variant.startswith("memory"))
        for tokens in (*LENGTHS, 32768)
        for variant, factor in (
            ("memory_efficient/sdpa_flash", 1.0),
            *(
                (f"{folder}/{kind}", slower.get(kind, speed))
                for folder in ("linear_scan", "retention")
                for kind in KINDS
            ),
            ("blockwise_low_rank/triton", speed),
        )
    ]


KINDS = ("triton", "fla", "chunked")
FASTER = ("linear_scan/triton, 4096 tokens and more", "retention/triton, 4096 tokens and more")
LOW_RANK = "blockwise_low_rank/triton, 8192 tokens and more"


def test_own_kernels_that_are_faster_at_every_length_reach_their_goals() -> None:
    found = judged(*side_by_side())
    assert all(found[name].reached is True for name in (*FASTER, LOW_RANK, "linear_scan/triton", "retention/triton"))
    assert found[LOW_RANK].found == "2.00× at 8192, 2.00× at 16384, 2.00× at 32768"
    assert found["linear_scan/triton"].found.startswith("1.00× at 4096, 1.00× at 8192")


def test_another_kernel_of_the_definition_reaches_no_goal() -> None:
    found = judged(*side_by_side(triton=0.9))
    assert all(found[name].reached is False for name in FASTER)
    assert found["retention/triton"].found.startswith("0.45× at 4096")
    others = [row for row in side_by_side() if not row["case"]["variant"].endswith("/triton")]
    assert all(goal.reached is not True for goal in judged(*others).values())


@pytest.mark.parametrize("length", LENGTHS)
def test_every_planned_length_is_needed(length: int) -> None:
    def without_exact(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [row for row in rows if row["case"]["tokens"] != length or not row["exact"]]

    found = judged(*without_exact(side_by_side()))
    for name in (*FASTER, *([LOW_RANK] if length >= 8192 else [])):
        assert found[name].reached is None
        assert found[name].found.endswith(f"; not measured together at {length}")
    assert found["linear_scan/triton"].reached is True  # which needs no exact variant
    assert judged(*without_exact(side_by_side(triton=0.9)))[FASTER[0]].reached is False


def test_one_slow_length_misses() -> None:
    for tokens in (*LENGTHS, 32768):
        rows = [row for row in side_by_side() if row["case"]["variant"] != "retention/triton"]
        mine = [on_card("retention/triton", at, at * (2.0 if at == tokens else 0.5)) for at in (*LENGTHS, 32768)]
        found = judged(*rows, *mine)
        assert found[FASTER[1]].reached is False and found["retention/triton"].reached is False


def test_the_planned_lengths_are_the_suites() -> None:
    by_name = {stage.name: stage for stage in stages("cuda")}
    assert tuple(problem.length for problem in by_name["crossing"].problems) == LENGTHS
    kernels = {f"{folder}/{kind}" for folder in ("linear_scan", "retention") for kind in ("triton", "fla")}
    assert kernels | {"blockwise_low_rank/triton"} <= set(by_name["crossing"].variants)


def test_grouped_heads_reach_no_goal() -> None:
    rows = [row | {"case": row["case"] | {"kv_heads": 4}} for row in side_by_side()]
    assert all(goal.reached is None for goal in judged(*rows).values())


def test_another_card_is_held_to_nothing() -> None:
    for rows in (side_by_side(), side_by_side(triton=0.9)):
        found = judged(*rows, card="NVIDIA A100-SXM4-80GB")
        assert all(goal.reached is None and goal.found.endswith("; named for an H200") for goal in found.values())
        assert found["linear_scan/triton"].found.split(";")[0] == judged(*rows)["linear_scan/triton"].found


def test_a_wrong_kernel_reaches_nothing() -> None:
    wrong = on_card("memory_efficient/sdpa_flash", 16384, 1e-9, exact=True) | {"status": "wrong", "reason": "error"}
    assert judged(wrong)["best exact variant, 16384 tokens"].reached is None
