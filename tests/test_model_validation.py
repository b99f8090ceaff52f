import csv
from dataclasses import replace
from pathlib import Path

import pytest

from reports.curve_file import COLUMNS, KernelCurve, KernelShape, ValidationInputError, read_curves
from reports.model_validation import Held, ValidationReport, hold_out, report_tables, score, validate_model
from reports.transfer_validation import shape_work, transfer_scores

CURVES = Path(__file__).parent.parent.parent / "shared" / "data" / "gpu_prefill_curves.csv"
LENGTHS = (256, 512, 1024, 2048, 4096, 8192, 16384)

FULL = KernelShape(
    gpu="NVIDIA H200",
    software="a library 1.0",
    kernel="flash",
    batch=2,
    heads=16,
    kv_heads=4,
    head_dim=128,
    dtype="bfloat16",
    kv_dtype="bfloat16",
    window=0,
)
WINDOW = KernelShape(**{**{name: getattr(FULL, name) for name in FULL.__struct_fields__}, "window": 1024})


def milliseconds(shape: KernelShape, tokens: int) -> float:
    return 0.02 + 1e-6 * tokens + 4e-9 * shape.visible_pairs(tokens)


def write(path: Path, lines: list[dict[str, object]], columns: tuple[str, ...] = COLUMNS) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(lines)
    return path


def lines(*shapes: KernelShape, lengths: tuple[int, ...] = LENGTHS) -> list[dict[str, object]]:
    return [
        {name: getattr(shape, name) for name in KernelShape.__struct_fields__}
        | {"tokens": tokens, "latency_ms": milliseconds(shape, tokens)}
        for shape in shapes
        for tokens in lengths
    ]


# ---- the file


def test_pairs_are_counted_as_by_hand() -> None:
    assert [FULL.visible_pairs(tokens) for tokens in (1, 2, 3)] == [1, 3, 6]
    assert WINDOW.visible_pairs(1024) == FULL.visible_pairs(1024)
    assert WINDOW.visible_pairs(1026) == FULL.visible_pairs(1024) + 2 * 1024


def test_lines_become_curves(tmp_path: Path) -> None:
    mixed = lines(FULL, WINDOW)[::-1]
    curves = read_curves(write(tmp_path / "curves.csv", [{**line, "comment": "more"} for line in mixed]))
    assert [curve.shape for curve in curves] == [WINDOW, FULL]
    assert [*curves[1].seconds] == list(LENGTHS)
    assert curves[1].seconds[256] == pytest.approx(milliseconds(FULL, 256) / 1000)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"latency_ms": "fast"}, r"line 3: .*latency_ms"),
        ({"latency_ms": 0}, r"line 3: .*latency_ms"),
        ({"latency_ms": -1}, r"line 3: .*latency_ms"),
        ({"latency_ms": "nan"}, r"line 3: .*latency_ms"),
        ({"latency_ms": "inf"}, r"line 3: .*latency_ms"),
        ({"latency_ms": ""}, r"line 3: .*latency_ms"),
        ({"tokens": "12.5"}, r"line 3: .*tokens"),
        ({"tokens": 0}, r"line 3: .*tokens"),
        ({"tokens": 10**30}, r"line 3: .*tokens"),
        ({"window": -1}, r"line 3: .*window"),
        ({"gpu": ""}, r"line 3: .*gpu"),
        ({"tokens": 256}, r"line 3: 256 tokens of this curve were there before"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, changes: dict[str, object], words: str) -> None:
    wrong = lines(FULL)
    wrong[1] |= changes
    with pytest.raises(ValidationInputError, match=words) as refusal:
        read_curves(write(tmp_path / "curves.csv", wrong))
    assert "\n" not in str(refusal.value)


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "curves.csv"
    with pytest.raises(ValidationInputError, match="cannot read .*curves.csv: No such file"):
        read_curves(path)
    write(path, [])
    with pytest.raises(ValidationInputError, match="holds no measurements"):
        read_curves(path)
    write(path, lines(FULL), tuple(name for name in COLUMNS if name not in ("window", "dtype")))
    with pytest.raises(ValidationInputError, match="has no column dtype, window; needed are gpu, software"):
        read_curves(path)
    path.write_bytes(b"")
    with pytest.raises(ValidationInputError, match="has no column gpu"):
        read_curves(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValidationInputError, match="is not a CSV file in UTF-8"):
        read_curves(path)
    path.write_text(",".join(COLUMNS) + '\n"cut', "utf-8")
    with pytest.raises(ValidationInputError, match="is not a CSV file in UTF-8"):
        read_curves(path)
    path.write_text(",".join(COLUMNS) + "\nNVIDIA H200,only", "utf-8")
    with pytest.raises(ValidationInputError, match="line 2"):
        read_curves(path)


# ---- the report


def test_exact_curves_score_without_error(tmp_path: Path) -> None:
    report = validate_model(write(tmp_path / "curves.csv", lines(FULL, WINDOW)))
    (whole,) = report.scores["all"]
    assert (report.curves, whole.points, whole.answered, whole.covered) == (2, 4, 4, 1.0)
    assert whole.p90_error is not None and whole.p90_error < 1e-6
    assert [one.group for one in report.scores["length"]] == ["2 × the cut", "4 × the cut"]
    assert [one.group for one in report.scores["window"]] == ["0", "1024"]
    (table,) = report_tables(report)
    assert "2 curves, fitted at tokens ≤ 4096, held against 8192 and 16384" in table.plain()


def test_wrong_times_score_badly(tmp_path: Path) -> None:
    late = [
        {**line, "latency_ms": 1.5 * milliseconds(FULL, 8192)} if line["tokens"] == 8192 else line
        for line in lines(FULL)
    ]
    (one, other) = validate_model(write(tmp_path / "curves.csv", late)).scores["length"]
    assert one.median_error == pytest.approx(1 / 3) and one.covered == 0
    assert other.median_error == pytest.approx(0, abs=1e-6) and other.covered == 1


def test_refusals_are_counted(tmp_path: Path) -> None:
    masked = [{**line, "latency_ms": 4e-9 * FULL.visible_pairs(int(str(line["tokens"])))} for line in lines(WINDOW)]
    short = lines(FULL, lengths=(1024, 2048, 4096, 8192))
    report = validate_model(write(tmp_path / "curves.csv", masked + short))
    assert report.refusals == {"outgrew its work": 2, "too few points": 1}
    assert report.scores["all"][0].answered == 0
    assert report.scores["all"][0].median_error is None
    assert "outgrew its work" in report_tables(report)[1].plain()
    assert "–" in report_tables(report)[0].plain()


def test_cut_and_lengths_can_be_chosen(tmp_path: Path) -> None:
    path = write(tmp_path / "curves.csv", lines(FULL))
    report = validate_model(path, cut=2048, lengths=[4096])
    assert [(point.tokens, point.cut) for point in report.held] == [(4096, 2048)]
    for cut, asked, words in (
        (0, None, "at least 1 token, not 0"),
        (4096, [4096], "beyond the cut, 4096"),
        (4096, [], "beyond the cut, 4096"),
        (3000, None, "no curve with points up to 3000 tokens and one at 6000 or 12000"),
        (100, [256], "no curve with points up to 100 tokens and one at 256"),
    ):
        with pytest.raises(ValidationInputError, match=words):
            validate_model(path, cut=cut, lengths=asked)


def test_a_score_is_counted_as_by_hand() -> None:
    held = [
        Held(FULL, 8192, 4096, seconds=1.0, predicted=1.1, low=0.9, high=1.3),
        Held(FULL, 8192, 4096, seconds=1.0, predicted=0.8, low=0.7, high=0.9),
        Held(FULL, 8192, 4096, seconds=1.0, refusal="band too wide"),
    ]
    found = score("some", held)
    assert (found.points, found.answered, found.covered) == (3, 2, 0.5)
    assert found.median_error == found.mean_error == pytest.approx(0.15)
    assert found.p90_error == pytest.approx(0.19)


def test_text_from_a_file_stays_text(tmp_path: Path) -> None:
    red = KernelShape(**{**{name: getattr(FULL, name) for name in FULL.__struct_fields__}, "kernel": "\x1b[31mred"})
    report = validate_model(write(tmp_path / "curves.csv", lines(red)))
    assert "\x1b" not in report_tables(report)[0].plain()


# ---- from card to card


def curve_on(gpu: str, share: float, kernel: str = "flash") -> KernelCurve:
    """A curve at a share of the roofline of a card."""
    from reports.cards import card_named

    shape = KernelShape(
        **{**{name: getattr(FULL, name) for name in FULL.__struct_fields__}, "gpu": gpu, "kernel": kernel}
    )
    rooflines = {n: card_named(gpu).roofline_seconds(shape_work(shape, n), "bfloat16") for n in LENGTHS}
    return KernelCurve(shape, {tokens: seconds / share for tokens, seconds in rooflines.items()})


def test_transfer_is_scored_both_ways() -> None:
    curves = [curve_on("NVIDIA H200", 0.5), curve_on("NVIDIA L40S", 0.5 / 1.1)]
    there, back = transfer_scores(curves)
    assert (there.source, there.target, there.same_kernel) == ("NVIDIA H200", "NVIDIA L40S", True)
    assert (there.points, there.answered, there.covered) == (7, 7, 1.0)
    assert there.median_error == pytest.approx(1 - 1 / 1.1)
    assert back.median_error == pytest.approx(0.1)


def test_a_wrong_transfer_is_seen() -> None:
    (there, _) = transfer_scores([curve_on("NVIDIA H200", 0.8), curve_on("NVIDIA L40S", 0.4, "another")])
    assert (there.same_kernel, there.covered) == (False, 0.0)
    (there, _) = transfer_scores([curve_on("NVIDIA H200", 0.1), curve_on("NVIDIA L40S", 0.1)])
    assert (there.answered, there.median_error) == (0, None)


def test_unknown_cards_and_other_shapes_are_left_out() -> None:
    curve = curve_on("NVIDIA H200", 0.5)
    assert transfer_scores([curve, replace(curve, shape=WINDOW)]) == []
    unknown = KernelShape(**{**{name: getattr(FULL, name) for name in FULL.__struct_fields__}, "gpu": "Z9"})
    assert transfer_scores([curve, replace(curve, shape=unknown)]) == []


# ---- the measured curves


def missed_targets(report: ValidationReport) -> list[str]:
    """The targets of the model that a report misses, of its answered points."""
    (whole,) = report.scores["all"]
    assert whole.median_error is not None and whole.p90_error is not None and whole.covered is not None
    targets = {
        "answered": whole.answered >= 0.85 * whole.points,
        "median": whole.median_error <= 0.04,
        "p90": whole.p90_error <= 0.20,
        "covered": 0.88 <= whole.covered <= 0.95,
    }
    return [name for name, met in targets.items() if not met]


needs_curves = pytest.mark.skipif(not CURVES.exists(), reason="the measured curves are not beside this checkout")


@needs_curves
def test_measured_curves_are_predicted_as_well_as_promised() -> None:
    report = validate_model(CURVES)
    assert (report.curves, report.scores["all"][0].points) == (565, 1130)
    assert missed_targets(report) == []
    assert {one.group: one.covered > 0.8 for one in report.scores["gpu"] if one.covered} == {
        "NVIDIA A100-SXM4-80GB": True,
        "NVIDIA H200": True,
        "NVIDIA L40S": True,
    }
    answered = sum(one.answered for one in report.transfers)
    assert sum(one.answered * (one.covered or 0) for one in report.transfers) > 0.85 * answered


@needs_curves
def test_wrong_curves_miss_the_targets() -> None:
    curves = read_curves(CURVES)
    slower = [
        replace(curve, seconds={n: s * (1.3 if n > 4096 else 1) for n, s in curve.seconds.items()}) for curve in curves
    ]
    held = tuple(hold_out(slower, 4096, (8192, 16384)))
    report = replace(validate_model(CURVES), held=held, scores={"all": (score("all", held),)})
    assert missed_targets(report) == ["median", "p90", "covered"]
