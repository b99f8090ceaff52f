"""The pages of the definitions: formulas that can be set, matrices that are the oracle's, facts that hold."""

import json
import shutil
from dataclasses import replace
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.mathtext import MathTextParser
from PIL import Image

from benchmarks.attention_matrix import Realised, picture_parameters, realised_matrix
from benchmarks.definition_facts import Described, definition_named, described_definitions, matrix_facts
from benchmarks.definition_sources import sources_hash, variant_sources
from benchmarks.inputs import ALL_KINDS, make_inputs
from reports.definition_formula import clauses, escaped, formula_markdown, is_prose, latex
from reports.definition_pages import definition_page, index_page, short_table
from reports.definition_picture import CELLS, picture_png, pooled
from reports.definition_store import (
    FOLDER,
    definition_pages,
    facts_path,
    orphans,
    picture_path,
    read_facts,
    stale_facts,
    update_facts,
)
from reports.documents import DocumentsError, begin_mark, write_documents
from variants import Problem
from variants.catalogue import ROOT as VARIANTS
from variants.depthwise_convolution import filters

ROOT = Path(__file__).parent.parent
LARGEST_PICTURE = 40_000
LARGEST_TOGETHER = 1_500_000


@cache
def items() -> list[Described]:
    return described_definitions()


def item(name: str) -> Described:
    return next(one for one in items() if one.name == name)


@cache
def realised(name: str) -> Realised:
    return realised_matrix(definition_named(name))


# ---- formulas


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("o_i = S_iᵀq_i", "o_{i} = S_{i}^{T}q_{i}"),
        ("s_ij = q_i·k_j/√d;", r"s_{ij} = q_{i}\cdot k_{j}/\sqrt{d}"),
        ("γ_h = 1 − 2^{−5−h}", r"\gamma _{h} = 1 - 2^{-5-h}"),
        ("√(1 − e^{−2λ_c})", r"\sqrt{1 - e^{-2\lambda _{c}}}"),
        ("W ∈ R^{h×d}", r"W \in \mathbb{R}^{h\times d}"),
        ("k̄_a, Q̃ and ā", r"\bar{k}_{a}, \tilde{Q}\ \text{and}\ \bar{a}"),
        ("i + (Nk − Nq)", "i + (N_{k} - N_{q})"),
        ("Σ_near e^{s_ij} v_j", r"\sum _{\text{near}} e^{s_{ij}} v_{j}"),
        ("softmax_j(w) of x", r"\mathrm{softmax}_{j}(w)\ \text{of}\ x"),
        ("10⁻¹²", "10^{-12}"),
    ],
)
def test_a_formula_becomes_latex(text: str, expected: str) -> None:
    assert latex(text) == expected


def test_sentences_stay_sentences_and_brackets_stay_whole() -> None:
    formula = "o_i = [Σ_j w_j v_j; v → 1],  w from N(0, 1);  near: blocks at most one apart; q and k are not read"
    first, second, third = clauses(formula)
    assert first == "o_i = [Σ_j w_j v_j; v → 1]," and second == "w from N(0, 1);"
    assert is_prose(third) and not is_prose(first) and not is_prose(second)
    text = formula_markdown("softmax over the k keys j with the largest s_ij")
    assert text == r"Softmax over the k keys j with the largest s\_ij."
    assert formula_markdown("q and k are not read") == "q and k are not read."
    assert escaped("a_b*[c]") == r"a\_b\*\[c\]"


def test_every_formula_can_be_set() -> None:
    parser = MathTextParser("path")  # type: ignore[no-untyped-call]  # matplotlib's stubs leave it out
    for one in items():
        for clause in clauses(one.formula):
            if not is_prose(clause):
                parser.parse(f"${latex(clause)}$")
    with pytest.raises(ValueError, match="Double subscript"):
        parser.parse("$S_{i}_{j}$")


def test_no_macro_that_github_forbids() -> None:
    assert not any("operatorname" in formula_markdown(one.formula) for one in items())


# ---- matrices


def captured() -> tuple[torch.Tensor, torch.Tensor]:
    q, k, _ = make_inputs(Problem(tokens=512, heads=12, head_dim=32, dtype="float64"), "captured")
    return q[0, 5], k[0, 5]


def test_the_exact_matrix_is_the_softmax_of_the_captured_head() -> None:
    q, k = captured()
    found = realised("full")
    assert not found.derivative and not found.causal
    torch.testing.assert_close(found.matrix, torch.softmax(q @ k.T / 32**0.5, -1), rtol=1e-12, atol=0)
    assert torch.equal(found.matrix, found.exact)


def test_a_window_has_weight_in_its_band_alone() -> None:
    found = realised("local_window")
    assert found.parameters == {"window": 64} and matrix_facts(found)["row_sums"] == [1.0, 1.0]
    distance = (torch.arange(512)[:, None] - torch.arange(512)).abs()
    assert (found.matrix[distance > 32] == 0).all() and (found.matrix[distance <= 32] > 0).all()
    assert not torch.equal(found.matrix, found.exact)


def test_a_definition_without_a_form_for_all_keys_is_shown_causal() -> None:
    found = realised("retention")
    assert found.causal and not found.matrix.triu(1).any() and not found.exact.triu(1).any()
    assert matrix_facts(found)["divided_by"] > 4


def test_where_channels_differ_the_derivative_of_the_first_is_shown() -> None:
    found = realised("depthwise_convolution")
    taps = filters(1, 7, 32)[0, :, 0]
    expected = sum(torch.diag(taps[tap].expand(512 - abs(tap - 3)), 3 - tap) for tap in range(7))
    assert found.derivative and isinstance(expected, torch.Tensor)
    torch.testing.assert_close(found.matrix, expected, rtol=1e-7, atol=1e-8)


def test_sizes_shrink_to_a_quarter_and_other_parameters_stay() -> None:
    assert picture_parameters(definition_named("blockwise_low_rank")) == {"block": 32, "rank": 4}
    assert picture_parameters(definition_named("sink_window")) == {"window": 64, "sinks": 4}
    never = replace(
        definition_named("local_window"), constraint=lambda *, window: None if window == 256 else "the default alone"
    )
    assert picture_parameters(never) == {"window": 256}


# ---- pictures


def test_cells_are_means_and_pictures_are_small() -> None:
    cells = pooled(np.arange(16.0).reshape(4, 4))
    assert cells.shape == (4, 4)
    wide = pooled(np.arange(2.0 * CELLS * 2 * CELLS).reshape(2 * CELLS, 2 * CELLS))
    assert wide.shape == (CELLS, CELLS) and wide[0, 0] == (0 + 1 + 2 * CELLS + 2 * CELLS + 1) / 4
    found = realised("local_window")
    png = picture_png(found.matrix.numpy(), found.exact.numpy(), matrix_facts(found), "A window")
    assert len(png) < LARGEST_PICTURE
    image = Image.open(BytesIO(png)).convert("RGBA")
    colours = image.getcolors(1 << 20)
    assert image.size == (900, 350) and colours is not None
    assert max(colours)[1][3] == 0, "the ground is the page's own"


def test_shipped_pictures_are_small() -> None:
    sizes = [path.stat().st_size for path in (ROOT / FOLDER / "pictures").glob("*.png")]
    assert sizes and max(sizes) <= LARGEST_PICTURE and sum(sizes) <= LARGEST_TOGETHER


# ---- what outdates a page


def test_sources_are_the_definitions_own_and_what_it_imports() -> None:
    names = {path.relative_to(VARIANTS).as_posix() for path in variant_sources("variants.gated_linear")}
    assert {"gated_linear/__init__.py", "drawn_gates.py"} <= names
    assert not {"definition.py", "problem.py", "gated_linear/chunked.py", "retention/__init__.py"} & names


def test_hashes_differ_from_definition_to_definition_and_with_the_modules() -> None:
    favor, window = definition_named("favor"), definition_named("local_window")
    hashes = {sources_hash([favor], []), sources_hash([window], []), sources_hash([window], ["drawn_inputs"])}
    assert len(hashes) == 3
    assert len({one.fingerprint for one in items()}) == len(items())


def small_facts(one: Described) -> dict[str, Any]:
    return {
        "fingerprint": one.fingerprint,
        "tokens": 512,
        "heads": 4,
        "head_dim": 64,
        "errors": {"normal": {"full": 0.5, "causal": 0.25}},
        "refusals": {},
        "mean_of_v": {"normal": {"full": 0.4, "causal": 0.3}},
        "matrix": matrix_facts(realised("local_window")),
    }


def computed(name: str) -> tuple[dict[str, Any], Any, Any]:
    found = realised("local_window")
    return small_facts(item(name)), found.matrix.numpy(), found.exact.numpy()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    update_facts(tmp_path, [item("local_window"), item("favor")], computed, lambda _done, _total, _at: None)
    return tmp_path


def test_what_holds_is_not_computed_again(checkout: Path) -> None:
    both, asked = [item("local_window"), item("favor")], list[str]()

    def compute(name: str) -> tuple[dict[str, Any], Any, Any]:
        asked.append(name)
        return computed(name)

    assert update_facts(checkout, both, compute, lambda _done, _total, _at: None) == [] == asked
    changed = [both[0], replace(both[1], fingerprint="another")]
    assert [one.name for one in stale_facts(checkout, changed)] == ["favor"]
    update_facts(checkout, changed, compute, lambda _done, _total, _at: None)
    assert asked == ["favor"]


@pytest.mark.parametrize("harm", ["picture", "facts", "no picture", "no facts", "style"])
def test_a_picture_or_facts_that_changed_alone_are_seen(checkout: Path, harm: str) -> None:
    one = item("favor")
    picture, facts = picture_path(checkout, one.name), facts_path(checkout, one.name)
    if harm == "picture":
        picture.write_bytes(picture.read_bytes() + b"x")
    elif harm == "facts":
        facts.write_text("{", "utf-8")
    elif harm == "style":
        facts.write_text(json.dumps((read_facts(checkout, one.name) or {}) | {"style": -1}), "utf-8")
    else:
        (picture if harm == "no picture" else facts).unlink()
    assert stale_facts(checkout, [one]) == [one]


def test_files_of_definitions_that_are_no_more_are_found(checkout: Path) -> None:
    left = orphans(checkout, [item("favor")])
    assert [path.name for path in left] == ["local_window.json", "local_window.png"]
    assert orphans(checkout, [item("favor"), item("local_window")]) == []


# ---- pages


def test_a_page_tells_everything_that_is_declared() -> None:
    for one in items():
        page = definition_page(one, small_facts(one))
        assert one.title in page and f"pictures/{one.name}.png" in page
        assert all(f"`{name}` | {default} |" in page for name, default, *_ in one.parameters)
        assert all(f"`{variant['name']}`" in page for variant in one.variants)


def test_a_loss_to_the_mean_of_v_is_marked() -> None:
    page = definition_page(item("favor"), small_facts(item("favor")))
    assert "| `normal` | 0.50 \\* | 0.40 | 0.25 | 0.30 |" in page


def test_the_index_links_every_page(checkout: Path) -> None:
    pages, table = definition_pages(checkout, [item("favor"), item("local_window")])
    assert set(pages) == {f"{FOLDER}/{name}.md" for name in ("favor", "local_window", "README")}
    assert "](favor.md)" in pages[f"{FOLDER}/README.md"] and f"]({FOLDER}/favor.md)" in table
    facts = {one.name: small_facts(one) for one in items()}
    rows = [line for line in index_page(items(), facts).splitlines() if line.startswith("| [")]
    assert len(rows) == len(items()) == len(short_table(items(), facts, "x").splitlines()) - 2


def test_kept_facts_are_of_every_kind_of_inputs() -> None:
    for one in items():
        facts = read_facts(ROOT, one.name)
        assert facts is not None, f"{one.name}: `attnscape docs` computes what its page shows"
        assert set(facts["errors"]) == set(ALL_KINDS)


def test_documents_are_checked_and_written(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"a\n{begin_mark('x')}\nold\n<!-- end -->\nb\n", "utf-8")
    wanted = {
        "parts": {("README.md", "x"): "new"},
        "command_helps": {"run": "help"},
        "pages": {"docs/p/q.md": "text\n"},
    }
    page, commands = tmp_path / "docs" / "p" / "q.md", tmp_path / "docs" / "commands.md"
    assert write_documents(tmp_path, **wanted, only_check=True) == [readme, commands, page]  # type: ignore[arg-type]  # one dict of three types
    assert "old" in readme.read_text("utf-8") and not page.exists()
    write_documents(tmp_path, **wanted, only_check=False)  # type: ignore[arg-type]  # as above
    assert readme.read_text("utf-8") == f"a\n{begin_mark('x')}\nnew\n<!-- end -->\nb\n"
    assert write_documents(tmp_path, **wanted, only_check=True) == []  # type: ignore[arg-type]  # as above
    page.write_text("other", "utf-8")
    assert write_documents(tmp_path, **wanted, only_check=True) == [page]  # type: ignore[arg-type]  # as above
    shutil.rmtree(tmp_path / "docs")
    with pytest.raises(DocumentsError, match=r"no NOTES.md in"):
        write_documents(tmp_path, {("NOTES.md", "x"): ""}, {}, {}, only_check=True)
