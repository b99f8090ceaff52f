import json
import math
from pathlib import Path

import msgspec
import pytest

from reports.cards import PAIRS, UNKNOWN_PAIR, Card, CardError, Work, card_named, known_cards, read_card, transfer
from reports.prediction import TimePrediction, Unpredictable

OWN = {
    "name": "Own card",
    "memory_bytes": 16_000_000_000,
    "bytes_per_second": 5e11,
    "flop_per_second": {"float32": 2e13, "bfloat16": 1e14},
    "source": "measured here",
}
TOML = """
name = "Own card"
memory_bytes = 16_000_000_000
bytes_per_second = 5e11
flop_per_second = { float32 = 2e13, bfloat16 = 1e14 }
source = "measured here"
"""
COMPUTE_BOUND = Work(flop=1e12, moved_bytes=1e6)
"""About 1 ms on an H200."""


def written(path: Path, content: object) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")
    return path


# ---- the table


def test_the_table_is_sound() -> None:
    cards = known_cards()
    assert len(cards) >= 10
    for card in cards.values():
        assert "NVIDIA" in card.source
        assert card.flop_per_second["float16"] > card.flop_per_second["float32"]
        assert card.flop_per_second.get("bfloat16", card.flop_per_second["float16"]) == card.flop_per_second["float16"]
        assert 1e11 < card.bytes_per_second < 1e13
        assert 1e10 < card.memory_bytes < 1e12
    assert "bfloat16" not in cards["Tesla V100-SXM2-16GB"].flop_per_second
    assert all(name in cards for pair in PAIRS for name in pair)


@pytest.mark.parametrize(
    ("asked", "name"),
    [
        ("NVIDIA H200", "NVIDIA H200"),
        ("l40s", "NVIDIA L40S"),
        ("L4", "NVIDIA L4"),
        ("A10", "NVIDIA A10"),
        ("H100 PCIe", "NVIDIA H100 PCIe"),
        ("HBM3", "NVIDIA H100 80GB HBM3"),
        ("4090", "NVIDIA GeForce RTX 4090"),
    ],
)
def test_a_card_is_found_by_a_part_of_its_name(asked: str, name: str) -> None:
    assert card_named(asked).name == name


@pytest.mark.parametrize("asked", ["A100", "H100", "NVIDIA", "Z9", "", "\x1b[31m"])
def test_a_name_that_does_not_say_which_card_is_refused(asked: str) -> None:
    with pytest.raises(CardError, match="no single card is called") as refusal:
        card_named(asked)
    assert "\x1b" not in str(refusal.value)
    assert "NVIDIA H200" in str(refusal.value)


def test_the_worked_roofline() -> None:
    h200, l4 = card_named("H200"), card_named("L4")
    causal = Work(4 * 4 * 32 * 128 * 131072 * 131073 / 2, 2 * 2 * 4 * (32 + 8) * 131072 * 128)
    assert causal.flop == pytest.approx(5.63e14, rel=1e-3)
    assert causal.moved_bytes == pytest.approx(10 * 2**30)
    assert h200.roofline_seconds(causal, "bfloat16") == pytest.approx(0.569, rel=2e-3)
    assert h200.roofline_seconds(Work(0, causal.moved_bytes), "bfloat16") == pytest.approx(2.24e-3, rel=2e-3)
    assert l4.roofline_seconds(Work(0, causal.moved_bytes), "bfloat16") == pytest.approx(35.8e-3, rel=2e-3)


def test_a_type_without_a_figure_is_refused() -> None:
    with pytest.raises(CardError, match="Tesla V100-PCIE-16GB has no figure for bfloat16; known are float32, float16"):
        card_named("V100-PCIE-16GB").roofline_seconds(COMPUTE_BOUND, "bfloat16")


# ---- one's own card


def test_a_card_file_is_read(tmp_path: Path) -> None:
    assert read_card(written(tmp_path / "own.toml", TOML)) == msgspec.convert(OWN, Card)
    assert read_card(written(tmp_path / "own.json", OWN)) == msgspec.convert(OWN, Card)


@pytest.mark.parametrize("field", list(OWN))
def test_a_missing_field_is_named(tmp_path: Path, field: str) -> None:
    path = written(tmp_path / "own.json", {name: value for name, value in OWN.items() if name != field})
    with pytest.raises(
        CardError, match=f"own.json describes no card: Object missing required field `{field}`"
    ) as found:
        read_card(path)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"memory_bytes": "16 GB"}, r"Expected `int`, got `str` - at `\$.memory_bytes`"),
        ({"memory_bytes": 0}, r"Expected `int` >= 1 - at `\$.memory_bytes`"),
        ({"bytes_per_second": -1.0}, r"`\$.bytes_per_second`"),
        ({"flop_per_second": {}}, r"`\$.flop_per_second`"),
        ({"flop_per_second": {"float32": 0.0}}, r"`\$.flop_per_second"),
        ({"bandwidth": 1e12}, "unknown field `bandwidth`"),
        ({"name": ""}, r"`\$.name`"),
    ],
)
def test_a_wrong_field_is_named(tmp_path: Path, changes: dict[str, object], words: str) -> None:
    with pytest.raises(CardError, match=words):
        read_card(written(tmp_path / "own.json", {**OWN, **changes}))


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("own.json", "{", "describes no card"),
        ("own.json", "[]", "describes no card: Expected `object`"),
        ("own.toml", "name =", "describes no card"),
        ("own.toml", TOML.replace("5e11", "inf"), "figures must be finite"),
        ("own.toml", TOML.replace("5e11", "nan"), "describes no card"),
        ("own.txt", TOML, "ends in .json or .toml"),
    ],
)
def test_a_file_without_a_card_is_refused(tmp_path: Path, name: str, content: str, words: str) -> None:
    with pytest.raises(CardError, match=words):
        read_card(written(tmp_path / name, content))


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CardError, match="cannot read .*own.json: No such file"):
        read_card(tmp_path / "own.json")
    (tmp_path / "own.toml").write_bytes(b'name = "\xff"')
    with pytest.raises(CardError, match="describes no card"):
        read_card(tmp_path / "own.toml")


# ---- to another card


def at_roofline(share: float, band: float = 1.0, card: str = "H200") -> TimePrediction:
    seconds = card_named(card).roofline_seconds(COMPUTE_BOUND, "bfloat16") / share
    return TimePrediction(seconds, seconds / band, seconds * band, "extrapolated")


def test_the_ratio_of_rooflines() -> None:
    h200, a100 = card_named("H200"), card_named("A100-SXM4-80GB")
    answer = transfer(at_roofline(0.5), COMPUTE_BOUND, "bfloat16", h200, a100)
    assert answer.provenance == "transferred"
    assert answer.seconds == pytest.approx(at_roofline(0.5).seconds * 989.5 / 312)
    assert answer.high / answer.seconds == pytest.approx(1.15)
    assert answer.seconds / answer.low == pytest.approx(1.15)


def test_a_memory_bound_kernel_goes_by_bandwidth() -> None:
    h200, h100, work = card_named("H200"), card_named("HBM3"), Work(1e9, 4.8e9)
    answer = transfer(TimePrediction(2e-3, 2e-3, 2e-3, "measured"), work, "bfloat16", h200, h100)
    assert answer.seconds == pytest.approx(2e-3 * 4.8 / 3.35)
    assert answer.high / answer.seconds == pytest.approx(1.02)


@pytest.mark.parametrize(("target", "factor"), [("L40S", 1.25), ("L4", 1.25), ("A10", 1.25), ("HBM3", 1.02)])
def test_the_band_of_an_unmeasured_pair_is_the_widest(target: str, factor: float) -> None:
    answer = transfer(at_roofline(0.5), COMPUTE_BOUND, "bfloat16", card_named("H200"), card_named(target))
    assert answer.high / answer.seconds == pytest.approx(factor)
    assert pytest.approx(0.25) == UNKNOWN_PAIR


def test_bands_add_up() -> None:
    h200, a100 = card_named("H200"), card_named("A100-SXM4-80GB")
    answer = transfer(at_roofline(0.5, band=1.2), COMPUTE_BOUND, "bfloat16", h200, a100)
    assert answer.high / answer.seconds == pytest.approx(math.exp(math.hypot(math.log(1.15), math.log(1.2))))
    with pytest.raises(Unpredictable, match=r"on NVIDIA L40S the ends of the band differ by a factor of 2\.\d"):
        transfer(at_roofline(0.5, band=1.4), COMPUTE_BOUND, "bfloat16", h200, card_named("L40S"))


def test_never_below_the_roofline_of_the_other_card() -> None:
    l40s = card_named("L40S")
    answer = transfer(at_roofline(0.95), COMPUTE_BOUND, "bfloat16", card_named("H200"), l40s)
    assert answer.low == l40s.roofline_seconds(COMPUTE_BOUND, "bfloat16")


def test_a_time_that_the_roofline_does_not_explain_is_refused() -> None:
    with pytest.raises(Unpredictable, match=r"on NVIDIA H200 the roofline explains 20 % of the time, less than 40 %"):
        transfer(at_roofline(0.2), COMPUTE_BOUND, "bfloat16", card_named("H200"), card_named("L40S"))


def test_to_the_same_card_nothing_changes() -> None:
    h200 = card_named("H200")
    assert transfer(at_roofline(0.1), COMPUTE_BOUND, "bfloat16", h200, h200) == at_roofline(0.1)


def test_there_and_back() -> None:
    h200, own = card_named("H200"), msgspec.convert(OWN, Card)
    there = transfer(at_roofline(0.5), COMPUTE_BOUND, "bfloat16", h200, own)
    back = transfer(there, COMPUTE_BOUND, "bfloat16", own, h200)
    assert back.seconds == pytest.approx(at_roofline(0.5).seconds)
    assert back.high > there.high * back.seconds / there.seconds
