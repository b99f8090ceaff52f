"""The ceilings of the machine that was measured: its card of the table, or what it was measured to reach."""

from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec

from reports.cards import Card, known_cards
from reports.records import Row

MEASURED: Final = "the fastest matmul and copy that were measured on it"


class _Ceilings(msgspec.Struct):
    matmul_flops: dict[str, float]
    copy_bytes_per_second: float


class _Gpu(msgspec.Struct):
    name: str
    memory_bytes: int
    l2_bytes: int | None = None


class _Machine(msgspec.Struct):
    memory_bytes: int
    ceilings: _Ceilings
    cpu: str = "this machine"
    gpu: _Gpu | None = None


def machine_card(description: Mapping[str, Any], rows: Iterable[Row], device: str) -> Card | None:
    """The card of the table that a GPU is, else one made of measured ceilings; None where nothing was recorded.

    A measured ceiling is only as good as its moment: where an exact variant was faster, that counts.
    """
    try:
        machine = msgspec.convert(dict(description), _Machine)
    except msgspec.ValidationError:
        return None
    gpu = machine.gpu if device.startswith("cuda") else None
    if gpu is not None and gpu.name in known_cards():
        return known_cards()[gpu.name]
    peaks = dict(machine.ceilings.matmul_flops)
    for row in rows:
        if row.exact and row.seconds and row.useful_flops and row.case.dtype in peaks:
            peaks[row.case.dtype] = max(peaks[row.case.dtype], row.useful_flops / row.seconds)
    card = Card(
        name=gpu.name if gpu else machine.cpu,
        memory_bytes=gpu.memory_bytes if gpu else machine.memory_bytes,
        bytes_per_second=machine.ceilings.copy_bytes_per_second,
        flop_per_second=peaks,
        source=MEASURED,
    )
    return msgspec.structs.replace(card, cache_bytes=gpu.l2_bytes) if gpu and gpu.l2_bytes else card
