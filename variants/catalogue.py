"""The catalogue: what the folders hold, here and in other installed packages, loaded on demand."""

import difflib
import importlib
import re
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Final

from variants.installed import CatalogueError, VariantPackage, installed_packages

if TYPE_CHECKING:
    from variants.variant import Variant

ROOT = Path(__file__).parent
BASELINE = "memory_efficient/sdpa_flash"
NAME: Final = re.compile(r"[^/.]+/[^/._][^/.]*")
"""A folder and the stem of a file in it."""

NEAR: Final = 0.7
"""From this similarity on a name may be a slip of the pen; at less, any word resembles some variant."""


class UnknownVariant(LookupError):
    """No such variant; the message names the nearest one."""


def names(root: Path | None = None) -> list[str]:
    """Every variant's name, from the file stems alone: nothing is imported.

    With `root`, those of that folder only: `names(ROOT)` leaves out what other packages bring.
    Raises `CatalogueError` where two files have one name, or an installed package is not there.
    """
    if root is not None:
        return VariantPackage("", root, "").names()
    return sorted(_owners())


def package_of(name: str) -> VariantPackage:
    """The package that holds a known variant."""
    return _owners()[name]


def own_package() -> VariantPackage:
    """This project's own variants."""
    return VariantPackage("variants", ROOT, "attnscape")


def _owners() -> dict[str, VariantPackage]:
    owners: dict[str, VariantPackage] = {}
    for package in (own_package(), *installed_packages()):
        for name in package.names():
            if name in owners:
                both = f"{owners[name].file(name)} and {package.file(name)}"
                raise CatalogueError(f"two variants are called {name!r}: {both}")
            owners[name] = package
    return owners


def select(wanted: list[str]) -> list[str]:
    """The names that are wanted; a folder's name stands for all its variants, nothing for all.

    Raises `UnknownVariant`.
    """
    known = names()
    chosen = []
    for word in wanted:
        found = [name for name in known if word in (name, name.partition("/")[0])]
        if not found:
            raise UnknownVariant(_unknown(word, known))
        chosen += [name for name in found if name not in chosen]
    return chosen or known


def load(name: str) -> "Variant":
    """Import one variant. Raises `UnknownVariant`, or `RegistryError` where its file is at fault."""
    if NAME.fullmatch(name) is None or len(holding := _packages_with(name)) != 1:
        raise UnknownVariant(_unknown(name, names()))  # where two packages hold it, to list the names raises
    from variants.variant import RegistryError, Variant  # first, so that what lacks below is the file's own

    module = _imported(holding[0], name)
    found = getattr(module, "VARIANT", None)
    if not isinstance(found, Variant):
        raise RegistryError(f"{module.__file__}: declares no variant")
    return found


def _imported(package: VariantPackage, name: str) -> ModuleType:
    """The module of a variant. Raises `RegistryError`, naming its file, whatever its import raises."""
    from variants.declaration import RegistryError, raised
    from variants.requirement import InvalidRequirement

    where = package.file(name)
    try:
        return importlib.import_module(f"{package.name}.{name.replace('/', '.')}")
    except RegistryError:
        raise
    except InvalidRequirement as error:
        raise RegistryError(f"{where}: {error}") from error
    except Exception as error:  # a file of anyone's may raise anything
        lacking = str(error.name) if isinstance(error, ModuleNotFoundError) else ""
        if lacking and find_spec(lacking.partition(".")[0]) is None:
            told = f"needs the package {lacking}: import it inside `build`, and name it in `requires`"
            raise RegistryError(f"{where}: {told}") from error
        raise RegistryError(f"{where}: cannot be imported: {raised(error)}") from error


def _packages_with(name: str) -> list[VariantPackage]:
    """Those that hold a variant, found without listing all names, which takes milliseconds."""
    return [package for package in (own_package(), *installed_packages()) if package.file(name).is_file()]


def _unknown(word: str, known: list[str]) -> str:
    folders = sorted({name.partition("/")[0] for name in known})
    near = difflib.get_close_matches(word, known + folders, n=1, cutoff=NEAR)
    hint = f"; the nearest is {near[0]!r}" if near else ""
    return f"unknown variant {word!r}{hint} (see `attnscape list --names`)"
