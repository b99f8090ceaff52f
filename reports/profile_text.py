"""A profile as tables and sentences for a terminal."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from reports.profile_record import Operator, Profile
from reports.quantities import digits, interval_text, mib_text, percent_text, seconds_text
from reports.text_table import Table

SHOWN: Final = 12


def profile_blocks(profile: Profile) -> list[str | Table]:
    """Where the time of one call goes, what bounds it, and where the files are."""
    case = profile.case
    head = (
        f"{profile.label}, {case.mode}, {'causal' if case.causal else 'not causal'}, {case.length} tokens, "
        f"{case.dtype}, {profile.processor}: {seconds_text(profile.seconds)} "
        f"({interval_text(profile.seconds_low, profile.seconds_high)}), {mib_text(profile.extra_bytes)} MiB extra, "
        f"kernel {profile.kernel}."
    )
    blocks: list[str | Table] = [head, _table("Operators, by their own time", profile.operators)]
    if profile.kernels:
        blocks.append(_table("Kernels on the card", profile.kernels, counted=False))
    intensity = profile.flops / profile.moved_bytes if profile.moved_bytes else 0.0
    blocks.append(
        f"{digits(profile.flops / profile.seconds / 1e9)} GFLOP/s of {digits(profile.peak_flops / 1e9)}, "
        f"{digits(intensity)} FLOP a byte moved between operators, {profile.launches} operators, "
        f"{digits(profile.faults_per_call)} page faults a call."
    )
    return [*blocks, profile.verdict()]


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
    figures = [
        ("time", seconds_text, [profile.seconds for profile in profiles]),
        ("processor time", seconds_text, [profile.cpu_seconds for profile in profiles]),
        ("extra MiB", mib_text, [float(profile.extra_bytes) for profile in profiles]),
        ("GFLOP", digits, [profile.flops / 1e9 for profile in profiles]),
        ("MB moved", digits, [profile.moved_bytes / 1e6 for profile in profiles]),
        ("operators", digits, [float(profile.launches) for profile in profiles]),
        ("page faults", digits, [profile.faults_per_call for profile in profiles]),
    ]
    rows = tuple((name, text(a), text(b), digits(b / a) if a else "–") for name, text, (a, b) in figures)
    return Table("Side by side", ("", first.label, second.label, "ratio"), rows, right=frozenset({1, 2, 3}))


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
