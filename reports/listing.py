"""What could be measured, as tables for a terminal: the variants of the registry, the cases of a plan."""

from collections.abc import Sequence
from typing import Any

from reports.text_table import Table

OWN = "attnscape"


def inventory_blocks(items: Sequence[Any]) -> list[str | Table]:
    """A table of variants, given as `benchmarks.inventory.Item`, and a line for each other distribution's."""
    lines = tuple(
        (
            item.name + (" *" if item.default else ""),
            "exact" if item.exact else "approximate",
            ", ".join(item.devices),
            ", ".join(item.dtypes),
            ", ".join(item.modes),
            item.state(),
        )
        for item in items
    )
    table = Table("", ("variant", "is", "devices", "dtypes", "modes", "on this machine"), lines)
    others = sorted({item.origin for item in items} - {OWN})
    origins = [f"From {origin}: {', '.join(item.name for item in items if item.origin == origin)}" for origin in others]
    return [table, "* the variant of its definition to begin with", *origins]


def plan_blocks(entries: Sequence[Any]) -> list[str | Table]:
    """A table of what would run, given as entries of `benchmarks.campaign.plan`, and how many of them would."""
    lines = tuple(
        (
            entry.case.variant,
            entry.case.mode,
            entry.case.dtype,
            "yes" if entry.case.causal else "no",
            str(max(entry.case.tokens, entry.case.kv_tokens)),
            entry.case.inputs,
            f"{entry.predicted_bytes / 2**20:.0f}",
            "; ".join(entry.refusals) or ("time, memory, errors" if entry.timed else "errors"),
        )
        for entry in entries
    )
    header = ("variant", "mode", "dtype", "causal", "tokens", "inputs", "process MiB", "what")
    ready = sum(not entry.refusals for entry in entries)
    return [Table("", header, lines, right=frozenset({4, 6})), f"{len(entries)} cases, {ready} of them run here."]


def stages_table(stages: Sequence[Any]) -> Table:
    """A table of the stages of a suite, given as `benchmarks.gpu_suite.Stage`."""
    lines = tuple(
        (
            stage.name,
            f"{100 * stage.share:.0f} %",
            str(len(stage.variants)),
            str(len(stage.problems)),
            ", ".join(sorted({problem.mode for problem in stage.problems})),
            ", ".join(sorted({problem.dtype for problem in stage.problems})),
            f"{min(p.kv_tokens for p in stage.problems)} to {max(p.kv_tokens for p in stage.problems)}",
            "energy" if stage.energy else "time, memory, errors" if "normal" in stage.inputs else "errors",
        )
        for stage in stages
    )
    header = ("stage", "of the time", "variants", "problems", "modes", "dtypes", "tokens", "what")
    return Table("", header, lines, right=frozenset({1, 2, 3}))
