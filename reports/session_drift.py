"""How much a machine's pace changes from one run to the next, from what every run measures anew: its baseline.

On a machine that is shared, or whose clock follows its temperature, a whole run may be a quarter faster than
another. No interval of one run knows of that, and the curves of one shape cannot tell it apart from growth.
"""

import math
from collections import defaultdict
from collections.abc import Iterable
from itertools import chain
from statistics import fmean, median

from reports.records import Row


def session_drift(rows: Iterable[Row]) -> float:
    """The standard deviation of the baseline's time between runs, as a natural logarithm.

    Pooled over the shapes and lengths that several runs have measured; 0 where there are none.
    """
    paces: dict[object, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if row.status == "ok" and row.seconds is not None and row.ratio is not None and row.run:
            place = row.case.shape, row.case.length, row.baseline, row.baseline_causal
            paces[place][row.run].append(math.log(row.seconds / row.ratio))
    groups = [[median(found) for found in runs.values()] for runs in paces.values() if len(runs) > 1]
    if not groups:
        return 0.0
    squares = chain.from_iterable(((pace - fmean(group)) ** 2 for pace in group) for group in groups)
    return math.sqrt(sum(squares) / sum(len(group) - 1 for group in groups))
