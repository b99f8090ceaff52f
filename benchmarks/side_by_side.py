"""Cases of a card that are proven at the same time: nothing is timed then, and a proof mostly waits for compilers."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Lock

from benchmarks.measurement import Case, Measurement

Report = Callable[[Measurement], None]


def lanes_of(cases: Sequence[Case], most: int) -> list[list[Case]]:
    """The cases of a card in at most so many parts of about as many, each variant's in one; else all in one."""
    if any(case.device == "cpu" for case in cases):
        return [list(cases)]
    by_variant: dict[str, list[Case]] = {}
    for case in cases:
        by_variant.setdefault(case.variant, []).append(case)
    lanes: list[list[Case]] = [[] for _ in range(min(most, len(by_variant)))]
    for same in by_variant.values():
        min(lanes, key=len).extend(same)
    return lanes


def side_by_side(
    works: Sequence[Callable[[Report], list[Case]]], report: Report, abandon: Callable[[], None]
) -> list[Case]:
    """What all works return, each in a thread of its own; their reports come one at a time.

    Where one raises, or Ctrl-C comes, `abandon` must make the others end; then that is raised.
    """
    lock, found = Lock(), list[Case]()

    def report_alone(row: Measurement) -> None:
        with lock:
            report(row)

    with ThreadPoolExecutor(len(works)) as pool:
        running = [pool.submit(work, report_alone) for work in works]
        try:
            for each in running:
                found += each.result()
        except BaseException:
            abandon()
            raise
    return found
