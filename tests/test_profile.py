"""`attnscape profile`: what is counted, what is drawn, what is said to bound a call, and what is refused."""

import gzip
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

import attnscape
from benchmarks.operator_counts import Counting, size_of, visible_pairs
from benchmarks.profiling import thinned
from reports.profile_record import Profile, read_profile
from reports.records import ResultsError


def counted(call: Any) -> dict[str, tuple[int, int, int]]:
    """Calls, FLOPs and bytes by operator."""
    with Counting() as counting:
        call()
    return {name: (count.calls, count.flops, count.bytes) for name, count in counting.counts.items()}


def test_operators_are_counted_by_hand() -> None:
    a, b = torch.ones(3, 4), torch.ones(4, 5)
    assert counted(lambda: a @ b) == {"aten::mm": (1, 2 * 3 * 4 * 5, 4 * (12 + 20 + 15))}
    assert counted(lambda: a + a) == {"aten::add": (1, 0, 4 * 36)}
    assert counted(lambda: a.add_(1)) == {"aten::add_": (1, 0, 4 * 24)}
    assert counted(lambda: a.copy_(torch.ones(4))) == {
        "aten::ones": (1, 0, 16),
        "aten::copy_": (1, 0, 4 * (4 + 12)),
    }


def test_views_and_empty_memory_move_nothing() -> None:
    a = torch.ones(6, 4)
    assert counted(lambda: a.view(2, 12).transpose(0, 1)[1:].expand(11, 2).detach()) == {}
    assert counted(lambda: torch.empty_like(a))["aten::empty_like"][1:] == (0, 0)
    assert size_of(torch.ones(1, 4).expand(100, 4)) == 16
    assert size_of(torch.ones(0, 4)) == 0


@pytest.mark.parametrize("causal", [False, True])
def test_fused_attention_is_counted_with_its_mask(causal: bool) -> None:
    q, k, v = (torch.randn(2, 3, tokens, 8, requires_grad=True) for tokens in (5, 7, 7))
    pairs = 1 + 2 + 3 + 4 + 5 if causal else 35

    def call() -> None:
        scaled_dot_product_attention(q, k, v, is_causal=causal).sum().backward()

    found = counted(call)
    forward = 2 * 2 * 3 * pairs * 16
    assert found["aten::_scaled_dot_product_flash_attention_for_cpu"][1] == forward
    assert found["aten::_scaled_dot_product_flash_attention_for_cpu_backward"][1] == int(2.5 * forward)


def test_more_queries_than_keys_have_their_pairs_counted() -> None:
    assert visible_pairs(4, 2, causal=True) == 1 + 2 + 2 + 2
    assert visible_pairs(4, 2, causal=False) == 8


def test_a_thinned_timeline_keeps_its_peak() -> None:
    points = [(float(at), at % 7) for at in range(5000)]
    points[1234] = (1234.0, 99)
    kept = thinned(points, 100)
    assert len(kept) <= 110
    assert max(size for _, size in kept) == 99
    assert kept == sorted(kept)


def run(*arguments: object) -> int:
    return attnscape.main([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def profiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training call of one variant beside another's."""
    out = tmp_path_factory.mktemp("profiles")
    words = ("local_window/tiled", "--tokens", 300, "--causal", "--mode", "training", "--set", "window=32")
    assert run("profile", *words, "--compare", "full/matmul", "--heads", 2, "--threads", 1, "--out", out) == 0
    return out


def profiles_of(out: Path) -> dict[str, Profile]:
    return {profile.case.variant: profile for profile in map(read_profile, sorted(out.glob("*.json")))}


def test_a_profile_holds_what_the_call_did(profiled: Path) -> None:
    found = profiles_of(profiled)
    assert found.keys() == {"local_window/tiled", "full/matmul"}
    dense, window = found["full/matmul"], found["local_window/tiled"]
    assert window.case.parameters == {"window": 32}
    for profile in found.values():
        assert profile.seconds_low <= profile.seconds <= profile.seconds_high
        assert profile.operators == sorted(profile.operators, key=lambda operator: -operator.seconds)
        assert 0 < sum(operator.seconds for operator in profile.operators) < 100 * profile.seconds
        assert max(size for _, size in profile.timeline) >= 4 * 300 * 64
        assert profile.launches > 0 and profile.moved_bytes > 0
    # The products of the dense form: two forward and four backward.
    products = 6 * 2 * 2 * 300 * 300 * 64
    assert products <= dense.flops <= 1.1 * products
    assert window.flops < dense.flops
    assert dense.extra_bytes > window.extra_bytes


def test_the_trace_opens_and_names_its_parts(profiled: Path) -> None:
    for profile in profiles_of(profiled).values():
        trace = json.loads(gzip.decompress(Path(profile.trace).read_bytes()))
        names = {event.get("name") for event in trace["traceEvents"]}
        assert {"attnscape: forward", "attnscape: backward"} <= names
        assert any(str(name).startswith("aten::") for name in names)
    pictures = sorted(profiled.glob("*.png"))
    assert [picture.name.split(".")[-2] for picture in pictures] == ["memory", "roofline"]
    assert all(picture.read_bytes().startswith(b"\x89PNG") for picture in pictures)


def test_the_command_shows_both_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("full/matmul", "--tokens", 100, "--heads", 1, "--threads", 1, "--out", tmp_path)
    assert run("profile", *words, "--compare", "memory_efficient/sdpa_flash") == 0
    out = capsys.readouterr().out
    assert "aten::bmm" in out and "_scaled_dot_product_flash_attention_for_cpu" in out
    assert "Side by side" in out and "ratio" in out
    assert out.count("each would take of the measured time") == 2
    assert "ui.perfetto.dev" in out
    assert run("profile", *words, "--json") == 0
    (document,) = json.loads(capsys.readouterr().out)
    assert document["case"]["variant"] == "full/matmul"


def test_ncu_and_nsys_get_a_command_that_runs(profiled: Path) -> None:
    import shlex
    import subprocess

    profile = profiles_of(profiled)["local_window/tiled"]
    words = shlex.split(profile.ncu)
    assert words[0] == "ncu" and shlex.split(profile.nsys)[:2] == ["nsys", "profile"]
    target = words[words.index("-m") - 1 :]
    subprocess.run(target, cwd=Path(__file__).parent.parent, check=True, timeout=100)


BOUNDS = {
    "compute": {"flops": 80_000_000_000},
    "bandwidth": {"moved_bytes": 8_000_000_000},
    "launch": {"launches": 800_000},
    "page faults": {"faults_per_call": 800_000.0},
}


def stored(profiled: Path, **fields: Any) -> Profile:
    """A profile of one second under round ceilings."""
    document = msgspec.to_builtins(profiles_of(profiled)["full/matmul"])
    ceilings = {
        "matmul_flops": {"float32": 1e11},
        "copy_bytes_per_second": 1e10,
        "launch_seconds": 1e-6,
        "fault_seconds": 1e-6,
    }
    small = {"flops": 1, "moved_bytes": 1, "launches": 1, "faults_per_call": 0.0, "ceilings": ceilings}
    return msgspec.convert(document | {"seconds": 1.0} | small | fields, Profile)


@pytest.mark.parametrize("bound", BOUNDS)
def test_what_bounds_a_call_is_named(profiled: Path, bound: str) -> None:
    said = stored(profiled, **BOUNDS[bound]).verdict()
    assert said.startswith(f"Bound by {bound}: ")
    assert f"{bound} 80 %" in said


def test_two_bounds_and_none_are_said_to_be_so(profiled: Path) -> None:
    said = stored(profiled, flops=70_000_000_000, moved_bytes=6_500_000_000).verdict()
    assert said.startswith("Bound by compute and bandwidth about equally: ")
    assert stored(profiled, flops=30_000_000_000).verdict().startswith("Bound by none alone, by compute most; ")
    cached = stored(profiled, flops=60_000_000_000, moved_bytes=30_000_000_000).verdict()
    assert cached.startswith("Bound by compute: ") and "stays in the cache" in cached


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("full/nothing", "--tokens", 8), "unknown variant 'full/nothing'"),
        (("full", "--tokens", 8), "a profile is of one variant, such as full/"),
        (("memory_efficient/xformers", "--tokens", 8), "needs CUDA"),
        (("full/matmul", "--tokens", -1), "tokens"),
        (("full/matmul", "--tokens", 8, "--set", "window=4"), "has a parameter 'window'"),
        (("full/matmul", "--tokens", 8, "--timeout", 0), "--timeout must be positive"),
        (("full/matmul", "--tokens", 8, "--mode", "backwards"), "mode"),
        (("full/matmul", "--tokens", 8, "--device", "cuda"), "CUDA"),
    ],
)
def test_bad_input_is_one_line(
    words: tuple[object, ...], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("profile", *words, "--out", tmp_path / "out") == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    assert said in err


def test_a_file_that_is_no_profile_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match="no profile at"):
        read_profile(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text("{}", "utf-8")
    with pytest.raises(ResultsError, match="is no profile"):
        read_profile(tmp_path / "bad.json")
