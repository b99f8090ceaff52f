"""What bounds the call that a profile shows, in sentences with their figures."""

from typing import Final

from reports.profile_record import Operator, Profile
from reports.quantities import percent_text, seconds_text

RIVAL: Final = 1.25
RULES: Final = 0.5
"""From this share of the time on, one resource alone is said to bound the call."""

NEAR: Final = 0.1
"""Below this share of the time no resource is worth naming."""


def verdict(profile: Profile) -> str:
    """What bounds the call; where nothing does, where its time goes; on a card also what bounds the host's wait."""
    shares = profile.shares()
    ranked = sorted(shares, key=lambda name: -shares[name])
    # What moves between operators may stay in the cache: then it costs less than the copy of large tensors says.
    cached = shares["bandwidth"] > 1
    bound = ranked[1] if cached and shares[ranked[1]] >= RULES else ranked[0]
    told = ", ".join(f"{name} {percent_text(min(shares[name], 9.99))}" for name in ranked)
    told += " (more than all of it: most of what moves stays in the cache)" if cached else ""
    alone = f"each would take of {_judged_text(profile)}: {told}."
    if shares[bound] >= RULES:
        rivals = [name for name in ranked if name != bound and RIVAL * shares[name] >= shares[bound]]
        both = f" and {rivals[0]} about equally" if rivals and not cached else ""
        said = f"Bound by {bound}{both}: alone, {alone}"
    elif shares[bound] >= NEAR:
        said = f"Bound by none alone, by {bound} most; {alone} {_dominant_text(profile)}"
    else:
        said = f"Bound by no ceiling; {alone} {_dominant_text(profile)}"
    return " ".join(filter(None, (said.strip(), _host_text(profile))))


def _judged_text(profile: Profile) -> str:
    if not profile.disturbed:
        return "the card's time" if profile.on_card else "the measured time"
    return (
        f"{seconds_text(profile.judged_seconds)}, the processor time by thread, "
        f"since other processes took part of the {seconds_text(profile.seconds)}"
    )


def _dominant_text(profile: Profile) -> str:
    """The operator, or on a card the kernel, that takes the most, its share, and how near to the ceilings it comes."""
    kind, rows = ("kernel", profile.kernels) if profile.on_card and profile.kernels else ("operator", profile.operators)
    total = sum(row.seconds for row in rows)
    if not total:
        return ""
    first = max(rows, key=lambda row: row.seconds)
    share = percent_text(first.seconds / total)
    return f"The longest {kind}, {first.name}, takes {share} of them all{_pace(profile, first)}."


def _pace(profile: Profile, row: Operator) -> str:
    shares = {
        "a matmul's arithmetic": row.flops / row.seconds / profile.peak_flops,
        "a copy's bandwidth": row.bytes / row.seconds / profile.ceilings.copy_bytes_per_second,
    }
    known = [f"{percent_text(share)} of {what}" for what, share in shares.items() if share]
    return f", at {' and '.join(known)}" if known else ""


def _host_text(profile: Profile) -> str:
    """How long the host waits, and whether launches are why."""
    share = profile.launch_share
    if share is None or profile.latency_seconds is None:
        return ""
    said = f"The host waits {seconds_text(profile.latency_seconds)} for a call, "
    if share >= RULES:
        said += f"bound by launch: {profile.launches} launches alone would take {percent_text(share)} of that."
    else:
        said += f"of which launches alone would take {percent_text(share)}."
    if profile.host_bound_share >= RULES:
        late = percent_text(profile.host_bound_share)
        said += f" The card began {late} of the calls before they were queued whole: its own time holds the host's too."
    return said
