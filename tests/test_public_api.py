"""The public names: declared, sorted, real, and in docs/api.md."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ["adaptdl", *(f"adaptdl.{path.parent.name}" for path in sorted(ROOT.glob("src/adaptdl/*/__init__.py")))]


def documented_names() -> dict[str, list[str]]:
    """The sections of docs/api.md that are named for a package, and the names that their bullets start with."""
    names: dict[str, list[str]] = {}
    package = ""
    for line in (ROOT / "docs" / "api.md").read_text(encoding="utf-8").splitlines():
        if heading := re.match(r"#+ `(adaptdl[.\w]*)`", line):
            package = heading[1]
            names[package] = []
        elif package and (bullet := re.match(r"\* `(\w+)", line)):
            names[package].append(bullet[1])
    return names


@pytest.mark.parametrize("package", PACKAGES)
def test_all_is_sorted(package: str) -> None:
    declared = importlib.import_module(package).__all__
    assert list(declared) == sorted(set(declared))


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_is_real(package: str) -> None:
    module = importlib.import_module(package)
    assert [name for name in module.__all__ if not hasattr(module, name)] == []


@pytest.mark.parametrize("package", PACKAGES)
def test_the_docs_list_exactly_the_public_names(package: str) -> None:
    declared = [name for name in importlib.import_module(package).__all__ if not name.startswith("__")]
    assert sorted(documented_names().get(package, [])) == declared


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_thing_has_a_docstring(package: str) -> None:
    module = importlib.import_module(package)
    things = {name: getattr(module, name) for name in module.__all__}
    assert module.__doc__
    assert [name for name, thing in things.items() if callable(thing) and not (thing.__doc__ or "").strip()] == []
