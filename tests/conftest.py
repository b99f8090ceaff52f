"""Shapes in signatures are checked at every call; threads and seeds are fixed; a session has one zygote."""

from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
import torch
from jaxtyping import install_import_hook

VARIANTS = Path(__file__).parent.parent / "variants"
FAMILIES = sorted(folder.name for folder in VARIANTS.iterdir() if (folder / "__init__.py").is_file())

# Before any of them is imported. Not all of `variants`: the catalogue names some types for the type checker only.
install_import_hook([f"variants.{name}" for name in (*FAMILIES, "sdpa", "tiles")], "beartype.beartype")

from tests.lent_zygote import lent  # noqa: E402  # after the hook: it imports `variants`

torch.set_num_threads(1)  # two workers of two threads each would wait for one another

hypothesis.settings.register_profile("project", deadline=None, derandomize=True, print_blob=False)
hypothesis.settings.load_profile("project")


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def lent_zygote() -> Iterator[None]:
    with lent():
        yield
