"""A peer: another package's attention that does the job of a variant, declared as data beside its builder."""

import difflib
import importlib.util
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from variants import Problem
from variants.catalogue import NEAR

FOLDER: Final = Path(__file__).parent / "peers"
PROBE_TOKENS: Final = 512


class InvalidPeers(ValueError):
    """Declarations that cannot be used, or a peer that nobody declares; the message is one line."""


@dataclass(frozen=True, slots=True)
class Peer:
    """One form of another package's attention, and the variant that it is held against.

    `build(problem)` imports the package, does all set-up and returns the callable that is timed: q, k, v in
    `layout` (`bhnd` or `bnhd`) to the output in the same layout, without gradients. `variant` is a variant's name,
    or a definition's, for the variant to begin with; where there is none, the peer is held against the baseline
    alone. `workspace_bytes` predicts its peak beyond inputs and output. Where `agrees` is false its function is
    another one by intention, and `note` says how it differs. Its output times `factor(problem)` is the
    definition's. `tokens` must be a multiple of `multiple`. Its defects are looked for at `probe_tokens`, or at
    fewer where the problem has fewer: that takes several calls, and what is wrong shows at short lengths too.
    """

    form: str
    package: str
    variant: str
    causal: bool
    build: Callable[[Problem], Callable[..., Any]]
    workspace_bytes: Callable[[Problem], int]
    parameters: Mapping[str, int] = field(default_factory=dict)
    layout: str = "bhnd"
    agrees: bool = True
    note: str = ""
    multiple: int = 1
    factor: Callable[[Problem], float] = lambda _: 1.0
    probe_tokens: int = PROBE_TOKENS
    file: Path = Path()

    @property
    def name(self) -> str:
        """The package and the form of it."""
        return f"{self.package}/{self.form}"

    def version(self) -> str | None:
        """The installed version of the package, or None."""
        try:
            return metadata.version(self.package)
        except metadata.PackageNotFoundError:
            return None

    def refusal(self, problem: Problem) -> str | None:
        """Why this peer cannot take the problem, or None."""
        if problem.tokens % self.multiple:
            return f"needs a multiple of {self.multiple} tokens"
        return None


def declared_peers(folder: Path = FOLDER) -> dict[str, Peer]:
    """Every peer that the files of a folder declare, by name.

    Raises `InvalidPeers` where a file cannot be imported or declares none, or two peers have one name.
    """
    files = sorted(file for file in folder.glob("*.py") if file.stem != "__init__")
    if not files:
        raise InvalidPeers(f"{folder} holds no declarations of peers")
    found: dict[str, Peer] = {}
    for file in files:
        for peer in peers_of(file):
            if peer.name in found:
                raise InvalidPeers(f"{found[peer.name].file} and {file} both declare the peer {peer.name!r}")
            found[peer.name] = peer
    return found


def peers_of(file: Path) -> tuple[Peer, ...]:
    """The peers in the `PEERS` of one file; the packages themselves are not imported. Raises `InvalidPeers`."""
    spec = importlib.util.spec_from_file_location(f"attnscape_peers_{file.stem}", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (ImportError, SyntaxError, NameError, AttributeError, TypeError, ValueError, OSError) as error:
        raise InvalidPeers(f"{file}: {type(error).__name__}: {error}") from error
    peers = getattr(module, "PEERS", ())
    if not peers or not all(isinstance(peer, Peer) for peer in peers):
        raise InvalidPeers(f"{file}: must set PEERS to a tuple of Peer")
    return tuple(_placed(peer, file) for peer in peers)


def select_peers(known: Mapping[str, Peer], wanted: Sequence[str]) -> list[Peer]:
    """The peers that are wanted; a package's name stands for all its forms, nothing for all. Raises `InvalidPeers`."""
    chosen: dict[str, Peer] = {}
    for word in wanted:
        found = {name: peer for name, peer in known.items() if word in (name, peer.package)}
        if not found:
            near = difflib.get_close_matches(word, [*known, *(peer.package for peer in known.values())], 1, NEAR)
            hint = f"; the nearest is {near[0]!r}" if near else ""
            raise InvalidPeers(f"unknown peer {word!r}{hint}")
        chosen |= found
    return list((chosen or dict(known)).values())


def score_matrices(count: float) -> Callable[[Problem], int]:
    """The bytes of so many matrices of a score for each pair of a query and a key."""

    def predict(problem: Problem) -> int:
        pairs = problem.batch * problem.heads * problem.tokens * problem.kv_tokens
        return round(count * pairs * problem.element_bytes)

    return predict


def query_sizes(count: float) -> Callable[[Problem], int]:
    """The bytes of so many tensors of the size of q."""
    return lambda problem: round(count * problem.query_bytes)


def _placed(peer: Peer, file: Path) -> Peer:
    values = {name: getattr(peer, name) for name in inspect.signature(Peer).parameters}
    return Peer(**values | {"file": file})
