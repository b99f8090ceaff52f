"""`attnscape profile`: what is counted, what is drawn, what is said to bound a call, and what is refused."""

import gzip
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from matplotlib.figure import Figure
from torch._C._autograd import DeviceType
from torch.nn.functional import scaled_dot_product_attention

import attnscape
from benchmarks import profiling
from benchmarks.campaign import InvalidRequest
from benchmarks.clock import Sample
from benchmarks.measurement import Case
from benchmarks.operator_counts import Counting, size_of, visible_pairs
from benchmarks.profile_figures import declared_where_unseen, times_of
from benchmarks.profile_session import Asked
from benchmarks.profiling import profile_call, thinned
from benchmarks.traced_times import kernel_times, operator_times
from benchmarks.workers import Fault
from reports.profile_record import Operator, Profile, read_profile
from reports.profile_text import comparison_table, profile_blocks
from reports.profile_verdict import verdict
from reports.records import ResultsError
from tests.ready_variants import READY, draw, small_parameters
from variants import Problem
from variants.catalogue import load


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
    assert counted(lambda: torch.ops.aten._unsafe_view(a, [4, 6])) == {}
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


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch without oneDNN")
def test_products_of_onednn_are_counted_and_timed(tmp_path: Path) -> None:
    a, b = torch.ones(3, 4), torch.ones(4, 5)
    problem = Problem(tokens=3)

    def product() -> torch.Tensor:
        out: torch.Tensor = torch.ops.mkldnn._linear_pointwise(a, b.mT, None, "none", [], "")
        return out

    found = profile_call(product, product, problem, tmp_path / "product.json.gz", compiled=False)
    (row,) = (row for row in found["operators"] if row["name"] == "mkldnn::_linear_pointwise")
    assert (row["calls"], row["flops"], row["bytes"]) == (1, 2 * 3 * 4 * 5, 4 * (12 + 20 + 15))
    assert row["seconds"] > 0


@pytest.mark.parametrize("name", READY)
def test_every_variant_can_be_profiled(name: str, tmp_path: Path) -> None:
    forms = [Problem(tokens=16, causal=causal, heads=2, head_dim=16, kv_heads=2) for causal in (True, False)]
    problem = next(form for form in forms if not load(name).refusals(form))
    run, inputs = load(name).build(problem, **small_parameters(name)), draw(problem)
    inputs = inputs if load(name).layout == "bhnd" else tuple(x.transpose(1, 2) for x in inputs)

    def call() -> torch.Tensor:
        return run(*inputs)

    found = profile_call(call, call, problem, tmp_path / "trace.json.gz", compiled=False)
    found |= declared_where_unseen(
        Case.of(name, small_parameters(name), problem, "normal"), found["flops"], found["moved_bytes"]
    )
    assert found["operators"] and found["launches"] and found["flops"] and found["moved_bytes"]


def test_what_is_compiled_is_never_counted(tmp_path: Path) -> None:
    def call() -> torch.Tensor:
        assert not torch.utils._python_dispatch.is_in_torch_dispatch_mode(), "would run its uncompiled form"
        return torch.ones(2) + 1

    found = profile_call(call, call, Problem(tokens=8), tmp_path / "trace.json.gz", compiled=True)
    assert found["launches"] >= 2 and found["flops"] == found["moved_bytes"] == 0


def case_of(name: str, **fields: Any) -> Case:
    return Case.of(name, load(name).definition.resolve(), Problem(tokens=1024, **fields), "normal")


def test_what_a_kernel_hides_is_declared() -> None:
    hidden = case_of("memory_efficient/flex", mode="training")
    declared = load("memory_efficient/flex").flops(hidden.problem())
    inputs_outputs = hidden.problem().input_output_bytes
    found = declared_where_unseen(hidden, 0, 0)
    assert (found["flops"], found["moved_bytes"]) == (declared, inputs_outputs)
    assert found["declared"] == ["flops", "moved_bytes"]
    # A form by elements: its products are not seen, what it moves is.
    found = declared_where_unseen(case_of("depthwise_convolution/shifted"), 0, 10**9)
    assert found["declared"] == ["flops"] and "moved_bytes" not in found
    assert declared_where_unseen(hidden, declared // 2, 5)["declared"] == []


class Event:
    """What the profiler tells of one operator, range or kernel."""

    def __init__(self, name: str, micros: float, parent: "Event | None" = None, **told: Any) -> None:
        self.name, self.cpu_parent = name, parent
        self.self_cpu_time_total = self.self_device_time_total = micros
        self.device_type, self.is_user_annotation = told.get("on", DeviceType.CPU), told.get("annotation", False)


def test_time_inside_a_counted_operator_is_its_own() -> None:
    mark = Event("attnscape: forward", 0, annotation=True)
    outer = Event("aten::_scaled_dot_product_flash_attention", 1, mark)
    inner = Event("aten::_flash_attention_forward", 90, outer)
    launch = Event("cudaLaunchKernel", 3, inner)
    alone = Event("xformers_flash::flash_fwd", 40, mark)
    node = Event("autograd::engine::evaluate_function: MmBackward0", 7, mark)
    events = [mark, outer, inner, launch, alone, node, Event("aten::add", 5, alone)]
    found = operator_times(events, {outer.name, "aten::mm"}, cuda=True)
    assert [(row["name"], row["calls"], round(1e6 * row["seconds"])) for row in found] == [
        (outer.name, 1, 94),
        (alone.name, 1, 40),
        ("aten::add", 1, 5),
    ]


def test_ranges_are_no_kernels() -> None:
    marks = ("attnscape: forward", "## Call CompiledFxGraph f2kd ##")
    events = [Event(mark, 100, on=DeviceType.CUDA, annotation=True) for mark in marks]
    events += [Event("triton_tem_fused", 30, on=DeviceType.CUDA), Event("aten::empty", 1)]
    assert kernel_times(events) == [{"name": "triton_tem_fused", "calls": 1, "seconds": 30e-6}]


class Traced:
    """A profiler that saw these events."""

    def __init__(self, events: list[Event]) -> None:
        self.events = lambda: events

    def __enter__(self) -> "Traced":
        return self

    def __exit__(self, *_: object) -> None:
        pass


def test_ranges_are_not_in_the_recorded_name(monkeypatch: pytest.MonkeyPatch) -> None:
    mark = "## attention of a user ##"
    events = [Event(mark, 9, annotation=True), Event("aten::bmm", 2), Event("gemm", 3, on=DeviceType.CUDA)]
    events.append(Event(mark, 99, on=DeviceType.CUDA, annotation=True))
    monkeypatch.setattr(profiling, "profile", lambda **_: Traced(events))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: None)
    assert profiling.names_of_call(lambda: None, "cuda") == (["aten::bmm"], ["gemm"])


class Scripted:
    """Workers, and the one that they start, which gives this answer to everything."""

    def __init__(self, answer: dict[str, Any] | Fault) -> None:
        self.answer, self.ended = answer, False

    def start(self) -> "Scripted":
        return self

    def end(self) -> None:
        self.ended = True

    def ask(self, *_: object) -> dict[str, Any]:
        if isinstance(self.answer, Fault):
            raise self.answer
        return self.answer


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (Fault("timeout", "no answer within 0 s"), "full/matmul: not done within 5 s; --timeout grants more"),
        (Fault("error", "crashed with SIGSEGV"), "full/matmul: crashed with SIGSEGV"),
        ({"status": "wrong", "reason": "the output holds NaN"}, "full/matmul: the output holds NaN"),
    ],
)
def test_a_profile_that_fails_says_why(answer: Any, said: str) -> None:
    scripted: Any = Scripted(answer)
    with pytest.raises(InvalidRequest, match=f"^{said}$"), Asked(case_of("full/matmul"), scripted, 5.0) as ask:
        ask("sample")
    assert scripted.ended


def samples_of(*busy: float, **told: Any) -> list[Sample]:
    """Samples of ten milliseconds, which kept so many threads busy."""
    return [Sample(0.01, 0.01 * threads, 0, 40, **told) for threads in busy]


def test_the_share_of_clean_samples_is_of_the_threads_that_a_call_keeps_busy() -> None:
    case = case_of("full/matmul")
    assert times_of(samples_of(2.0, 1.9, 1.0), case, 4, 2)["clean_share"] == pytest.approx(2 / 3)
    assert times_of(samples_of(1.0, 1.0), case, 4, 8)["clean_share"] == 1  # it never keeps more than one
    assert times_of(samples_of(0.5, 0.6), case, 4, 1)["clean_share"] == 0
    assert times_of(samples_of(1.0), case, 4, 1)["faults_per_call"] == 10


def test_a_card_has_its_latency_and_no_page_faults() -> None:
    case = msgspec.structs.replace(case_of("full/matmul"), device="cuda")
    found = times_of(samples_of(0.1, 0.1, latency_seconds=0.02, host_bound_share=0.5), case, 1, 8)
    assert found["latency_seconds"] == 0.02 and found["host_bound_share"] == 0.5
    assert "faults_per_call" not in found and "clean_share" not in found


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
    out, err = capsys.readouterr()
    assert "profiling, step 0 of 24" in err and "profiling, step 24 of 24" in err
    assert "aten::bmm" in out and "_scaled_dot_product_flash_attention_for_cpu" in out
    assert "Side by side" in out and "ratio" in out
    assert out.count("each would take of ") == 2
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
    assert words[words.index("--clock-control") + 1] == "none"  # the card's settings stay as they are
    assert "--capture-range" not in profile.nsys  # the build comes before the marks
    assert "--force-overwrite" in profile.nsys and "--force-overwrite" in words
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
    small = {
        "flops": 1,
        "moved_bytes": 1,
        "launches": 1,
        "faults_per_call": 0.0,
        "ceilings": ceilings,
        "clean_share": 1,
    }
    return msgspec.convert(document | {"seconds": 1.0} | small | fields, Profile)


@pytest.mark.parametrize("bound", BOUNDS)
def test_what_bounds_a_call_is_named(profiled: Path, bound: str) -> None:
    said = verdict(stored(profiled, **BOUNDS[bound]))
    assert said.startswith(f"Bound by {bound}: ")
    assert f"{bound} 80 %" in said


def test_two_bounds_and_none_are_said_to_be_so(profiled: Path) -> None:
    said = verdict(stored(profiled, flops=70_000_000_000, moved_bytes=6_500_000_000))
    assert said.startswith("Bound by compute and bandwidth about equally: ")
    assert verdict(stored(profiled, flops=30_000_000_000)).startswith("Bound by none alone, by compute most; ")
    cached = verdict(stored(profiled, flops=60_000_000_000, moved_bytes=30_000_000_000))
    assert cached.startswith("Bound by compute: ") and "stays in the cache" in cached


def test_where_nothing_is_near_a_ceiling_the_longest_operator_is_named(profiled: Path) -> None:
    operators = [Operator("aten::exp", 4, 0.6, bytes=600_000_000), Operator("aten::bmm", 1, 0.3, flops=10**9)]
    said = verdict(stored(profiled, operators=operators))
    assert said.startswith("Bound by no ceiling; ")
    assert said.endswith("The longest operator, aten::exp, takes 67 % of them all, at 10 % of a copy's bandwidth.")
    said = verdict(stored(profiled, operators=operators[::-1], flops=30_000_000_000))
    assert "by compute most" in said and "aten::exp, takes 67 %" in said


def test_a_busy_machine_is_judged_by_the_processors_time(profiled: Path) -> None:
    busy = {"clean_share": 0.2, "cpu_seconds": 0.4, "threads": 2, "flops": 16_000_000_000}
    said = verdict(stored(profiled, **busy))
    assert said.startswith("Bound by compute: ") and "compute 80 %" in said
    assert "of 200 ms, the processor time by thread, since other processes took part of the 1.00 s" in said
    assert "compute 16 %" in verdict(stored(profiled, **busy | {"clean_share": 0.8}))


def on_card(profiled: Path, **fields: Any) -> Profile:
    """A second on a card, of which the host knows two."""
    case = msgspec.to_builtins(profiles_of(profiled)["full/matmul"].case) | {"device": "cuda"}
    times = {"latency_seconds": 2.0, "hot_seconds": 0.5, "faults_per_call": None}
    kernels = [Operator("gemm", 3, 1.0)]
    return stored(profiled, case=case, kernels=msgspec.to_builtins(kernels), **times | fields)


def test_launches_bound_what_the_host_waits_for(profiled: Path) -> None:
    said = verdict(on_card(profiled, launches=1_600_000, flops=80_000_000_000))
    assert said.startswith("Bound by compute: ") and "page faults" not in said
    assert said.endswith(
        "The host waits 2.00 s for a call, bound by launch: 1600000 launches alone would take 80 % of that."
    )
    said = verdict(on_card(profiled, launches=200_000, host_bound_share=0.9))
    assert "The longest kernel, gemm, takes 100 %" in said
    assert "of which launches alone would take 10 %." in said
    assert "The card began 90 % of the calls before they were queued whole" in said


def test_a_card_shows_its_three_times_and_kernels(profiled: Path) -> None:
    first = on_card(profiled, launches=3)
    head, *_, amounts, _ = (str(block) for block in profile_blocks(first))
    assert "1.00 s cold" in head and "500 ms hot" in head and "2.00 s latency" in head
    assert amounts.endswith(" operators, 3 kernels.")
    second = on_card(profiled, hot_seconds=None, hot_reason="no graph: it waits")
    assert "no graph: it waits" in str(profile_blocks(second)[0])
    rows = {row[0]: row[1:] for row in comparison_table([first, second]).rows}
    assert rows["hot time"] == ("500 ms", "–", "–") and rows["latency"] == ("2.00 s", "2.00 s", "1.00")
    assert "kernels" in rows and not {"operators", "page faults"} & set(rows)


def test_declared_amounts_are_marked(profiled: Path) -> None:
    hidden = stored(profiled, flops=10**9, declared=["flops", "moved_bytes"])
    amounts = str(profile_blocks(hidden)[-2])
    assert "1.00 GFLOP/s (declared) of 100" in amounts and "of inputs and outputs (declared)" in amounts
    rows = {row[0]: row[1:] for row in comparison_table([hidden, stored(profiled, flops=10**9)]).rows}
    assert rows["GFLOP"] == ("1.00 (declared)", "1.00", "1.00")


def test_peaks_are_told_where_no_curve_covers_them(profiled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from reports import profile_pictures

    drawn: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    profile_pictures.write_pictures([stored(profiled, timeline=[(0.0, 0), (1.0, 3 * 2**20)])] * 2, Path("unused"))
    (axes,) = drawn[0].axes
    assert not axes.texts
    assert [text.get_text() for text in drawn[0].legends[0].get_texts()] == ["full/matmul: peak 3.00 MiB"] * 2
    assert axes.lines[0].get_linestyle() != axes.lines[1].get_linestyle()


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
