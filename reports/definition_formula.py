"""A definition's formula, in plain Unicode where it is declared, for a Markdown page: LaTeX where it is mathematics."""

import re
import unicodedata
from collections.abc import Iterator
from typing import Final

FUNCTIONS: Final = (
    "softmax",
    "argmax",
    "tanh",
    "relu",
    "elu",
    "diag",
    "mean",
    "max",
    "min",
    "mod",
    "cos",
    "sin",
    "log",
    "ln",
)
"""Names that stand upright in a formula; other words of three letters or more are prose."""

SHORT_WORDS: Final = ("of", "or", "in", "at", "to", "by", "is", "as", "up", "if")
MOST_WORDS: Final = 4
"""A clause with more words of prose than this is a sentence, and stays one."""

_GREEK: Final = "alpha beta gamma delta eta theta kappa lambda mu xi pi rho sigma tau phi chi psi omega Delta Lambda"
_SIGNS: Final = (
    "sum prod in notin leq geq neq equiv rightarrow leftarrow infty cup cap circ odot times cdot pm "
    "lfloor rfloor lceil rceil Vert ldots"
)
_SYMBOLS: Final = {
    **dict(zip("αβγδηθκλμξπρστφχψωΔΛ", _GREEK.split(), strict=True)),
    **dict(zip("Σ∏∈∉≤≥≠≡→←∞∪∩∘⊙×·±⌊⌋⌈⌉‖…", _SIGNS.split(), strict=True)),
    "ε": "varepsilon",
}
_FRACTIONS: Final = {"½": r"\frac{1}{2}", "¼": r"\frac{1}{4}", "¾": r"\frac{3}{4}"}
_RAISED: Final = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺ᵀ", "0123456789-+T", strict=True))
_LOWERED: Final = dict(zip("₀₁₂₃₄₅₆₇₈₉", "0123456789", strict=True))
_ACCENTS: Final = {"\u0304": "bar", "\u0303": "tilde", "\u0302": "hat"}
_PLAIN: Final = {"−": "-", "{": r"\{", "}": r"\}", "%": r"\%", "#": r"\#", "&": r"\&", "_": r"\_", "\\": r"\setminus "}

_LETTER: Final = "[A-Za-z0-9α-ωΑ-Ω]"
_TOKEN: Final = re.compile(
    r"(?P<space> +)"
    r"|(?P<accent>[^\W\d_][\u0302\u0303\u0304])"
    r"|(?P<word>[A-Za-z]{3,}(?:-[A-Za-z]+)*|\b(?:of|or|in|at|to|by|is|as|up|if)\b)"
    r"|(?P<raised>[⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺ᵀ]+)"
    r"|(?P<lowered>[₀₁₂₃₄₅₆₇₈₉]+)"
    r"|(?P<script>[_^])"
    r"|(?P<root>√)"
    r"|(?P<other>.)"
)


def formula_markdown(formula: str) -> str:
    """The clauses of a formula, each as a block of mathematics or, where it is prose, as a sentence."""
    return "\n\n".join(
        text if is_prose(clause) else f"```math\n{text}\n```"
        for clause in clauses(formula)
        for text in [_sentence(clause) if is_prose(clause) else latex(clause)]
    )


def clauses(formula: str) -> list[str]:
    """The parts after semicolons, and after commas with two spaces; neighbouring sentences are one."""
    joined: list[str] = []
    for part in map(str.strip, re.split(r"(?<=[;,]) {2,}|(?<=;) ", formula)):
        if joined and (_open(joined[-1]) or (is_prose(joined[-1]) and is_prose(part))):
            joined[-1] += f" {part}"
        else:
            joined.append(part)
    return joined


def _open(text: str) -> bool:
    return any(text.count(opening) > text.count(closing) for opening, closing in ("()", "[]", "{}"))


def is_prose(clause: str) -> bool:
    """Whether a clause is a sentence with symbols rather than a formula with words."""
    bare = re.sub(r"_(?:\{[^{}]*\}|\w+)", "", clause)
    words = [match["word"] for match in _TOKEN.finditer(bare) if match["word"]]
    count = sum(len(word) > 2 and word not in FUNCTIONS for word in words)
    return count > MOST_WORDS or (count > MOST_WORDS / 2 and not re.search(r"[=≤<∈]", clause))


def latex(text: str) -> str:
    """A formula in Unicode as LaTeX that GitHub shows: no macro that it forbids."""
    letters = "".join(unicodedata.normalize("NFD", char) if char.isalpha() else char for char in text)
    letters = re.sub(r"\bN([kq])\b", r"N_\1", letters.rstrip(";,").replace("‖∞", "‖_∞"))
    joined = "".join(_pieces(letters))
    joined = re.sub(r" *(?<=[^\\]) (?=\\text\{)|(?<=\}) (?=\\text\{)", r"\\ ", joined)
    joined = re.sub(r"(\\text\{[^{}]*\}) +(?=[^ ])", r"\1\\ ", joined)
    while (merged := re.sub(r"\\text\{([^{}]*)\}(,?)\\ \\text\{([^{}]*)\}", r"\\text{\1\2 \3}", joined)) != joined:
        joined = merged
    return re.sub(r"\\in R\^", r"\\in \\mathbb{R}^", re.sub(r"(?<!\\) {2,}", " ", joined)).strip()


def escaped(text: str) -> str:
    """Plain text for Markdown: nothing in it is a mark."""
    return re.sub(r"([\\`*_\[\]<>#$])", r"\\\1", text)


def _sentence(clause: str) -> str:
    text = escaped(clause.rstrip(";,"))
    starts_with_a_word = re.match(r"[a-z]{3,}\b", text) is not None
    return (text[:1].upper() + text[1:] if starts_with_a_word else text) + ("" if text.endswith(".") else ".")


def _pieces(text: str) -> Iterator[str]:
    place = 0
    while place < len(text):
        match = _TOKEN.match(text, place)
        assert match is not None, "the last alternative takes any character"
        kind, found = str(match.lastgroup), match[0]
        place = match.end()
        if kind in ("script", "root"):
            inner, place = _argument(text, place, script=kind == "script")
            yield (rf"\sqrt{{{inner}}}" if kind == "root" else f"{found}{{{inner}}}")
        else:
            yield _piece(kind, found)


def _piece(kind: str, found: str) -> str:
    if kind == "space":
        return r"\;" if len(found) > 1 else " "
    if kind == "accent":
        return rf"\{_ACCENTS[found[1]]}{{{_symbol(found[0])}}}"
    if kind == "word":
        return rf"\mathrm{{{found}}}" if found in FUNCTIONS else rf"\text{{{found}}}"
    if kind == "raised":
        return f"^{{{''.join(_RAISED[char] for char in found)}}}"
    if kind == "lowered":
        return f"_{{{''.join(_LOWERED[char] for char in found)}}}"
    return _symbol(found)


def _symbol(char: str) -> str:
    if char in _SYMBOLS:
        return rf"\{_SYMBOLS[char]} "
    return _FRACTIONS.get(char) or _PLAIN.get(char, char)


def _argument(text: str, place: int, *, script: bool) -> tuple[str, int]:
    """What a root or a script applies to: a group in braces or brackets, or a run of letters and digits."""
    if place < len(text) and text[place] in "{(":
        end = _closing(text, place)
        inner = text[place + 1 : end]
        return (latex(inner) if text[place] == "{" or not script else latex(text[place : end + 1])), end + 1
    run = re.compile(f"{_LETTER}+" if script else rf"\d+|{_LETTER}(?:_{_LETTER}+)?").match(text, place)
    if run is None:
        return (_symbol(text[place]), place + 1) if place < len(text) else ("", place)
    if script and (len(run[0]) > 3 or run[0] in ("far", "own")) and run[0].isalpha():
        return rf"\text{{{run[0]}}}", run.end()
    return latex(run[0]), run.end()


def _closing(text: str, place: int) -> int:
    pairs = {"{": "}", "(": ")"}
    depth = 0
    for index in range(place, len(text)):
        depth += (text[index] == text[place]) - (text[index] == pairs[text[place]])
        if not depth:
            return index
    return len(text)
