"""One call of one case between the marks that ncu waits for: `python -m benchmarks.profiled_call CASE`.

CASE is the JSON of a `benchmarks.measurement.Case`. Everything is set up and warm before the marks. nsys records all
of it, the building too, and shows the call as the range `attnscape: profiled`.
"""

import shlex
import sys

import msgspec
import torch

from benchmarks.measurement import Case
from benchmarks.ranges import named_range
from benchmarks.worker import WARM_UP_CALLS, Bench


def commands(case: Case) -> dict[str, str]:
    """The command lines of nsys and ncu that look at this call; neither sets the card's clocks."""
    target = (
        f"{shlex.quote(sys.executable)} -m benchmarks.profiled_call {shlex.quote(msgspec.json.encode(case).decode())}"
    )
    stem = f"{case.variant.replace('/', '-')}-{max(case.tokens, case.kv_tokens)}"
    ncu = "ncu --set full --nvtx --clock-control none --profile-from-start off --target-processes all"
    return {
        "nsys": f"nsys profile --trace cuda,nvtx --force-overwrite true -o {stem} {target}",
        "ncu": f"{ncu} --force-overwrite -o {stem} {target}",
    }


def main(words: list[str]) -> None:
    """Set the case up, warm it up, and run it once between the marks."""
    case = msgspec.json.decode(words[0], type=Case)
    bench = Bench("as it is")
    bench.prepare(case, torch.get_num_threads(), True)
    for _ in range(WARM_UP_CALLS):
        bench.ranged_call()
    device = case.problem().device_type
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.profiler.start()
    with named_range("profiled", device):
        bench.ranged_call()
        if device == "cuda":
            torch.cuda.synchronize()
    if device == "cuda":
        torch.cuda.profiler.stop()


if __name__ == "__main__":
    main(sys.argv[1:])
