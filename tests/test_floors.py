"""What nothing can go below: the worked case, its arithmetic by hand, and what floors must not claim."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import attnscape
from reports.cards import Card, card_named
from reports.ceilings import machine_card
from reports.choice import Budget, Question, choose
from reports.floors import exact_flop, floors_of
from reports.records import ResultsError
from tests.results_builder import BASELINE, DESCRIPTION, as_rows, landscape, measured, write

WORKED = Question(
    131072, batch=4, heads=32, kv_heads=8, head_dim=128, dtype="bfloat16", device="cuda", causal=True, mode="forward"
)
BUDGET = Budget(0.005, 8 * 2**30)
OPTIONS = (
    *("--tokens", "131072", "--batch", "4", "--heads", "32", "--kv-heads", "8", "--head-dim", "128"),
    *("--dtype", "bfloat16", "--causal", "--max-time", "5ms", "--max-mem", "8GiB"),
)
ROOT = Path(__file__).parent.parent


def proofs(card: str, question: Question = WORKED, budget: Budget = BUDGET) -> dict[tuple[str, str], float]:
    found = floors_of(question, budget, card_named(card)).proofs
    return {(proof.scope, proof.limit): proof.need for proof in found}


# ---- the worked case


def test_the_worked_case_on_an_h200() -> None:
    assert exact_flop(WORKED) == pytest.approx(5.6e14, rel=0.01)
    found = proofs("NVIDIA H200")
    assert found[("any", "memory")] == 10 * 2**30
    assert found[("exact", "time")] == pytest.approx(0.569, rel=0.01)
    assert ("any", "time") not in found, "2.2 ms of traffic are within 5 ms"
    floors = floors_of(WORKED, BUDGET, card_named("NVIDIA H200"))
    assert floors.seconds_any == pytest.approx(2.2e-3, rel=0.02)
    assert floors.options_any == "--max-ms 5 --max-mib 10300"
    assert floors.options_exact == "--max-ms 569 --max-mib 10300"


def test_the_worked_case_on_an_l4() -> None:
    found = proofs("NVIDIA L4")
    assert found[("any", "time")] == pytest.approx(36e-3, rel=0.02)
    assert ("exact", "time") in found
    assert ("any", "memory") in found


def test_the_worked_case_at_the_command_line(tmp_path: Path) -> None:
    """Without results, and without torch or numpy."""
    for card, said in (
        ("NVIDIA H200", "569 ms at least, 114 times the limit of 5 ms"),
        ("L4", "No variant at all can keep the time limit on NVIDIA L4"),
    ):
        arguments = ["choose", "--card", card, *OPTIONS]
        check = (
            f"import sys, attnscape; status = attnscape.main({arguments!r});"
            "sys.exit(status if not {'torch', 'numpy'} & set(sys.modules) else 9)"
        )
        command = [sys.executable, "-c", check]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False)
        assert (done.returncode, done.stderr) == (1, "")
        assert "Nothing fits, and nothing can: that is proved below." in done.stdout
        assert "q, k, v and the output take 10 GiB, 1.25 times the limit: 8 GiB" in done.stdout
        assert said in done.stdout
        assert "At most 5 ms, 8 GiB (8192 MiB)" in done.stdout


def test_json_has_the_proofs(capsys: pytest.CaptureFixture[str]) -> None:
    assert attnscape.main(["choose", "--card", "L4", *OPTIONS, "--json"]) == 1
    answer = json.loads(capsys.readouterr().out)
    assert answer["outcome"] == "impossible"
    assert {proof["scope"] for proof in answer["floors"]["proofs"]} == {"any", "exact"}


def test_the_nearest_budget_that_floors_leave_open_is_no_longer_impossible() -> None:
    card = card_named("NVIDIA L4")
    exact = floors_of(WORKED, BUDGET, card)
    assert exact.seconds_exact is not None
    wider = Budget(exact.seconds_exact, exact.size_bytes)
    assert floors_of(WORKED, wider, card).proofs == ()
    assert choose((), WORKED, wider, target=card).outcome == "unknown"


# ---- by hand, and what is not claimed


@pytest.mark.parametrize(
    ("fields", "flop"),
    [
        ({"causal": False}, 4 * 2 * 3 * 16 * 100),
        ({"causal": True}, 4 * 2 * 3 * 16 * 55),
        ({"causal": True, "mode": "training"}, 3 * 4 * 2 * 3 * 16 * 55),
        ({"causal": True, "mode": "decode"}, 4 * 2 * 3 * 16 * 10),
    ],
)
def test_operations_are_counted_by_hand(fields: dict[str, Any], flop: int) -> None:
    assert exact_flop(Question(10, batch=2, heads=3, head_dim=16, **fields)) == flop


def test_decode_may_leave_out_most_of_the_cache() -> None:
    question = replace(WORKED, mode="decode", batch=64)
    found = proofs("NVIDIA L4", question, Budget(0.005))
    assert ("any", "time") not in found
    assert found[("exact", "time")] == pytest.approx(64 * 2 * 8 * 131072 * 128 * 2 / 300e9, rel=0.01)


def test_what_a_cache_holds_need_not_be_moved() -> None:
    small = Question(1024, dtype="bfloat16", device="cuda")
    assert floors_of(small, Budget(1e-9), card_named("NVIDIA H200")).seconds_any == 0


def test_a_type_that_the_card_does_not_know_proves_nothing_of_exact_attention() -> None:
    floors = floors_of(replace(WORKED, dtype="float64"), Budget(1e-3), card_named("NVIDIA H200"))
    assert floors.seconds_exact is None
    assert {proof.scope for proof in floors.proofs} == {"any"}


def test_more_than_the_card_holds_is_impossible_without_any_limit() -> None:
    question = replace(WORKED, batch=64)
    (proof,) = floors_of(question, Budget(), card_named("NVIDIA H200")).proofs
    assert (proof.scope, proof.limit) == ("any", "memory")
    assert "all of NVIDIA H200" in proof.arithmetic


# ---- on the machine that was measured


def test_a_budget_is_proved_impossible_at_a_length_that_was_never_measured() -> None:
    rows = as_rows(landscape())
    question = Question(10**7)
    answer = choose(rows, question, Budget(max_bytes=2**30), description=DESCRIPTION)
    assert (answer.outcome, answer.fits) == ("impossible", False)
    with pytest.raises(ResultsError, match="more than 4 times"):
        choose(rows, question, Budget(), description={})


def test_only_exact_attention_is_ruled_out_where_approximations_are_left() -> None:
    answer = choose(as_rows(landscape()), Question(16384), Budget(max_seconds=0.5), description=DESCRIPTION)
    assert answer.floors is not None
    assert [proof.scope for proof in answer.floors.proofs] == ["exact"]
    assert answer.fits
    assert not any(one.exact for one in answer.fitting)


def test_a_measurement_below_a_measured_ceiling_raises_it() -> None:
    fast = as_rows([measured(BASELINE, 4096, figures={"seconds": 1e-3, "seconds_low": 1e-3, "seconds_high": 1e-3})])
    answer = choose(fast, Question(4096), Budget(max_seconds=2e-3), description=DESCRIPTION)
    assert answer.outcome == "fits"
    assert answer.floors is not None
    assert answer.floors.proofs == ()


def test_a_floor_never_stands_against_a_measurement() -> None:
    """Of a card of the table, whose figures are the vendor's."""
    description = DESCRIPTION | {"gpu": {"name": "NVIDIA L4", "memory_bytes": 24 * 10**9}}
    figures = {"seconds": 1e-3, "seconds_low": 1e-3, "seconds_high": 1e-3}
    rows = as_rows([measured(BASELINE, 16384, device="cuda", dtype="bfloat16", figures=figures)])
    question = Question(16384, device="cuda", dtype="bfloat16")
    answer = choose(rows, question, Budget(max_seconds=1e-3), description=description)
    assert (answer.outcome, answer.floors) == ("fits", None)
    assert "the floors of NVIDIA L4 are left out" in answer.notes[0]


def test_the_card_of_a_machine() -> None:
    gpu = {"name": "NVIDIA H200", "memory_bytes": 150 * 10**9, "l2_bytes": 6 * 10**7}
    assert machine_card(DESCRIPTION | {"gpu": gpu}, (), "cuda") == card_named("NVIDIA H200")
    unknown = machine_card(DESCRIPTION | {"gpu": gpu | {"name": "Z9"}}, (), "cuda:0")
    assert isinstance(unknown, Card)
    assert (unknown.name, unknown.memory_bytes, unknown.cache_bytes) == ("Z9", 150 * 10**9, 6 * 10**7)
    cpu = machine_card(DESCRIPTION | {"gpu": gpu}, (), "cpu")
    assert cpu is not None
    assert cpu.name == "Example CPU at 2.60 GHz"
    for broken in ({}, {"ceilings": 5}, DESCRIPTION | {"gpu": "big"}, DESCRIPTION | {"memory_bytes": "many"}):
        assert machine_card(broken, (), "cpu") is None


def test_an_error_below_the_rounding_of_the_type_is_said_without_rows() -> None:
    answer = choose((), WORKED, Budget(max_error=1e-3), target=card_named("H200"))
    assert any("rounding the output alone costs 0.0015" in note for note in answer.notes)
    answer = choose((), WORKED, Budget(max_error=2e-3), target=card_named("H200"))
    assert not any("rounding" in note for note in answer.notes)


# ---- card files at the command line


def test_a_card_file_with_a_missing_field_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "card.toml"
    path.write_text('name = "Mine"\nmemory_bytes = 1000\n', "utf-8")
    assert attnscape.main(["choose", "--card", str(path), "--tokens", "256"]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert "describes no card: Object missing required field `bytes_per_second`" in err


def test_results_that_are_named_must_be_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nowhere = str(tmp_path / "nowhere")
    assert attnscape.main(["choose", "--card", "L4", "--tokens", "256", "--results", nowhere]) == 2
    assert "no results at" in capsys.readouterr().err


def test_times_of_a_cpu_are_not_carried_to_a_card(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(write(tmp_path, landscape()))
    asked = ["choose", "--card", "L4", "--tokens", "4096", "--results", folder]
    assert attnscape.main([*asked, "--device", "cpu"]) == 1
    assert "times of a CPU are not carried to NVIDIA L4" in capsys.readouterr().out
    assert attnscape.main(asked) == 1
    assert "Nothing was measured for forward, not causal, float32 on cuda" in capsys.readouterr().out
