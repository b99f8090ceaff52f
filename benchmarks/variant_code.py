"""Which code a row of a variant stands for, where the variant comes from another installed package."""

import hashlib
from collections.abc import Iterable

from variants.catalogue import own_package, package_of
from variants.installed import VariantPackage


def variant_codes(code: str, names: Iterable[str]) -> dict[str, str]:
    """For each variant the hash of what is measured: this project's own, with the sources of its package.

    So a change in another package has its own variants measured anew, and no others.
    """
    packages = {name: package_of(name) for name in set(names)}
    own = own_package()
    codes = {package: code if package == own else _with_sources(code, package) for package in set(packages.values())}
    return {name: codes[package] for name, package in packages.items()}


def _with_sources(code: str, package: VariantPackage) -> str:
    digest = hashlib.sha256(code.encode())
    for path in sorted(package.folder.rglob("*.py")):
        digest.update(str(path.relative_to(package.folder)).encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
