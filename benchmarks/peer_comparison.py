"""Our variants beside other packages': a session for each pair, both and the baseline sampled in turns."""

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from benchmarks.campaign import uninterrupted
from benchmarks.intervals import median_interval, paired_ratio
from benchmarks.lengths import parse_lengths
from benchmarks.machine import available_bytes
from benchmarks.measurement import Case
from benchmarks.peer_declaration import FOLDER, InvalidPeers, Peer, declared_peers, select_peers
from benchmarks.peer_store import PeerRow, PeerStore, facts_of, key_of, latest, read_rows
from benchmarks.process_memory import predicted_process_bytes
from benchmarks.provenance import Provenance, read_provenance
from benchmarks.session_times import ROUNDS, Entry, paired, settled
from benchmarks.sweep import MEMORY_SHARE, Settings, Sweep
from benchmarks.workers import Fault, Workers
from variants import Problem
from variants.catalogue import BASELINE, load, names
from variants.definition import InvalidParameter

MISSING: Final = "not installed"
INSTALL: Final = "not installed: pip install attnscape[peers]"
DESCRIBE_SECONDS: Final = 60.0

Progress = Callable[[int, int, PeerRow | None], None]


@dataclass(frozen=True, slots=True)
class Pair:
    """A peer, and our variant as the case that both are measured on; its variant is empty where we have none."""

    peer: Peer
    case: Case
    version: str

    def refusal(self) -> tuple[str, str]:
        """Status and reason where the peer is not to be tried, else two empty texts."""
        if not self.version:
            return MISSING, INSTALL
        if (reason := self.peer.refusal(self.case.problem())) is not None:
            return "unsupported", reason
        need, limit = self.predicted_bytes(), MEMORY_SHARE * available_bytes("cpu")
        if need > limit:
            gib = 2**30
            told = f"predicted {need / gib:.1f} GiB with ours and the baseline, but {limit / gib:.1f} GiB are to be had"
            return "out_of_memory", f"not tried: {told}"
        return "", ""

    def predicted_bytes(self) -> int:
        """The peer's process, and beside it those of the baseline, of its twin and of our variant."""
        problem = self.case.problem()
        baseline = baseline_case(self.case)
        beside = 2 * predicted_process_bytes(baseline)
        beside += predicted_process_bytes(self.case) if self.case.variant else 0
        # A process for the baseline holds what any process needs: inputs, torch itself, the oracle's pieces.
        # Several peers compute in float32 whatever comes in.
        wide = problem if problem.element_bytes >= 4 else problem.with_(dtype="float32")
        return predicted_process_bytes(baseline) + self.peer.workspace_bytes(wide) + beside


@dataclass(frozen=True, slots=True)
class PeerRequest:
    """Which peers on which problems; raises `InvalidPeers` where a name or a declaration is at fault."""

    lengths: tuple[int, ...]
    words: tuple[str, ...] = ()
    folder: Path = FOLDER
    shape: dict[str, Any] = field(default_factory=dict)

    def pairs(self) -> list[Pair]:
        """Lengths outermost, so that a run that is cut short has whole lengths."""
        peers = select_peers(declared_peers(self.folder), self.words)
        versions = {peer.package: peer.version() or "" for peer in peers}
        return [
            Pair(peer, case_of(peer, Problem(tokens=length, causal=peer.causal, **self.shape)), versions[peer.package])
            for length in self.lengths
            for peer in peers
        ]


def requested(tokens: str, words: Sequence[str], folder: Path | None, **shape: Any) -> PeerRequest:
    """What a user asked for. Raises `InvalidLengths`, `InvalidPeers` and `InvalidProblem`."""
    request = PeerRequest(tuple(parse_lengths(tokens)), tuple(words), folder or FOLDER, shape)
    request.pairs()
    return request


def case_of(peer: Peer, problem: Problem) -> Case:
    """The variant that the peer names, with its parameters; no variant where the catalogue has none of that name."""
    known = names()
    name = peer.variant
    if name not in known:
        first = next((one for one in known if one.startswith(f"{name}/")), None)
        name = load(first).definition.default if first else ""
    if not name:
        return Case.of("", {}, problem, "normal")
    try:
        return Case.of(name, load(name).definition.resolve(peer.parameters), problem, "normal")
    except InvalidParameter as error:
        raise InvalidPeers(f"{peer.file}: the peer {peer.name!r}: {error}") from error


def baseline_case(case: Case) -> Case:
    """Exact attention without a mask, on the same shapes and inputs."""
    return Case.of(BASELINE, {}, case.problem().with_(causal=False), case.inputs, case.seed)


@dataclass(slots=True)
class PeerOutcome:
    """What a comparison did: the rows of everything that was asked for, and how many of them were there before."""

    rows: list[PeerRow] = field(default_factory=list)
    skipped: int = 0
    measured: int = 0
    seconds: float = 0.0
    interrupted: bool = False


class PeerSession(Sweep):
    """Measures one pair at a time, with the sweep's own rounds."""

    def compare(self, pair: Pair, row: PeerRow, seconds: float) -> None:
        """Fill the row in about so many seconds; failures of either side included."""
        begin = time.monotonic()
        baseline, twin = (Entry(baseline_case(pair.case)) for _ in range(2))
        ours, other = Entry(pair.case), Entry(pair.case)
        try:
            self._prepare_peer(pair, other)
            if other.worker is not None:
                for entry in (baseline, twin, *((ours,) if pair.case.variant else ())):
                    if not self._refused(entry):
                        self._prepare(entry, timed=True)
                alive = [entry for entry in (ours, other) if entry.worker is not None]
                self._sample_rounds(baseline, twin, alive, begin + seconds)
        finally:
            self.references.close()
            for entry in (baseline, twin, ours, other):
                if entry.worker is not None:
                    entry.worker.end()
        fill(row, ours, other, baseline, twin)

    def _prepare_peer(self, pair: Pair, other: Entry) -> None:
        other.worker = self.workers.start()
        arguments = (pair.case, self.settings.threads, pair.peer.file, pair.peer.name)
        answer = self._ask(other, "prepare_peer", arguments)
        if answer is not None:
            other.figures = answer


def fill(row: PeerRow, ours: Entry, other: Entry, baseline: Entry, twin: Entry) -> None:
    """Figures and failures of the four processes into one row."""
    row.status, row.reason = other.status, other.reason
    if ours.figures or ours.status != "ok":
        row.variant_status, row.variant_reason = ours.status, ours.reason
    if not row.case.variant:
        row.variant_status, row.variant_reason = "none", "no variant of ours does this"
    for name, value in other.figures.items():
        if name in PeerRow.__struct_fields__ and name not in ("status", "reason"):
            setattr(row, name, value)
    if not other.samples:
        return
    row.rounds = len(other.samples)
    row.seconds = median_interval(list(other.walls().values()))[0]
    everyone = {"peer": other, "variant": ours, "baseline": baseline, "twin": twin}
    measured = {name: entry for name, entry in everyone.items() if entry.samples}
    row.wall_samples = {name: _in_order(entry, "wall_seconds") for name, entry in measured.items()}
    row.cpu_samples = {name: _in_order(entry, "cpu_seconds") for name, entry in measured.items()}
    if ours.samples.keys() & other.samples.keys():
        row.variant_seconds = median_interval(list(ours.walls().values()))[0]
        row.ratio, row.ratio_low, row.ratio_high = paired(ours, other)
        row.cpu_ratio, row.cpu_ratio_low, row.cpu_ratio_high = _cpu_ratio(ours, other)
    if other.samples.keys() & baseline.samples.keys() & twin.samples.keys():
        row.baseline_seconds = median_interval(list(baseline.walls().values()))[0]
        row.peer_ratio, row.peer_ratio_low, row.peer_ratio_high = paired(other, baseline)
        row.twin_ratio = paired(twin, baseline)[0]
        if ours.samples:
            row.variant_ratio, row.variant_ratio_low, row.variant_ratio_high = paired(ours, baseline)
    quiet = [settled(entry, baseline, twin) for entry in (ours, other) if entry.samples]
    row.noisy = row.rounds < ROUNDS or not all(quiet)


def _in_order(entry: Entry, name: str) -> list[float]:
    return [getattr(entry.samples[number], name) for number in sorted(entry.samples)]


def _cpu_ratio(ours: Entry, other: Entry) -> tuple[float, float, float]:
    common = sorted(ours.samples.keys() & other.samples.keys())
    a, b = ([entry.samples[number].cpu_seconds for number in common] for entry in (ours, other))
    return paired_ratio(a, b)


def compare_peers(request: PeerRequest, folder: Path, settings: Settings, progress: Progress) -> PeerOutcome:
    """Measure what the folder does not hold yet; every row is on the disk before the next pair begins.

    Raises `InvalidPeers`, `StoreError` and `InvalidProblem`. Ctrl-C ends it early, with what is done kept.
    """
    pairs = request.pairs()
    outcome, begin = PeerOutcome(), time.monotonic()
    with PeerStore(folder) as store, Workers() as workers:
        machine = describe(workers, settings.threads)
        # One process each: another package's attention is built in a way of its own, and not begun anew.
        session = PeerSession(workers, replace(settings, processes=1), machine, read_provenance())
        rows = [new_row(pair, session) for pair in pairs]
        try:
            _measure_into(store, session, list(zip(pairs, rows, strict=True)), progress, outcome)
        except KeyboardInterrupt:
            outcome.interrupted = True
        asked = {row.key for row in rows}
        outcome.rows = latest(row for row in store.rows if row.key in asked)
    outcome.seconds = time.monotonic() - begin
    return outcome


def _measure_into(
    store: PeerStore,
    session: PeerSession,
    work: list[tuple[Pair, PeerRow]],
    progress: Progress,
    outcome: PeerOutcome,
) -> None:
    done = {(row.key, row.code) for row in store.rows}
    left = [(pair, row) for pair, row in work if (row.key, row.code) not in done]
    outcome.skipped = len(work) - len(left)
    deadline = time.monotonic() + session.settings.seconds
    progress(0, len(left), None)
    for index, (pair, row) in enumerate(left):
        row.status, row.reason = pair.refusal()
        if not row.status:
            session.compare(pair, row, max(0.0, deadline - time.monotonic()) / (len(left) - index))
        row.measured_at = datetime.now(UTC).isoformat(timespec="seconds")
        with uninterrupted():
            store.append(row)
            outcome.measured += 1
        progress(outcome.measured, len(left), row)


def new_row(pair: Pair, session: PeerSession) -> PeerRow:
    """The row of a pair before it is measured."""
    peer, machine = pair.peer, session.machine
    return PeerRow(
        key=key_of(pair.case, peer.name, pair.version, machine["key"]),
        machine=machine["key"],
        machine_facts=facts_of(machine),
        measured_at="",
        code=code_of(session.provenance, peer.file),
        commit=session.provenance.commit,
        dirty=session.provenance.dirty,
        peer=peer.name,
        package=peer.package,
        version=pair.version,
        note=peer.note,
        agrees=peer.agrees,
        case=pair.case,
        threads=session.settings.threads,
    )


def code_of(provenance: Provenance, file: Path) -> str:
    """The hash of our sources and of the peer's declaration: where either changes, the pair is measured anew."""
    return hashlib.sha256(provenance.code.encode() + file.read_bytes()).hexdigest()[:16]


def describe(workers: Workers, threads: int) -> dict[str, Any]:
    """The machine's description and key. Raises `InvalidPeers` where no worker answers."""
    worker = workers.start()
    try:
        answer = worker.ask("describe", ("cpu", threads), DESCRIBE_SECONDS)
    except Fault as fault:
        raise InvalidPeers(f"the machine cannot be described: {fault.reason}") from fault
    finally:
        worker.end()
    if answer["status"] != "ok":
        raise InvalidPeers(f"the instrument does not work here: {answer['reason']}")
    machine: dict[str, Any] = answer["machine"]
    return machine


def kept_rows(request: PeerRequest, folder: Path) -> Iterator[PeerRow]:
    """The latest rows of a folder for what is asked, whatever machine and code they are of; measures nothing."""
    asked = {(pair.peer.name, pair.case.tokens) for pair in request.pairs()}
    return (row for row in latest(read_rows(folder)) if (row.peer, row.case.tokens) in asked)


@dataclass(frozen=True, slots=True)
class PlannedPair:
    """A pair as `--plan` shows it."""

    peer: str
    version: str
    case: Case
    predicted_bytes: int
    refusal: str


def plan_pairs(request: PeerRequest) -> list[PlannedPair]:
    """Every pair, with the memory predicted for its processes together and why it would not be tried."""
    return [
        PlannedPair(pair.peer.name, pair.version, pair.case, pair.predicted_bytes(), pair.refusal()[1])
        for pair in request.pairs()
    ]
