"""The catalogue and the decorator: names, parameters, refusals, and every error naming its file."""

import importlib
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from variants import Problem, catalogue
from variants.catalogue import BASELINE, UnknownVariant, load, names, select
from variants.definition import InvalidParameter, Parameter
from variants.dtypes import TORCH_DTYPES
from variants.installed import VariantPackage
from variants.problem import DTYPE_BYTES, MODES
from variants.requirement import ComputeCapability, InvalidRequirement, Limit, Package
from variants.tolerance import GRADIENT_TOLERANCE, IMPLEMENTATION_TOLERANCE
from variants.variant import FLOATS, RegistryError, Variant

# ---- the catalogue


def test_names_are_file_stems_and_nothing_is_imported(tmp_path: Path) -> None:
    for path in ("a/one.py", "a/two.py", "a/__init__.py", "a/_private.py", "a/note.txt", "b/one.py", "top.py"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text("raise AssertionError('imported')", "utf-8")
    assert names(tmp_path) == ["a/one", "a/two", "b/one"]


def test_names_and_select_do_not_import_torch() -> None:
    script = (
        "import sys; from variants.catalogue import *; names(); select(['full']); assert 'torch' not in sys.modules"
    )
    root = Path(catalogue.__file__).parent.parent
    subprocess.run([sys.executable, "-c", script], cwd=root, check=True, timeout=60)


@pytest.mark.parametrize("name", names())
def test_every_file_declares_the_variant_of_its_name(name: str) -> None:
    variant = load(name)
    assert (variant.name, variant.family) == (name, name.partition("/")[0])
    assert variant.summary and variant.source and variant.definition.source and variant.definition.formula
    assert set(variant.devices) <= {"cpu", "cuda"}
    assert set(variant.dtypes) <= set(DTYPE_BYTES)
    assert set(variant.modes) <= set(MODES)


def test_the_default_of_each_definition_is_a_variant() -> None:
    assert {load(name).definition.default for name in names()} <= set(names())
    assert BASELINE in names()


def test_memory_efficient_variants_compute_full_attention() -> None:
    assert load("memory_efficient/chunked").definition is load("full/matmul").definition


@pytest.mark.parametrize(
    ("word", "near"),
    [
        ("full/matmull", "'full/matmul'"),
        ("memory_eficient/chunked", "'memory_efficient/chunked'"),
        ("local_window/tield", "'local_window/tiled'"),
        ("linear_scn", "'linear_scan'"),
    ],
)
def test_an_unknown_name_gets_the_nearest(word: str, near: str) -> None:
    for ask in (load, lambda one: select([one])):
        with pytest.raises(UnknownVariant) as caught:
            ask(word)
        assert f"unknown variant {word!r}; the nearest is {near}" in str(caught.value)


@pytest.mark.parametrize("word", ["", "zzzzzz", "full/__init__", "../setup", "full.matmul.build"])
def test_a_name_that_is_no_file_is_not_imported(word: str) -> None:
    with pytest.raises(UnknownVariant, match="unknown variant"):
        load(word)


@pytest.mark.parametrize("word", ["zzzzzz", "nosuch", "no_such/thing"])
def test_a_name_that_is_like_none_gets_no_nearest(word: str) -> None:
    with pytest.raises(UnknownVariant, match=rf"unknown variant '{word}' \(see `attnscape list --names`\)"):
        load(word)


def test_select_takes_folders_and_names_once() -> None:
    assert select([]) == names()
    assert select(["full"]) == [name for name in names() if name.startswith("full/")]
    assert select(["full/sdpa_math", "full", "full/matmul"]) == ["full/sdpa_math", "full/matmul"]


def test_a_file_without_a_variant_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    empty = ModuleType("variants.full.empty")
    empty.__file__ = "/where/it/is/variants/full/empty.py"
    monkeypatch.setitem(sys.modules, "variants.full.empty", empty)
    monkeypatch.setattr(catalogue, "_packages_with", lambda _: [catalogue.own_package()])
    with pytest.raises(RegistryError, match="/where/it/is/variants/full/empty.py: declares no variant"):
        load("full/empty")


# ---- the decorator

FOLDER = """
from variants.definition import Definition, Parameter
DEFINITION = Definition(
    name="toy", title="", formula="", source="", exact=True, oracle=None, visible_pairs=None, default="one",
    parameters=(Parameter("window", 4, 1, 8, "keys"),),
)
"""
FILE = """
from variants.variant import variant

@variant("toy/one", summary="", devices=("cpu",), modes=("forward",), workspace_bytes=lambda p, **k: 0)
def build(problem, *, window):
    return None
"""


DEVICES, MODES_SAID, COST = 'devices=("cpu",)', 'modes=("forward",)', "lambda p, **k: 0"
CALLED = "workspace_bytes must be called as workspace_bytes(problem, *, window)"
SUCH = 'such as (Package("xformers", "0.0.35"),)'
FAULTS = [
    (DEVICES, 'devices="cpu"', "devices must be a tuple, such as ('cpu',), not 'cpu'"),
    (DEVICES, 'devices=("gpu",)', "devices must be among cpu, cuda, not 'gpu'"),
    (DEVICES, "devices=()", "devices must be a tuple, such as ('cpu',), not ()"),
    (MODES_SAID, 'modes="forward"', "modes must be a tuple, such as ('forward',), not 'forward'"),
    (MODES_SAID, 'modes=("forward", "train")', "modes must be among forward, training, decode, not 'train'"),
    (DEVICES, DEVICES + ', dtypes=("fp32",)', "dtypes must be among float64, float32, bfloat16, float16, not 'fp32'"),
    (DEVICES, DEVICES + ', requires=("xformers",)', f"requires must hold requirements, {SUCH}, not 'xformers'"),
    (
        DEVICES,
        DEVICES + ', requires=Package("numpy", "1")',
        f"requires must be a tuple of requirements, {SUCH}, not Package(name='numpy'",
    ),
    (COST, "0", "workspace_bytes must be a function, workspace_bytes(problem, *, window), not 0"),
    (COST, "lambda: 0", f"{CALLED}: too many positional arguments"),
    (COST, "lambda p: 0", f"{CALLED}: got an unexpected keyword argument 'window'"),
    (DEVICES, DEVICES + ", executed_flops=3", "executed_flops must be a function, executed_flops(problem, *, window)"),
    ("problem, *, window", "problem, window", "the builder must take window by keyword: build(problem, *, window)"),
    ("problem, *, window", "*, window", "the builder must take the problem: build(problem, *, window)"),
    ("problem, *, window", "problem, q, *, window", "the builder must take the problem: build(problem, *, window)"),
]


def faulty(old: str, new: str) -> str:
    assert old in FILE
    return "from variants.requirement import Package\n" + FILE.replace(old, new)


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], Variant]]:
    """Imports a package of one definition and one variant, written for the purpose."""
    monkeypatch.syspath_prepend(tmp_path)

    def declared(folder: str, file: str) -> Variant:
        (tmp_path / "toy").mkdir()
        (tmp_path / "toy" / "__init__.py").write_text(folder, "utf-8")
        (tmp_path / "toy" / "one.py").write_text(file, "utf-8")
        found = importlib.import_module("toy.one").VARIANT
        assert isinstance(found, Variant)
        return found

    yield declared
    for name in ("toy", "toy.one"):
        sys.modules.pop(name, None)


def test_a_declaration_becomes_data(toy: Callable[[str, str], Variant]) -> None:
    variant = toy(FOLDER, FILE)
    assert (variant.name, variant.devices, variant.dtypes, variant.layout) == ("toy/one", ("cpu",), FLOATS, "bhnd")
    assert variant.definition.resolve() == {"window": 4}
    assert variant.refusals(Problem(tokens=4)) == []


@pytest.mark.parametrize(
    ("folder", "file", "said"),
    [
        (
            FOLDER,
            FILE.replace('"toy/one"', '"toy/two"'),
            r"toy/one\.py: declares 'toy/two', but its path says 'toy/one'",
        ),
        (FOLDER, FILE.replace('"toy/one"', '"one"'), r"toy/one\.py: declares 'one', but its path says 'toy/one'"),
        (FOLDER, FILE + FILE, r"toy/one\.py: declares 'toy/one' twice; one file holds one variant"),
        (FOLDER, FILE.replace("*, window", "*, window, rank"), r"toy/one\.py: undeclared parameter rank of toy"),
        (FOLDER, FILE.replace("*, window", ""), r"toy/one\.py: the builder leaves out parameter window"),
        (
            FOLDER,
            FILE.replace('devices=("cpu",)', 'devices=("cpu",), layout="nbhd"'),
            r"toy/one\.py: layout must be one of bhnd, bnhd, not 'nbhd'",
        ),
        *[(FOLDER, faulty(old, new), rf"toy/one\.py: {re.escape(said)}") for old, new, said in FAULTS],
        (
            FOLDER.replace('"window", 4', '"window", 9'),
            FILE,
            r"toy/one\.py: its definition's own values are wrong: window",
        ),
        ("", FILE, r"toy/__init__\.py: must set DEFINITION to a Definition"),
        ("DEFINITION = 'toy'", FILE, r"toy/__init__\.py: must set DEFINITION to a Definition"),
    ],
)
def test_a_declaration_that_contradicts_its_file(
    toy: Callable[[str, str], Variant], folder: str, file: str, said: str
) -> None:
    with pytest.raises(RegistryError, match=said):
        toy(folder, file)


@pytest.mark.parametrize(
    ("cost", "said"),
    [
        ("-1", "must return a whole number of at least 0, not -1"),
        ("1.5", "must return a whole number of at least 0, not 1.5"),
        ("p.head_size", "raises AttributeError: 'Problem' object has no attribute 'head_size'"),
    ],
)
def test_a_cost_that_cannot_be_names_its_file(toy: Callable[[str, str], Variant], cost: str, said: str) -> None:
    variant = toy(FOLDER, faulty(COST, f"lambda p, **k: {cost}, executed_flops=lambda p, **k: {cost}"))
    for ask, name in ((variant.predicted_bytes, "workspace_bytes"), (variant.flops, "executed_flops")):
        with pytest.raises(RegistryError, match=rf"toy/one\.py: {name} {re.escape(said)}"):
            ask(Problem(tokens=4))


def test_a_requirement_that_raises_names_its_file(toy: Callable[[str, str], Variant]) -> None:
    limit = 'requires=(Limit(lambda p: p.head_size < 256, "small heads"),)'
    variant = toy(FOLDER, "from variants.requirement import Limit\n" + FILE.replace(DEVICES, f"{DEVICES}, {limit}"))
    with pytest.raises(RegistryError, match=r"toy/one\.py: its Limit raises AttributeError: .*'head_size'"):
        variant.refusals(Problem(tokens=4))


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("def build(:", "cannot be imported: SyntaxError: invalid syntax (bad.py, line 1)"),
        ("raise KeyError", "cannot be imported: KeyError: without a word"),
        ("import no_such_package.inner", "needs the package no_such_package: import it inside `build`"),
        ("import importlib.no_such_module", "cannot be imported: ModuleNotFoundError: No module named 'importlib.no"),
        ("from variants.requirement import *\nPackage('numpy', 'latest')", "the least version of numpy must be one"),
        (
            FILE.replace("devices=", "dtype=(), devices="),
            "cannot be imported: TypeError: variant() got an unexpected key",
        ),
        ("", "declares no variant"),
    ],
)
def test_a_file_that_cannot_be_imported_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, said: str
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    for name, text in (("__init__", FOLDER), ("bad", file)):
        (tmp_path / "forms/toy").mkdir(parents=True, exist_ok=True)
        (tmp_path / f"forms/toy/{name}.py").write_text(text, "utf-8")
    package = VariantPackage("forms", tmp_path / "forms", "other 1.0")
    monkeypatch.setattr(catalogue, "installed_packages", lambda: [package])
    with pytest.raises(RegistryError) as caught:
        load("toy/bad")
    for name in ("forms", "forms.toy", "forms.toy.bad"):
        sys.modules.pop(name, None)
    assert str(caught.value).startswith(f"{tmp_path}/forms/toy/bad.py: {said}")
    assert "\n" not in str(caught.value)


# ---- parameters


def test_parameters_are_filled_in_and_checked() -> None:
    window = load("local_window/tiled").definition
    assert window.resolve() == {"window": 256}
    assert window.resolve({"window": 1}) == {"window": 1}
    low_rank = load("blockwise_low_rank/merged").definition
    assert low_rank.resolve({"rank": 16}) == {"block": 128, "rank": 16}


@pytest.mark.parametrize(
    ("name", "given", "said"),
    [
        ("local_window/tiled", {"window": 0}, r"window must be a whole number from 1 to \d+, not 0"),
        ("local_window/tiled", {"window": -3}, r"window must be a whole number from 1 to \d+, not -3"),
        ("local_window/tiled", {"window": 2.5}, r"window must be a whole number from 1 to \d+, not 2\.5"),
        ("local_window/tiled", {"window": True}, r"window must be a whole number from 1 to \d+, not True"),
        ("local_window/tiled", {"window": 1 << 40}, r"window must be a whole number from 1 to \d+"),
        ("local_window/tiled", {"widow": 4}, "local_window has no parameter 'widow'; it has window"),
        ("full/matmul", {"window": 4}, "full has no parameter 'window'; it has no parameters"),
        ("blockwise_low_rank/merged", {"block": 8, "rank": 3}, "rank must divide block: 3 does not divide 8"),
        ("blockwise_low_rank/merged", {"block": 2}, "rank must divide block: 4 does not divide 2"),
    ],
)
def test_a_wrong_parameter_is_named_with_its_range(name: str, given: dict[str, int], said: str) -> None:
    with pytest.raises(InvalidParameter, match=said):
        load(name).definition.resolve(given)


def test_both_ends_of_a_range_are_inside() -> None:
    parameter = Parameter("window", 4, 2, 8, "keys")
    assert [parameter.validate(value) for value in (2, 8)] == [2, 8]
    for outside in (1, 9):
        with pytest.raises(InvalidParameter, match=f"from 2 to 8, not {outside}"):
            parameter.validate(outside)


# ---- refusals


def pretend_card(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int] | None, count: int = 1) -> None:
    """A machine with cards of a compute capability, or without any."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: capability is not None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)


def test_every_reason_is_given_at_once() -> None:
    problem = Problem(tokens=8, head_dim=260)
    assert load("memory_efficient/sdpa_cudnn").refusals(problem) == [
        "needs CUDA",
        "no float32 (has bfloat16, float16)",
        "head_dim ≤ 256 and a multiple of 8",
    ]
    grouped = Problem(tokens=8, kv_heads=2, dtype="float64")
    assert load("memory_efficient/sdpa_efficient").refusals(grouped) == [
        "needs CUDA",
        "no float64 (has float32, bfloat16, float16)",
        "no grouped queries (kv_heads = heads only)",
    ]


def test_a_machine_without_a_card_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_card(monkeypatch, None)
    assert load("full/matmul").refusals(Problem(tokens=8, device="cuda")) == ["no CUDA device on this machine"]
    assert load("memory_efficient/sdpa_cudnn").refusals(Problem(tokens=8, device="cuda:1", head_dim=4)) == [
        "no CUDA device on this machine",
        "no float32 (has bfloat16, float16)",
        "head_dim ≤ 256 and a multiple of 8",
    ]


def test_a_card_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_card(monkeypatch, (9, 0), count=2)
    assert load("full/matmul").refusals(Problem(tokens=8, device="cuda:1")) == []
    assert load("full/matmul").refusals(Problem(tokens=8, device="cuda:2")) == [
        "no cuda:2: this machine has 2 CUDA device(s)"
    ]


def test_an_old_card_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = Problem(tokens=8, device="cuda", dtype="float16")
    pretend_card(monkeypatch, (7, 5))
    assert load("memory_efficient/sdpa_flash").refusals(problem) == [
        "needs compute capability ≥ 8.0 (this card has 7.5)"
    ]
    assert load("memory_efficient/sdpa_flash").refusals(problem.with_(dtype="float32", head_dim=512)) == [
        "needs compute capability ≥ 8.0 (this card has 7.5)",
        "CUDA: float16 or bfloat16 only",
        "CUDA: head_dim ≤ 256",
    ]
    for new in ((8, 0), (9, 0), (12, 1)):
        pretend_card(monkeypatch, new)
        assert load("memory_efficient/sdpa_flash").refusals(problem) == []


def test_an_oblong_causal_mask_is_refused_on_cuda_only(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_card(monkeypatch, (9, 0))
    oblong = Problem(tokens=8, kv_tokens=16, causal=True, device="cuda", dtype="bfloat16")
    assert load("memory_efficient/sdpa_flash").refusals(oblong) == ["CUDA: a causal mask only where tokens = kv_tokens"]
    assert load("memory_efficient/sdpa_flash").refusals(oblong.with_(device="cpu")) == []
    assert load("memory_efficient/sdpa_flash").refusals(oblong.with_(causal=False)) == []


@pytest.mark.parametrize("name", [name for name in names() if "decode" not in load(name).modes])
def test_a_mode_that_a_variant_lacks_is_refused(name: str) -> None:
    assert "no decode (has forward, training)" in load(name).refusals(Problem.of_length(8, mode="decode"))


def test_a_package_that_is_missing_or_too_old_is_refused() -> None:
    problem = Problem(tokens=8)
    assert Package("torch", "2.0").unmet(problem) is None
    old = Package("torch", "999.1").unmet(problem)
    assert old is not None and old.startswith("needs torch ≥ 999.1 (") and old.endswith(" is installed)")
    assert Package("no-such-distribution", "1").unmet(problem) == "needs no-such-distribution ≥ 1 (not installed)"
    with pytest.raises(InvalidRequirement, match=r"imports of natten must be a tuple of modules, not 'torch'"):
        Package("natten", "1", imports="torch")  # type: ignore[arg-type]  # the mistake itself


def test_xformers_is_asked_for_beside_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr("variants.requirement.metadata.version", missing)
    assert load("memory_efficient/xformers").refusals(Problem(tokens=8, dtype="float64")) == [
        "needs CUDA",
        "no float64 (has float32, bfloat16, float16)",
        "needs xformers ≥ 0.0.35 (not installed)",
    ]


def test_a_limit_gives_its_reason() -> None:
    limit = Limit(lambda problem: problem.head_dim <= 64, "head_dim ≤ 64")
    assert limit.unmet(Problem(tokens=8)) is None
    assert limit.unmet(Problem(tokens=8, head_dim=65)) == "head_dim ≤ 64"
    assert ComputeCapability(8).unmet(Problem(tokens=8)) is None  # there is no card to ask


# ---- tables by dtype


def test_every_dtype_is_in_every_table() -> None:
    tables = (DTYPE_BYTES, TORCH_DTYPES, IMPLEMENTATION_TOLERANCE, GRADIENT_TOLERANCE)
    assert all(set(table) == set(FLOATS) for table in tables)
    assert {name: dtype.itemsize for name, dtype in TORCH_DTYPES.items()} == DTYPE_BYTES


def test_tolerances_lie_between_rounding_and_a_wrong_answer() -> None:
    for name, dtype in TORCH_DTYPES.items():
        for table in (IMPLEMENTATION_TOLERANCE, GRADIENT_TOLERANCE):
            assert 2 * torch.finfo(dtype).eps < table[name] <= 0.05


# ---- memory


@pytest.mark.parametrize("name", names())
def test_predicted_bytes_count_inputs_outputs_and_workspace(name: str) -> None:
    problem = Problem(tokens=8, dtype="bfloat16")
    variant = load(name)
    chosen = variant.definition.resolve()
    workspace = variant.workspace_bytes(problem, **chosen)
    assert isinstance(workspace, int) and workspace >= 0
    assert variant.predicted_bytes(problem) == problem.input_output_bytes + workspace


def test_what_is_no_attention_says_so_in_its_title_and_in_its_rows() -> None:
    definitions = {load(name).definition.name: load(name).definition for name in names()}
    compared = {name for name, one in definitions.items() if not one.attention}
    assert compared == {name for name, one in definitions.items() if one.title.startswith("Not attention: ")}
    assert "gru" in compared and "full" not in compared
