"""Beside other packages: each defect of a small fake package is seen, failures are rows, a second run goes on."""

import json
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import attnscape
from benchmarks.accuracy import measure_errors
from benchmarks.append_log import StoreError
from benchmarks.inputs import make_inputs
from benchmarks.peer_comparison import PeerRequest, case_of, compare_peers, requested
from benchmarks.peer_declaration import InvalidPeers, Peer, declared_peers, query_sizes, score_matrices
from benchmarks.peer_parts import Held, Parts
from benchmarks.peer_probe import built, listening, swapped
from benchmarks.peer_store import LOG, PeerRow, PeerStore, latest, read_rows
from benchmarks.sweep import Settings
from reports.peer_table import MARK, PeerTableError, check_markdown, markdown_table, peer_blocks
from reports.text_table import Table
from variants import Problem
from variants.catalogue import load, names
from variants.tolerance import IMPLEMENTATION_TOLERANCE

ROOT = Path(__file__).parents[1]

PACKAGE = '''
"""Causal attention as several careless authors would write it."""
import torch

def weights(q, k):
    hidden = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).triu(1)
    return (q @ k.mT / q.shape[3] ** 0.5).masked_fill(hidden, -torch.inf).softmax(-1)

def right(q, k, v):
    print("a word of advice")
    return weights(q, k) @ v

def leaking(q, k, v):
    return (q @ k.mT / q.shape[3] ** 0.5).softmax(-1) @ v

def unnormalised(q, k, v):
    return 2 * right(q, k, v)

def coupling(q, k, v):
    return right(q / q.norm(dim=0), k, v)

def writing(q, k, v):
    out = right(q, k, v)
    v.add_(1)
    return out

def infinite(q, k, v):
    return right(q, k, v) / 0

def other(q, k, v):
    return v.cumsum(2) / torch.arange(1, v.shape[2] + 1)[:, None]

def misshapen(q, k, v):
    return right(q, k, v)[:, :1]

def raising(q, k, v):
    raise RuntimeError("no luck on this machine")

def dying(q, k, v):
    raise SystemExit(3)
'''

DECLARATIONS = '''
"""The fakes, held against the plain matrix products."""
from benchmarks.peer_declaration import Peer

def builder(form):
    def build(problem):
        import fake_peer
        return getattr(fake_peer, form)
    return build

def fake(form, **given):
    fields = {"package": "fake-peer", "variant": "full/matmul", "causal": True, "workspace_bytes": lambda _: 2**20}
    return Peer(**fields | {"form": form, "build": builder(form), **given})

PEERS = (
    *(fake(form) for form in ("right", "leaking", "unnormalised", "coupling", "writing", "infinite")),
    *(fake(form) for form in ("misshapen", "raising", "dying")),
    fake("other", agrees=False, note="the mean of V", variant="of_nobody"),
    fake("missing", package="absent-peer"),
    fake("hog", workspace_bytes=lambda problem: 2**50),
    fake("blocks", multiple=48),
)
'''
ABOUT = "Metadata-Version: 2.1\nName: fake-peer\nVersion: 1.2.3\n"
SMALL = ("--tokens", "64", "--heads", "2", "--head-dim", "8", "--threads", "1", "--seconds", "0.1")


def write(files: dict[str, str], folder: Path) -> Path:
    for path, text in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text, "utf-8")
    return folder


@pytest.fixture(scope="module")
def fakes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder of declarations, with the fake package installed for this process and its workers."""
    folder = tmp_path_factory.mktemp("fakes")
    write({"site/fake_peer/__init__.py": PACKAGE, "site/fake_peer-1.2.3.dist-info/METADATA": ABOUT}, folder)
    write({"peers/fakes.py": DECLARATIONS}, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder / "site")
        patch.setenv("PYTHONPATH", str(folder / "site"))
        yield folder / "peers"


@pytest.fixture(scope="module")
def out(fakes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of one run over all fakes."""
    folder = tmp_path_factory.mktemp("results")
    assert attnscape.main(["peers", "--declarations", str(fakes), "--out", str(folder), *SMALL]) == 0
    return folder


@pytest.fixture
def rows(out: Path) -> dict[str, PeerRow]:
    return {row.peer.removeprefix("fake-peer/"): row for row in read_rows(out)}


def call(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    status = attnscape.main(["peers", *(str(word) for word in words)])
    told, err = capsys.readouterr()
    return status, told, err


# ---- defects


@pytest.mark.parametrize(
    ("form", "defects"),
    [
        ("right", []),
        ("leaking", ["future", "error"]),
        ("unnormalised", ["row sums", "error"]),
        ("coupling", ["batch", "error"]),
        ("writing", ["inputs"]),
        ("infinite", ["row sums", "future", "batch", "error", "not finite"]),
        ("other", []),
    ],
)
def test_every_defect_is_seen_and_no_other(rows: dict[str, PeerRow], form: str, defects: list[str]) -> None:
    assert (rows[form].status, rows[form].reason) == ("ok", "")
    assert rows[form].defects == defects


def test_the_figures_of_the_defects(rows: dict[str, PeerRow]) -> None:
    right, leaking = rows["right"], rows["leaking"]
    assert right.future_move == right.batch_move == 0
    assert right.error is not None and right.error < IMPLEMENTATION_TOLERANCE["float32"]
    assert right.row_sum_low == pytest.approx(1) and right.row_sum_high == pytest.approx(1)
    assert leaking.future_move is not None and leaking.future_move > 0.1
    assert rows["unnormalised"].row_sum_low == pytest.approx(2)
    assert rows["unnormalised"].error == pytest.approx(1, rel=1e-4)
    assert rows["infinite"].error is None and rows["infinite"].finite is False
    assert not rows["other"].compared and rows["other"].row_sums
    assert right.said == "a word of advice"


# ---- times


def test_both_sides_and_the_baseline_are_measured_in_the_same_rounds(rows: dict[str, PeerRow]) -> None:
    row = rows["right"]
    assert (row.version, row.case.variant, row.case.causal) == ("1.2.3", "full/matmul", True)
    assert row.rounds >= 3 and {len(samples) for samples in row.wall_samples.values()} == {row.rounds}
    assert set(row.wall_samples) == set(row.cpu_samples) == {"peer", "variant", "baseline", "twin"}
    for name in ("ratio", "cpu_ratio", "variant_ratio", "peer_ratio"):
        middle, low, high = (getattr(row, name + end) for end in ("", "_low", "_high"))
        assert 0 < low <= middle <= high
    pairs = sorted(a / b for a, b in zip(row.wall_samples["variant"], row.wall_samples["peer"], strict=True))
    assert row.ratio_low is not None and row.ratio_high is not None
    assert pairs[0] <= row.ratio_low * 1.001 and row.ratio_high <= pairs[-1] * 1.001
    assert row.noisy is not None and row.seconds and row.variant_seconds and row.baseline_seconds


def test_a_peer_without_a_variant_is_held_against_the_baseline(rows: dict[str, PeerRow]) -> None:
    row = rows["other"]
    assert (row.case.variant, row.variant_status) == ("", "none")
    assert row.ratio is None and row.variant_ratio is None and row.peer_ratio is not None


# ---- failures are rows


@pytest.mark.parametrize(
    ("form", "status", "reason"),
    [
        ("raising", "error", "RuntimeError: no luck on this machine"),
        ("dying", "error", "ended with status 3 and no answer"),
        ("misshapen", "error", "ValueError: its output has shape (1, 1, 64, 8), not (1, 2, 64, 8)"),
        ("absent-peer/missing", "not installed", "not installed: pip install attnscape[peers]"),
        ("blocks", "unsupported", "needs a multiple of 48 tokens"),
    ],
)
def test_a_failure_is_a_row_with_its_reason(rows: dict[str, PeerRow], form: str, status: str, reason: str) -> None:
    row = rows[form]
    assert (row.status, row.reason) == (status, reason)
    assert row.ratio is row.peer_ratio is row.seconds is None and row.wall_samples == {}


def test_what_cannot_fit_is_not_tried(rows: dict[str, PeerRow]) -> None:
    assert rows["hog"].status == "out_of_memory"
    assert rows["hog"].reason.startswith("not tried: predicted 1048577")


def test_score_matrices_are_predicted() -> None:
    problem = Problem(tokens=16384)
    assert score_matrices(1)(problem) == 8 * 16384**2 * 4
    assert query_sizes(2)(problem) == 2 * 8 * 16384 * 64 * 4


# ---- what is kept


def test_a_run_that_is_stopped_keeps_what_is_done_and_the_next_goes_on(
    fakes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(done: int, total: int, row: Any) -> None:
        if row is not None:
            raise KeyboardInterrupt

    request = requested("64", ["fake-peer/other", "fake-peer/hog"], fakes, heads=2, head_dim=8)
    outcome = compare_peers(request, tmp_path, Settings(seconds=1, threads=1), stop)
    assert outcome.interrupted and len(outcome.rows) == 1
    first = (tmp_path / LOG).read_bytes()
    (tmp_path / LOG).write_bytes(first + first[:50])  # as a kill in the middle of writing leaves it
    words = ("--peers", "fake-peer/other,fake-peer/hog", "--declarations", fakes, "--out", tmp_path, "--json", *SMALL)
    status, told, err = call(capsys, *words)
    lines = (tmp_path / LOG).read_bytes().splitlines(keepends=True)
    assert status == 0 and err.startswith("compared 0 of 1\n")
    assert lines[0] == first and len(lines) == 2
    assert [row["status"] for row in json.loads(told)] == ["ok", "out_of_memory"]


def test_another_version_and_other_sources_are_measured_anew(out: Path) -> None:
    row = read_rows(out)[0]
    newer = msgspec.structs.replace(row, key="other", version="2.0")
    assert latest([row, newer]) == [newer]


def test_a_folder_in_use_or_of_another_kind_is_refused(out: Path, tmp_path: Path) -> None:
    with PeerStore(tmp_path), pytest.raises(StoreError, match="another run is writing"), PeerStore(tmp_path):
        pass
    (tmp_path / LOG).write_text("{}\n", "utf-8")
    with pytest.raises(StoreError, match="line 1: not a comparison"), PeerStore(tmp_path):
        pass
    line = (out / LOG).read_bytes().splitlines()[0].replace(b'"schema":1', b'"schema":9', 1)
    (tmp_path / LOG).write_bytes(line + b"\n")
    with pytest.raises(StoreError, match="schema 9, but this program writes schema 1"):
        read_rows(tmp_path)


# ---- what is shown


def test_the_tables_say_what_was_found(fakes: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, told, err = call(capsys, "--show", "--declarations", fakes, "--out", out, *SMALL)
    assert (status, err) == (0, "")
    lines = {line.split()[0]: line for line in told.splitlines() if line.startswith("fake-peer/")}
    assert "later tokens move earlier outputs; strays from our oracle" in lines["fake-peer/leaking"]
    assert "1.9999" in lines["fake-peer/unnormalised"] or "2.0000 to 2.0000" in lines["fake-peer/unnormalised"]
    assert "none found" in lines["fake-peer/right"]
    assert "no luck on this machine" in lines["fake-peer/raising"]
    assert "not installed: pip install attnscape[peers]" in told
    assert "fake-peer/other: another function; the mean of V" in told
    assert "6 comparisons: ours faster in" in told and "1 peers are not installed." in told


def test_a_document_is_written_and_no_other_is_replaced(
    fakes: Path, out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page, words = tmp_path / "peers.md", ("--show", "--declarations", fakes, "--out", out, *SMALL)
    assert call(capsys, *words, "--markdown", page)[0] == 0
    text = page.read_text("utf-8")
    assert text.startswith(MARK) and "| fake-peer/right | 1.2.3 | full/matmul | yes | 64 |" in text
    assert call(capsys, *words, "--markdown", page)[0] == 0
    page.write_text("mine\n", "utf-8")
    assert call(capsys, *words, "--markdown", page)[::2] == (
        2,
        f"attnscape: {page} is no document of `attnscape peers`; it is not replaced\n",
    )
    with pytest.raises(PeerTableError):
        check_markdown(page)
    assert page.read_text("utf-8") == "mine\n"


def test_cells_and_empty_results() -> None:
    assert "| a\\|b |" in markdown_table(Table("T", ("x",), (("a|b",),)))
    assert peer_blocks([]) == ["No comparison with a peer is there."]


def test_a_plan_measures_nothing(fakes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "nothing"
    status, told, _ = call(capsys, "--plan", "--declarations", fakes, "--out", folder, *SMALL)
    assert status == 0 and not folder.exists()
    assert "13 comparisons, 10 of them run here." in told
    assert "needs a multiple of 48 tokens" in told


# ---- bad input


def test_bad_input_is_one_line(fakes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--declarations", fakes, "--out", tmp_path, *SMALL)
    assert call(capsys, *words, "--peers", "fake-per")[::2] == (
        2,
        "attnscape: unknown peer 'fake-per'; the nearest is 'fake-peer'\n",
    )
    assert call(capsys, *words, "--tokens", "x")[0] == call(capsys, *words, "--seconds", "0")[0] == 2
    assert call(capsys, *words, "--dtype", "int8")[0] == call(capsys, *words, "--heads", "0")[0] == 2


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({}, "holds no declarations of peers"),
        ({"one.py": "PEERS = ()"}, "must set PEERS to a tuple of Peer"),
        ({"one.py": "import of_nobody"}, "ModuleNotFoundError: No module named 'of_nobody'"),
        ({"one.py": DECLARATIONS, "two.py": DECLARATIONS}, "both declare the peer 'fake-peer/right'"),
        ({"one.py": DECLARATIONS + "\nPEERS = (fake('x', parameters={'a': 1}),)"}, "'a'"),
    ],
)
def test_declarations_at_fault_are_named(files: dict[str, str], told: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidPeers, match=told):
        PeerRequest((64,), (), write(files, tmp_path)).pairs()


# ---- the declarations of this project


@pytest.fixture(scope="module")
def declared() -> dict[str, Peer]:
    return declared_peers()


def test_the_extra_names_every_package_and_no_other(declared: dict[str, Peer]) -> None:
    about = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    extra = {canonicalize_name(Requirement(line).name) for line in about["project"]["optional-dependencies"]["peers"]}
    assert extra - {"setuptools"} == {canonicalize_name(peer.package) for peer in declared.values()}


def test_every_peer_is_held_against_a_variant_that_can_do_it(declared: dict[str, Peer]) -> None:
    for peer in declared.values():
        problem = Problem(tokens=2048, causal=peer.causal)
        case = case_of(peer, problem)
        assert case.variant in names(), peer.name
        assert load(case.variant).refusals(problem) == [], peer.name
        assert peer.refusal(problem) is None, peer.name
        assert peer.workspace_bytes(problem) > problem.query_bytes / 2, peer.name
        assert peer.agrees or peer.note, f"{peer.name} does not say how it differs"


def test_stand_ins_give_what_they_hold() -> None:
    held, copied, x = Held(), Held(copied=True), torch.ones(2)
    held.held = copied.held = x
    assert held(torch.zeros(2)) is x and copied(None) is not x and torch.equal(copied(None), x)
    assert Parts(x, x).chunk(2, dim=-1) == (x, x)


KNOWN_ERRORS = {"performer-pytorch/favor", "performer-pytorch/favor-causal", "nystrom-attention/landmarks"}
"""They stray from the function that they are of, which is what the command is to find."""


def test_installed_peers_compute_what_their_declarations_say(declared: dict[str, Peer]) -> None:
    installed = [peer for peer in declared.values() if peer.version() is not None]
    if not installed:
        pytest.skip("needs the extra `peers`")
    for peer in installed:
        problem = Problem(tokens=512, heads=2, head_dim=32, causal=peer.causal)
        case, inputs = case_of(peer, problem), make_inputs(problem, "normal")
        with listening():
            out = swapped(built(peer, problem)(*(swapped(x, peer).contiguous() for x in inputs)), peer)
        assert out.shape == inputs[0].shape and not out.requires_grad, peer.name
        if peer.agrees:
            definition = load(case.variant).definition
            errors = measure_errors(out * peer.factor(problem), inputs, problem, definition, case.parameters)
            agrees = errors.implementation < IMPLEMENTATION_TOLERANCE["float32"]
            assert agrees != (peer.name in KNOWN_ERRORS), (peer.name, errors.implementation)


def test_a_version_is_that_of_the_distribution() -> None:
    assert Peer("x", "numpy", "full", True, lambda _: lambda: None, lambda _: 0).version() == metadata.version("numpy")


def test_the_documented_declaration_works(tmp_path: Path) -> None:
    blocks = (ROOT / "docs" / "peers.md").read_text("utf-8").split("```python\n")
    (tmp_path / "mine.py").write_text(blocks[1].partition("```")[0], "utf-8")
    (pair,) = PeerRequest((512,), ("my-attention",), tmp_path).pairs()
    assert (pair.case.variant, pair.case.parameters) == ("local_window/tiled", {"window": 257})
    assert pair.refusal()[0] == "not installed"
