"""Packages of variants that other installed distributions bring, found by their entry points and not imported."""

from dataclasses import dataclass
from functools import cache
from importlib.machinery import PathFinder
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Final

GROUP: Final = "attnscape.variants"
"""The group of entry points; each names a package whose folders are laid out like those of `variants`."""


class CatalogueError(ImportError):
    """An installed package of variants that cannot be used; the message names it."""


@dataclass(frozen=True, slots=True)
class VariantPackage:
    """One package of variants: its import name, its folder, and the distribution that brings it."""

    name: str
    folder: Path
    distribution: str

    def names(self) -> list[str]:
        """The variants' names, from the file stems alone."""
        return sorted(f"{path.parent.name}/{path.stem}" for path in self.folder.glob("*/[!_]*.py"))

    def file(self, name: str) -> Path:
        """Where the variant of that name would be."""
        return self.folder / f"{name}.py"


@cache
def installed_packages() -> tuple[VariantPackage, ...]:
    """The packages of the entry points, by name; each once, however many entry points name it.

    Raises `CatalogueError` where one names no package that could be found.
    """
    found = {entry.value: _package(entry) for entry in entry_points(group=GROUP)}
    return tuple(found[value] for value in sorted(found))


def _package(entry: EntryPoint) -> VariantPackage:
    distribution = f"{entry.dist.name} {entry.dist.version}" if entry.dist is not None else "an unknown distribution"
    folder = None if entry.attr else package_folder(entry.module)
    if folder is None:
        raise CatalogueError(
            f"{distribution}: its entry point {entry.name!r} in {GROUP} must name an importable package, "
            f"not {entry.value!r}"
        )
    return VariantPackage(entry.module, folder, distribution)


def package_folder(name: str) -> Path | None:
    """The folder of a package, without importing it or those around it; None where there is none."""
    top, *inner = name.split(".")
    spec = find_spec(top)
    for depth in range(len(inner)):
        if spec is None or spec.submodule_search_locations is None:
            return None
        inside = ".".join((top, *inner[: depth + 1]))
        spec = PathFinder.find_spec(inside, list(spec.submodule_search_locations))
    locations = [] if spec is None else list(spec.submodule_search_locations or ())
    return Path(locations[0]) if locations else None
