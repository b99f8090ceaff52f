"""A profile as tables and sentences for a terminal."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from reports.profile_record import Declared, Operator, Profile
from reports.profile_verdict import verdict
from reports.quantities import digits, interval_text, mib_text, percent_text, seconds_text
from reports.text_table import Table

SHOWN: Final = 12
AMOUNTS: Final[tuple[Declared, Declared]] = ("flops", "moved_bytes")


def profile_blocks(profile: Profile) -> list[str | Table]:
    """Where the time of one call goes, what bounds it, and where the files are."""
    case = profile.case
    head = (
        f"{profile.label}, {case.mode}, {'causal' if case.causal else 'not causal'}, {case.length} tokens, "
        f"{case.dtype}, {profile.processor}: {_times_text(profile)}, {mib_text(profile.extra_bytes)} MiB extra, "
        f"kernel {profile.kernel}."
    )
    blocks: list[str | Table] = [head, _table("Operators, by their own time", profile.operators)]
    if profile.kernels:
        blocks.append(_table("Kernels on the card", profile.kernels, counted=False))
    return [*blocks, _amounts_text(profile), verdict(profile)]


def _times_text(profile: Profile) -> str:
    """The time with its interval; on a card all three times."""
    interval = f"({interval_text(profile.seconds_low, profile.seconds_high)})"
    if profile.latency_seconds is None:
        return f"{seconds_text(profile.seconds)} {interval}"
    hot = f"{seconds_text(profile.hot_seconds)} hot" if profile.hot_seconds else profile.hot_reason or "not hot"
    return f"{seconds_text(profile.seconds)} cold {interval}, {hot}, {seconds_text(profile.latency_seconds)} latency"


def _amounts_text(profile: Profile) -> str:
    """Arithmetic and traffic beside the ceilings, and what else a call is made of."""
    moved = "of inputs and outputs (declared)" if "moved_bytes" in profile.declared else "moved between operators"
    intensity = profile.flops / profile.moved_bytes if profile.moved_bytes else 0.0
    pace, peak = (digits(value / 1e9) for value in (profile.flops / profile.judged_seconds, profile.peak_flops))
    parts = [
        f"{pace} GFLOP/s{_mark(profile, 'flops')} of {peak}",
        f"{digits(intensity)} FLOP a byte {moved}",
        f"{profile.launches} {'kernel' if profile.on_card else 'operator'}{'' if profile.launches == 1 else 's'}",
    ]
    if profile.faults_per_call is not None:
        parts.append(f"{digits(profile.faults_per_call)} page faults a call")
    return f"{', '.join(parts)}.{' Declared: what a kernel does inside is not seen.' if profile.declared else ''}"


def _mark(profile: Profile, amount: Declared) -> str:
    return " (declared)" if amount in profile.declared else ""


def files_text(profiles: Sequence[Profile], files: Sequence[Path], pictures: Sequence[Path]) -> str:
    """Where everything lies, and how nsys and ncu look at the same call."""
    lines = [f"Figures: {', '.join(map(str, files))}", f"Pictures: {', '.join(map(str, pictures))}"]
    lines.append(f"Traces, for https://ui.perfetto.dev: {', '.join(profile.trace for profile in profiles)}")
    if snapshots := [profile.snapshot for profile in profiles if profile.snapshot]:
        lines.append(f"Allocator, for https://pytorch.org/memory_viz: {', '.join(snapshots)}")
    for profile in profiles:
        if profile.case.device.startswith("cuda"):
            lines += [f"{profile.label} in nsys:", f"  {profile.nsys}", "  in ncu:", f"  {profile.ncu}"]
    return "\n".join(lines)


def comparison_table(profiles: Sequence[Profile]) -> Table:
    """Two profiles side by side, with the ratio of the second to the first."""
    first, second = profiles
    flops, moved = ([_mark(profile, amount) for profile in profiles] for amount in AMOUNTS)
    rows = (
        _compared("time", seconds_text, [profile.seconds for profile in profiles]),
        _compared("hot time", seconds_text, [profile.hot_seconds for profile in profiles]),
        _compared("latency", seconds_text, [profile.latency_seconds for profile in profiles]),
        _compared("processor time", seconds_text, [profile.cpu_seconds for profile in profiles]),
        _compared("extra MiB", mib_text, [profile.extra_bytes for profile in profiles]),
        _compared("GFLOP", digits, [profile.flops / 1e9 for profile in profiles], flops),
        _compared("MB moved", digits, [profile.moved_bytes / 1e6 for profile in profiles], moved),
        _compared("kernels" if first.on_card else "operators", digits, [profile.launches for profile in profiles]),
        _compared("page faults", digits, [profile.faults_per_call for profile in profiles]),
    )
    known = tuple(row for row in rows if row is not None)
    return Table("Side by side", ("", first.label, second.label, "ratio"), known, right=frozenset({1, 2, 3}))


def _compared(
    name: str, text: Callable[[float], str], values: Sequence[float | None], marks: Sequence[str] = ("", "")
) -> tuple[str, ...] | None:
    """One line of two values, each with its mark, and their ratio; None where neither is known."""
    first, second = values
    if first is None and second is None:
        return None
    cells = ["–" if value is None else text(value) + mark for value, mark in zip(values, marks, strict=True)]
    return (name, *cells, digits(second / first) if first and second is not None else "–")


def _table(title: str, operators: Sequence[Operator], *, counted: bool = True) -> Table:
    total = sum(operator.seconds for operator in operators) or 1.0
    shown = operators[:SHOWN]
    rows = [_line(operator, total, counted) for operator in shown]
    if rest := operators[SHOWN:]:
        others = Operator(
            f"{len(rest)} others",
            sum(operator.calls for operator in rest),
            sum(operator.seconds for operator in rest),
            sum(operator.flops for operator in rest),
            sum(operator.bytes for operator in rest),
        )
        rows.append(_line(others, total, counted))
    header = ("operator", "time", "share", "calls", *(("GFLOP", "GFLOP/s", "MB", "GB/s") if counted else ()))
    return Table(title, header, tuple(rows), right=frozenset(range(1, len(header))))


def _line(operator: Operator, total: float, counted: bool) -> tuple[str, ...]:
    cells = (
        operator.name,
        seconds_text(operator.seconds) if operator.seconds else "0",
        percent_text(operator.seconds / total),
        str(operator.calls),
    )
    if not counted:
        return cells
    return (*cells, *_amount(operator.flops, 1e9, operator.seconds), *_amount(operator.bytes, 1e6, operator.seconds))


def _amount(count: int, unit: float, seconds: float) -> tuple[str, str]:
    """An amount in its unit, and a thousand million of it in a second."""
    if not count:
        return "–", "–"
    return digits(count / unit), digits(count / seconds / 1e9) if seconds else "–"
