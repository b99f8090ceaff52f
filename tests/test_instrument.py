"""The instrument: intervals, bytes, time, the machine and its card, and which code was measured."""

import json
import math
import random
import subprocess
import time
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks import clock, machine, nvml, provenance, worker
from benchmarks.accuracy import Errors, Expected
from benchmarks.clock import (
    LEAST_LEAD_SECONDS,
    MOST_LEAD_SECONDS,
    Sample,
    calls_for,
    cuda_calls_for,
    lead_seconds,
    measure_cpu,
)
from benchmarks.intervals import median_interval, paired_ratio
from benchmarks.kernel_names import kernel_on_card, kernel_on_cpu
from benchmarks.measurement import Case
from benchmarks.memory import measure_cpu_bytes
from benchmarks.provenance import Provenance, read_provenance
from benchmarks.reference_files import Reference, digest_of
from benchmarks.worker import Bench
from tests.ready_variants import READY
from variants import Problem, products
from variants.catalogue import load

MIB = 2**20
NOTHING = torch.empty(0)


# ---- intervals


@pytest.mark.parametrize("count", [6, 7, 8, 9, 11, 14, 20, 33, 100, 1001])
def test_the_interval_covers_the_median_of_any_distribution(count: int) -> None:
    _, low, high = median_interval(range(count))
    # The median lies between the i-th and the j-th of n samples where i to j − 1 of them lie below it.
    covered = sum(math.comb(count, below) for below in range(int(low) + 1, int(high) + 1)) / 2**count
    narrower = sum(math.comb(count, below) for below in range(int(low) + 2, int(high))) / 2**count
    assert covered >= 0.95 > narrower


def test_the_interval_covers_the_median_of_skewed_samples() -> None:
    generator = random.Random(3)
    hits = 0
    for _ in range(2000):
        samples = [generator.lognormvariate(0, 1) for _ in range(20)]
        middle, low, high = median_interval(samples)
        assert low <= middle <= high
        hits += low <= 1.0 <= high
    assert 0.94 < hits / 2000 < 0.975


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_few_samples_have_their_extremes_for_an_interval(count: int) -> None:
    samples = [3.0, 1.0, 2.0, 5.0, 4.0][:count]
    middle, low, high = median_interval(samples)
    assert (low, high) == (min(samples), max(samples))
    assert middle == sorted(samples)[count // 2] if count % 2 else low <= middle <= high


def test_no_samples_have_no_interval() -> None:
    with pytest.raises(ValueError, match="no samples"):
        median_interval([])


def test_a_paired_ratio_is_free_of_what_both_share() -> None:
    generator = random.Random(1)
    drift = [generator.uniform(1, 10) for _ in range(25)]
    ratio, low, high = paired_ratio([3 * slow for slow in drift], [2 * slow for slow in drift])
    assert math.isclose(ratio, 1.5) and math.isclose(low, 1.5) and math.isclose(high, 1.5)
    inverse, _, _ = paired_ratio([2 * slow for slow in drift], [3 * slow for slow in drift])
    assert math.isclose(inverse, 1 / 1.5)


# ---- bytes


def allocate(mebibytes: int) -> torch.Tensor:
    return torch.empty(mebibytes * MIB, dtype=torch.uint8)


def test_bytes_of_a_known_pattern_are_exact() -> None:
    def pattern() -> torch.Tensor:
        first, second = allocate(1), allocate(2)  # 3 MiB
        del first
        third = allocate(4)  # 6 MiB: the peak
        del second
        fourth = allocate(1)  # 5 MiB
        del fourth
        return third

    assert measure_cpu_bytes(pattern)[:2] == (6 * MIB, 4 * MIB)


def test_bytes_of_nothing_are_none() -> None:
    assert measure_cpu_bytes(lambda: None)[:2] == (0, 0)


def test_operators_are_named_once() -> None:
    x = torch.ones(4, 4)
    names = measure_cpu_bytes(lambda: (x @ x) @ x)[2]
    assert names.count("aten::mm") == 1


@pytest.mark.parametrize(
    ("operators", "kernel"),
    [
        (
            ["aten::scaled_dot_product_attention", "aten::_scaled_dot_product_flash_attention_for_cpu"],
            "_scaled_dot_product_flash_attention_for_cpu",
        ),
        (["aten::mul", "aten::bmm", "aten::_softmax", "aten::bmm"], "bmm, bmm"),
        (["aten::mul"], "elementwise"),
    ],
)
def test_the_kernel_that_ran_is_named(operators: list[str], kernel: str) -> None:
    assert kernel_on_cpu(operators) == kernel


FLASH = "void flash::flash_fwd_kernel<Flash_fwd_kernel_traits<128, 64, (bool)1>, false>(flash::Flash_fwd_params)"
WARP = "void (anonymous namespace)::softmax_warp<float, 8>(float*, int)"
FLEX = "triton_tem_fused_flex_attention_0"


@pytest.mark.parametrize(
    ("operators", "kernels", "ran", "kernel"),
    [
        (["aten::_flash_attention_forward"], [FLASH, "x"], "", "_flash_attention_forward: flash_fwd_kernel"),
        (["aten::empty"], ["forward"], "128×64 w8 s3", "forward: 128×64 w8 s3"),
        (["aten::mul"], [WARP], "", "softmax_warp"),
        (["Torch-Compiled Region: 0/0"], [FLEX], "", f"compiled: {FLEX}"),
        (["aten::bmm"], [], "", "bmm"),  # a driver that lets no one look
    ],
)
def test_the_kernel_on_a_card_is_named(operators: list[str], kernels: list[str], ran: str, kernel: str) -> None:
    assert kernel_on_card(operators, kernels, ran) == kernel


def test_a_long_call_is_no_graph() -> None:
    def call() -> None:
        raise AssertionError("was captured")

    (reason,) = worker.hot_figures(None, call, 0.4).values()  # type: ignore[arg-type]  # no clock is asked
    assert reason == "no graph: a call takes 0.4 s, more than 0.25 s"


def test_long_calls_are_sampled_less_often_on_a_card() -> None:
    assert [cuda_calls_for(seconds) for seconds in (0.0, 1e-5, 0.05, 0.1, 0.5, 60.0)] == [10, 10, 10, 5, 1, 1]


def test_a_card_is_held_back_while_the_host_queues_a_call_but_not_for_long() -> None:
    assert lead_seconds(0.0) == LEAST_LEAD_SECONDS > 0
    assert lead_seconds(0.001) > 0.001
    assert lead_seconds(10.0) == MOST_LEAD_SECONDS < 0.1


@pytest.fixture
def unproven(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the proofs and the repeats of a preparation, which have tests of their own."""
    monkeypatch.setattr(
        worker,
        "make_reference",
        lambda _, inputs, __: Reference(inputs, digest_of(inputs), Expected(NOTHING, 0, 0), {}),
    )
    monkeypatch.setattr(worker, "errors_of", lambda *_: Errors(0, 0, 0, 0, 0, 0, 0, finite=True))
    monkeypatch.setattr(worker, "checked_gradients", lambda *_: ())
    monkeypatch.setattr(worker, "gradient_error", lambda *_: 0.0)
    monkeypatch.setattr(worker, "WARM_UP_CALLS", 1)


@pytest.mark.parametrize(
    "fields",
    [
        {"tokens": 512, "heads": 2},
        {"tokens": 1024, "heads": 2},
        {"tokens": 512, "heads": 4, "kv_heads": 2, "dtype": "bfloat16"},
        {"tokens": 256, "kv_tokens": 768, "heads": 2, "batch": 2, "head_dim": 32},
    ],
    ids=["512", "1024", "grouped-bfloat16", "more-keys"],
)
@pytest.mark.parametrize("mode", ["forward", "training"])
@pytest.mark.parametrize("causal", [False, True], ids=["all", "causal"])
@pytest.mark.parametrize("name", READY)
@pytest.mark.usefixtures("unproven")
def test_predicted_memory_bounds_what_is_measured(name: str, causal: bool, mode: str, fields: dict[str, Any]) -> None:
    problem = Problem(**fields, causal=causal, mode=mode)
    variant = load(name)
    if reasons := variant.refusals(problem):
        pytest.skip("; ".join(reasons))
    chosen = variant.definition.resolve()
    found = Bench("default").prepare(Case.of(name, chosen, problem, "normal"), 1, True)
    predicted = variant.workspace_bytes(problem, **chosen)
    assert found["extra_bytes"] <= predicted * 1.05 + 64 * 1024
    assert predicted <= 3 * found["extra_bytes"] + 10 * MIB
    assert found["total_bytes"] == problem.input_output_bytes + found["extra_bytes"]


@pytest.mark.usefixtures("unproven")
def test_what_is_kept_between_calls_counts() -> None:
    problem = Problem(tokens=1024, heads=1)
    case = Case.of("local_window/masked", {"window": 16}, problem, "normal")
    found = Bench("default").prepare(case, 1, True)
    assert found["extra_bytes"] >= 1024 * 1024 * 4  # the mask, made before the first call


# ---- time


def test_a_sample_counts_its_calls() -> None:
    for refill, calls in ((True, 8), (False, 7)):
        made: list[None] = []
        sample = measure_cpu(lambda made=made: made.append(None), 7, refill=refill)
        assert len(made) == calls
        assert 0 < sample.wall_seconds < 0.1
        assert sample.latency_seconds is None


def test_waiting_is_wall_time_and_working_is_both() -> None:
    asleep = measure_cpu(partial(time.sleep, 0.02), 2, refill=False)
    assert asleep.wall_seconds >= 0.02
    assert asleep.cpu_seconds < 0.01

    def work() -> None:
        until = time.process_time() + 0.02
        while time.process_time() < until:
            pass

    busy = measure_cpu(work, 2, refill=False)
    assert 0.02 <= busy.cpu_seconds <= busy.wall_seconds * 1.05


@pytest.mark.parametrize(
    ("seconds", "calls"), [(1.0, 1), (0.01, 1), (0.009, 2), (0.001, 10), (1e-5, 1000), (1e-9, 1000), (0.0, 1000)]
)
def test_short_calls_are_sampled_in_bunches(seconds: float, calls: int) -> None:
    assert calls_for(seconds) == calls
    assert clock.LEAST_SAMPLE_SECONDS == 0.01


# ---- the machine


def test_a_machines_key_is_what_separates_series(monkeypatch: pytest.MonkeyPatch) -> None:
    described = machine.describe_machine("cpu", 2, "glibc")
    assert described["key"] == machine.describe_machine("cpu", 2, "glibc")["key"]
    assert described["key"].startswith("cpu-")
    others = [machine.describe_machine("cpu", 1, "glibc"), machine.describe_machine("cpu", 2, "default")]
    for field, value in (("cpu", "another"), ("cpu_flags", ["avx"]), ("torch", "0.1"), ("gpu", {"name": "H200"})):
        others.append({"key": machine.machine_key(described | {field: value})})
    for field, value in (("load", 99.0), ("kernel", "0"), ("steal_ticks", 1)):
        assert machine.machine_key(described | {field: value}) == described["key"]
    assert len({described["key"], *(other["key"] for other in others)}) == 7
    json.dumps(described)


def test_ceilings_are_measured_for_every_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "CEILING_SECONDS", 0.001)
    monkeypatch.setattr(machine, "COPY_BYTES", MIB)
    ceilings = machine.measure_ceilings("cpu")
    assert set(ceilings["matmul_flops"]) == {"float64", "float32", "bfloat16", "float16"}
    assert all(1e7 < flops < 1e15 for flops in ceilings["matmul_flops"].values())
    assert 1e7 < ceilings["copy_bytes_per_second"] < 1e14


def test_ceilings_of_a_request_are_of_its_dtypes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "CEILING_SECONDS", 0.001)
    monkeypatch.setattr(machine, "COPY_BYTES", MIB)
    assert set(machine.measure_ceilings("cpu", ["float64"])["matmul_flops"]) == {"float64"}
    narrow = machine.measure_ceilings("cpu", ["bfloat16"])["matmul_flops"]
    assert set(narrow) == {"bfloat16", "float32"}  # a kernel may widen what it reads
    assert narrow["bfloat16"] >= narrow["float32"]


@pytest.mark.parametrize("library", ["torch", "oneDNN"])
def test_the_ceiling_is_that_of_the_faster_library(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def timed(call: partial[Any], _: str) -> float:
        name = "torch" if call.func is torch.mm else "oneDNN"
        asked.append(name)
        return 1e-3 if name == library else 2e-3

    monkeypatch.setattr(machine, "_fastest", timed)
    monkeypatch.setattr(products, "wide_vectors", lambda: True)
    expected = 2 * 1024**3 / 1e-3
    assert machine._matmul_ceiling(torch.float32, "cpu", cuda=False) >= expected
    assert set(asked) == {"torch", "oneDNN"}
    asked.clear()
    machine._matmul_ceiling(torch.float64, "cpu", cuda=False)
    assert set(asked) == {"torch"}


def test_available_memory_is_some_of_all() -> None:
    assert 2**20 < machine.available_bytes("cpu") <= machine.memory_bytes()


# ---- a card's readings


class NotSupported(Exception):
    pass


def fake_nvml(**changes: Any) -> ModuleType:
    """A module with the names of NVML's that are used, on a card that is thermally slowed."""
    fake = ModuleType("fake_nvml")
    opened: list[bool] = []
    closed: list[bool] = []

    def unsupported(*_: Any) -> float:
        raise NotSupported("Not Supported")

    names: dict[str, Any] = {
        "NVMLError": NotSupported,
        "NVML_CLOCK_SM": 1, "NVML_CLOCK_MEM": 2, "NVML_TEMPERATURE_GPU": 0,
        "nvmlInit": lambda: opened.append(True),
        "nvmlShutdown": lambda: closed.append(True),
        "opened": opened,
        "closed": closed,
        "nvmlDeviceGetHandleByUUID": lambda uuid: f"handle of {uuid}",
        "nvmlDeviceGetClockInfo": lambda _, which: {1: 1755, 2: 2619}[which],
        "nvmlDeviceGetMaxClockInfo": lambda *_: 1980,
        "nvmlDeviceGetTemperature": lambda *_: 61,
        "nvmlDeviceGetPowerUsage": lambda _: 412_500,
        "nvmlDeviceGetEnforcedPowerLimit": unsupported,
        "nvmlDeviceGetCurrentClocksEventReasons": lambda _: 0x20 | 0x4,
        "nvmlSystemGetDriverVersion": lambda: "570.1",
        "nvmlClocksEventReasonGpuIdle": 0x1,
        "nvmlClocksEventReasonSwPowerCap": 0x4,
        "nvmlClocksEventReasonHwSlowdown": 0x8,
        "nvmlClocksEventReasonSwThermalSlowdown": 0x20,
        "nvmlClocksEventReasonHwThermalSlowdown": 0x40,
        "nvmlClocksEventReasonHwPowerBrakeSlowdown": 0x80,
        "nvmlClocksEventReasonNone": 0x0,
        "nvmlClocksEventReasonAll": 0xFF,
    }  # fmt: skip
    for name, value in (names | changes).items():
        setattr(fake, name, value)
    return fake


@pytest.mark.parametrize(
    ("mhz", "events", "slow"),
    [
        (1980.0, "", False),
        (345.0, "GpuIdle", True),  # not awake
        (1400.0, "", True),
        (1400.0, "SwPowerCap", False),  # the card's own limit
        (1200.0, "ApplicationsClocksSetting", False),  # its owner's
        (1500.0, "", False),
    ],
)
def test_a_clock_far_below_the_cards_own_is_slow_where_nothing_says_why(mhz: float, events: str, slow: bool) -> None:
    assert nvml.underclocked({"sm_mhz": mhz, "sm_max_mhz": 1980.0, "clock_events": events}) is slow
    assert nvml.underclocked({"sm_mhz": mhz}) is False  # an old driver does not tell


def test_a_card_is_read_in_its_units() -> None:
    fake = fake_nvml()
    assert nvml.read_card("GPU-1", fake) == {
        "sm_mhz": 1755.0,
        "memory_mhz": 2619.0,
        "sm_max_mhz": 1980.0,
        "temperature_celsius": 61.0,
        "power_watts": 412.5,
        "clock_events": "SwPowerCap, SwThermalSlowdown",
        "driver": "570.1",
    }  # the power limit, which this card does not tell, is left out
    assert nvml.read_card("GPU-1", fake)["sm_mhz"] == 1755.0
    assert (fake.opened, fake.closed) == ([True], [])  # to open it takes longer than a sample


def test_a_card_that_cannot_be_read_says_why() -> None:
    def refuse() -> None:
        raise NotSupported("Driver Not Loaded")

    assert nvml.read_card("GPU-1", fake_nvml(nvmlInit=refuse)) == {"nvml": "Driver Not Loaded"}

    def unknown(uuid: str) -> None:
        raise NotSupported(f"no {uuid}")

    assert nvml.read_card("GPU-9", fake_nvml(nvmlDeviceGetHandleByUUID=unknown)) == {"nvml": "no GPU-9"}


def without(fake: ModuleType, *names: str) -> ModuleType:
    for name in names:
        delattr(fake, name)
    return fake


def test_an_old_module_or_driver_tells_what_it_can() -> None:
    def by_bytes(uuid: Any) -> str:
        if isinstance(uuid, str):
            raise TypeError("bytes or integer address expected instead of str instance")
        return "handle"

    assert nvml.read_card("GPU-1", fake_nvml(nvmlDeviceGetHandleByUUID=by_bytes))["sm_mhz"] == 1755.0

    def unknown(_: Any) -> None:
        raise NotSupported("Not Found")

    # A slice of a card, of which the module does not know how to find the whole.
    state = nvml.read_card(
        "GPU-2", fake_nvml(nvmlDeviceGetHandleByUUID=lambda uuid: unknown(uuid) if "GPU" in uuid else 1)
    )
    assert list(state) == ["nvml"] and "nvmlDeviceGetDeviceHandleFromMigDeviceHandle" in str(state["nvml"])

    names = [name for name in vars(fake_nvml()) if name.startswith("nvmlClocksEventReason")]
    before = {name.replace("Event", "Throttle"): getattr(fake_nvml(), name) for name in names}
    for how in ({}, {"nvmlDeviceGetCurrentClocksEventReasons": unknown}):
        old = without(fake_nvml(), *names, "nvmlDeviceGetCurrentClocksEventReasons")
        for name, value in (before | how | {"nvmlDeviceGetCurrentClocksThrottleReasons": lambda _: 0x44}).items():
            setattr(old, name, value)
        assert nvml.read_card("GPU-1", old)["clock_events"] == "HwThermalSlowdown, SwPowerCap"


@pytest.mark.parametrize(
    ("mask", "names", "rejected"),
    [
        (0x0, [], False),
        (0x1, ["GpuIdle"], False),
        (0x4, ["SwPowerCap"], False),
        (0x20, ["SwThermalSlowdown"], True),
        (0x8, ["HwSlowdown"], True),
        (0x40, ["HwThermalSlowdown"], True),
        (0x80, ["HwPowerBrakeSlowdown"], True),
        (0x44, ["HwThermalSlowdown", "SwPowerCap"], True),
    ],
)
def test_clock_events_are_named_and_brakes_reject(mask: int, names: list[str], rejected: bool) -> None:
    assert nvml.event_names(fake_nvml(), mask) == names
    state = nvml.read_card("GPU-1", fake_nvml(nvmlDeviceGetCurrentClocksEventReasons=lambda _: mask))
    assert nvml.braked(state) is rejected


def test_the_real_module_has_every_name_that_is_used() -> None:
    real = pytest.importorskip("pynvml")
    for name in vars(fake_nvml()):
        assert name.startswith("__") or name in ("opened", "closed") or hasattr(real, name)
    assert nvml.event_names(real, 0x8 | 0x20 | 0x40 | 0x80) == sorted(nvml.BRAKES)


def test_no_reading_is_no_brake() -> None:
    assert not nvml.braked({})
    assert not nvml.braked({"nvml": "Driver Not Loaded"})


# ---- provenance


class Checkout:
    """A git repository with a copy of two packages."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for package in ("variants", "benchmarks"):
            (folder / package).mkdir(parents=True)
            (folder / package / "__init__.py").write_text("", "utf-8")

    def git(self, *arguments: str) -> str:
        identity = ("-c", "user.name=n", "-c", "user.email=e@example.org", "-c", "commit.gpgsign=false")
        command = ["git", "-C", str(self.folder), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    def commit(self) -> str:
        self.git("add", "variants", "benchmarks")
        self.git("commit", "-q", "-m", "x")
        return self.git("rev-parse", "HEAD")


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Checkout:
    made = Checkout(tmp_path / "checkout")
    for package in ("variants", "benchmarks"):
        monkeypatch.setattr(provenance, package, SimpleNamespace(__path__=[str(made.folder / package)]))
    return made


def test_provenance_follows_the_repository(checkout: Checkout) -> None:
    bare = read_provenance()
    assert (bare.commit, bare.dirty) == ("", True)
    checkout.git("init", "-q")
    assert read_provenance() == bare  # a repository without a commit knows nothing
    commit = checkout.commit()
    clean = read_provenance()
    assert (clean.commit, clean.dirty, clean.code) == (commit, False, bare.code)
    (checkout.folder / "variants" / "__init__.py").write_text("x = 1", "utf-8")
    dirty = read_provenance()
    assert (dirty.commit, dirty.dirty) == (commit, True)
    assert dirty.code != clean.code
    second = checkout.commit()
    assert read_provenance() == Provenance(dirty.code, second, False)


def test_provenance_minds_the_packages_only(checkout: Checkout) -> None:
    checkout.git("init", "-q")
    commit = checkout.commit()
    (checkout.folder / "README.md").write_text("x", "utf-8")
    assert read_provenance().dirty is False
    new = checkout.folder / "benchmarks" / "new.py"
    new.write_text("", "utf-8")
    added = read_provenance()
    assert added.dirty is True and added.commit == commit
    renamed = new.rename(new.with_name("newer.py"))
    assert read_provenance().code != added.code  # the name counts
    renamed.unlink()
    assert read_provenance().dirty is False


def test_sources_that_are_installed_in_anothers_repository_have_no_commit(checkout: Checkout) -> None:
    checkout.git("init", "-q")
    (checkout.folder / ".gitignore").write_text("variants\nbenchmarks\n", "utf-8")
    checkout.git("add", ".gitignore")
    checkout.git("commit", "-q", "-m", "somebody else's")
    found = read_provenance()
    assert (found.commit, found.dirty) == ("", True)


def test_packages_of_two_places_are_not_of_one_commit(
    checkout: Checkout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkout.git("init", "-q")
    checkout.commit()
    elsewhere = Checkout(tmp_path / "elsewhere")
    monkeypatch.setattr(provenance, "benchmarks", SimpleNamespace(__path__=[str(elsewhere.folder / "benchmarks")]))
    assert read_provenance().dirty is True


def test_provenance_without_git(checkout: Checkout, monkeypatch: pytest.MonkeyPatch) -> None:
    checkout.git("init", "-q")
    checkout.commit()
    monkeypatch.setenv("PATH", "")
    found = read_provenance()
    assert (found.commit, found.dirty) == ("", True)


# ---- samples of a card


class SteadyClock:
    """Stands in for a card's clock: a sample takes no time."""

    device = "cuda"

    def measure(self, _: Any) -> Sample:
        return Sample(1.0, 1.0, 0, 0)


@pytest.mark.parametrize(
    ("events", "mhz", "rejected"), [(0x20, 1755, "brake"), (0x4, 1755, ""), (0x1, 345, "clock"), (0x0, 1755, "")]
)
def test_a_sample_is_rejected_by_what_the_card_tells_after_it(
    events: int, mhz: int, rejected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = {1: mhz, 2: 2619}
    fake = fake_nvml(
        nvmlDeviceGetCurrentClocksEventReasons=lambda _: events, nvmlDeviceGetClockInfo=lambda _, which: told[which]
    )
    monkeypatch.setattr(nvml, "module", lambda: fake)
    monkeypatch.setattr(worker, "RECOVERY_SECONDS", 0.0)
    bench = Bench("default")
    bench.cuda, bench.uuid = SteadyClock(), f"GPU-{events}-{mhz}"  # type: ignore[assignment]
    found = bench.sample()
    assert found["rejected"] == rejected
    assert (found["state"]["sm_mhz"], found["sample"].wall_seconds) == (float(mhz), 1.0)
