"""The pages of the definitions, as Markdown, and their index: from what they declare and what was computed of them."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from reports.definition_formula import escaped, formula_markdown
from reports.quantities import digits

WRITTEN: Final = "<!-- written by `attnscape docs` -->"
NOT_ATTENTION: Final = "Not attention: "
_MASKS: Final = (("full", "all keys"), ("causal", "causal"))


def definition_page(item: Any, facts: Mapping[str, Any]) -> str:
    """One page, given `benchmarks.definition_facts.Described` and its facts."""
    parts = [
        f"{WRITTEN}\n# {item.title}",
        escaped(item.summary),
        f"{_kind(item)} Source: {item.source}. [All definitions](README.md)",
        f"## Formula\n\n{formula_markdown(item.formula)}",
        f"Its oracle, in float64: {escaped(_lowered(item.oracle))}",
        f"## On a real head\n\n![{_alt(item)}](pictures/{item.name}.png)\n\n{_caption(item, facts['matrix'])}",
        f"## Parameters\n\n{_parameters(item)}",
        f"## Error against exact attention\n\n{_errors(item, facts)}",
        f"## Cost\n\n{_costs(item, facts)}",
        f"## Variants\n\n{_variants(item)}",
    ]
    return "\n\n".join(parts) + "\n"


def index_page(items: Sequence[Any], facts: Mapping[str, Mapping[str, Any]]) -> str:
    """The page that lists all definitions."""
    exact = sum(item.exact for item in items)
    variants = sum(len(item.variants) for item in items)
    head = f"{len(items)} definitions, {exact} of them exact attention, and {variants} variants that compute them. "
    head += "A definition's page shows its formula, the matrix that it makes of a real head, and its errors."
    header = ("definition", "formula", "cost", "is", "devices", "source")
    lines = [
        (f"[{item.title}]({item.name}.md)", escaped(item.formula), *_index_cells(item, facts[item.name]), item.source)
        for item in items
    ]
    note = "Cost: query-key (or query-state) products at 16384 tokens as a share of those of full attention with the "
    note += "same mask, and how they grow between 4096 and 16384 tokens."
    return f"{WRITTEN}\n# Definitions\n\n{head}\n\n{_table(header, lines)}\n\n{note}\n"


def short_table(items: Sequence[Any], facts: Mapping[str, Mapping[str, Any]], folder: str) -> str:
    """The table of a document elsewhere: a line for each definition, with the variants that compute it."""
    header = ("definition", "computed by", "cost", "is", "devices")
    lines = [
        (
            f"[{item.title}]({folder}/{item.name}.md)",
            ", ".join(f"`{variant['name']}`" for variant in item.variants),
            *_index_cells(item, facts[item.name]),
        )
        for item in items
    ]
    return _table(header, lines)


def _index_cells(item: Any, facts: Mapping[str, Any]) -> tuple[str, str, str]:
    mask = next(name for name, _ in _MASKS if name not in facts["refusals"])
    share, growth = _share_and_growth(item, causal=mask == "causal")
    kind = "not attention" if item.title.startswith(NOT_ATTENTION) else "exact" if item.exact else "approximate"
    devices = sorted({device for variant in item.variants for device in variant["devices"]})
    return f"{share}, {growth}", kind, ", ".join(devices)


def _kind(item: Any) -> str:
    if item.exact:
        return "**Exact attention.**"
    if item.title.startswith(NOT_ATTENTION):
        return "**Not attention**, and here for comparison."
    return "**An approximation**, or another function than softmax attention over all keys."


def _alt(item: Any) -> str:
    if item.exact:
        return "Matrix of exact attention"
    return f"Matrices of exact attention and of {item.title.removeprefix(NOT_ATTENTION)}, and their difference"


def _caption(item: Any, matrix: Mapping[str, Any]) -> str:
    """What is seen, and what the numbers of the matrix are."""
    mask = "with a causal mask" if matrix["causal"] else "without a mask"
    shown = (
        f"A captured head of all-MiniLM-L6-v2, {matrix['tokens']} tokens, {mask}: rows are queries, columns keys, each "
        "cell the mean of a few of both. Colours tell multiples of the uniform weight, on a logarithmic scale; what "
        "is nought has no colour."
    )
    text = [shown]
    if not item.exact:
        text.append("In the difference purple is too much weight, orange too little.")
    text.append(_what_is_shown(item, matrix))
    if not matrix["derivative"]:
        text.append(_row_sums(matrix))
    if not item.exact:
        text.append(f"The distance from the exact matrix is {digits(matrix['distance'], 2)} of its norm.")
    return " ".join(part for part in text if part)


def _what_is_shown(item: Any, matrix: Mapping[str, Any]) -> str:
    text = ""
    if matrix["parameters"]:
        chosen = ", ".join(f"{name} {value}" for name, value in matrix["parameters"].items())
        usual = matrix["parameters"] == {name: default for name, default, *_ in item.parameters}
        text = f"Parameters: {chosen}"
        text += "." if usual else " (of each default from 64 on a quarter, as for a sequence four times as long)."
    if matrix["derivative"]:
        text += (
            " No one matrix maps V to the output, the same for each of its channels: shown is the derivative of the "
        )
        text += "output's first channel by V's first, at the head's own V."
    if matrix["divided_by"] != 1:
        text += f" The matrix is divided by {digits(matrix['divided_by'], 2)}, to be on the scale of the exact one."
    return text.strip()


def _row_sums(matrix: Mapping[str, Any]) -> str:
    low, high = matrix["row_sums"]
    sums = "Its rows sum to 1" if low == high == 1 else f"Its rows sum to between {low:g} and {high:g}"
    shares = [
        f"{100 * matrix[name]:.0f} % of the entries are {name}"
        for name in ("negative", "nought")
        if matrix[name] >= 0.005
    ]
    return ", ".join([sums, *shares]) + "."


def _parameters(item: Any) -> str:
    if not item.parameters:
        return "None."
    lines = [
        (f"`{name}`", f"{default}", f"{low} to {high}", text) for name, default, low, high, text in item.parameters
    ]
    return _table(("parameter", "default", "range", "meaning"), lines)


def _errors(item: Any, facts: Mapping[str, Any]) -> str:
    if item.exact:
        return "None: it is exact attention."
    masks = [(mask, title) for mask, title in _MASKS if mask not in facts["refusals"]]
    header = ("inputs", *(cell for _, title in masks for cell in (title, "mean of V")))
    lines, lost = [], False
    for kind, errors in facts["errors"].items():
        cells = []
        for mask, _ in masks:
            error, floor = errors[mask], facts["mean_of_v"][kind][mask]
            lost = lost or error >= floor
            cells += [digits(error, 2) + (" \\*" if error >= floor else ""), digits(floor, 2)]
        lines.append((f"`{kind}`", *cells))
    note = f"Relative Frobenius errors of the oracle with default parameters, {facts['tokens']} tokens, "
    note += f"{facts['heads']} heads of {facts['head_dim']} channels; what the inputs are: "
    note += "[measuring](../measuring.md#correct-first)."
    note += "" if item.normalised else " Weights of a row need not sum to one, and the errors count that too."
    note += " \\* no better than the mean of the visible V." if lost else ""
    without = {"full": "None without a mask", "causal": "None with a causal mask"}
    reasons = [f"{without[mask]}: {reason}." for mask, reason in facts["refusals"].items()]
    return "\n\n".join([_table(header, lines), " ".join([note, *reasons])])


def _costs(item: Any, facts: Mapping[str, Any]) -> str:
    shown = [
        (f"{length}", "causal" if causal else "all keys", f"{pairs:,}", _share(length, causal, pairs), f"{flops:.2e}")
        for length, causal, pairs, flops in item.costs
        if ("causal" if causal else "full") not in facts["refusals"]
    ]
    header = ("tokens", "mask", "products of a head", "of full attention", "FLOPs of a head")
    growths = [
        f"{title}: {_share_and_growth(item, causal=mask == 'causal')[1]}"
        for mask, title in _MASKS
        if mask not in facts["refusals"]
    ]
    note = (
        "Products of a query and a key, a segment or a state, and FLOPs of the forward pass with 64 channels, both as "
    )
    note += f"the formula asks for them. Growth between 4096 and 16384 tokens: {'; '.join(growths)}."
    return f"{_table(header, shown)}\n\n{note}"


def _share_and_growth(item: Any, *, causal: bool) -> tuple[str, str]:
    by_length = {length: pairs for length, mask, pairs, _ in item.costs if mask == causal}
    first, last = sorted(by_length)[-2:]
    exponent = math.log(by_length[last] / by_length[first]) / math.log(last / first) if by_length[first] else math.nan
    return _share(last, causal, by_length[last]), f"N^{exponent:.2f}"


def _share(length: int, causal: bool, pairs: int) -> str:
    share = 100 * pairs / (length * (length + 1) // 2 if causal else length * length)
    return "100 %" if share == 100 else f"{digits(share, 2)} %"


def _variants(item: Any) -> str:
    lines = [
        (
            f"`{variant['name']}`",
            variant["summary"],
            ", ".join(variant["devices"]),
            ", ".join(variant["dtypes"]),
            ", ".join(variant["modes"]),
            "; ".join(variant["needs"]) or "–",
            variant["source"] if variant["source"] != item.source else "as the definition",
        )
        for variant in item.variants
    ]
    return _table(("variant", "how", "devices", "dtypes", "modes", "needs", "source"), lines)


def _lowered(text: str) -> str:
    """A sentence after a colon: small at the start, unless a formula stands there."""
    return text[:1].lower() + text[1:] if text[1:2].islower() else text


def _table(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rows = [header, ["---"] * len(header), *lines]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)
