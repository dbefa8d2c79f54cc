"""Who may import whom: arrows point left, and each heavy dependency lives in one ring (docs/design.md, "Rings")."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "adaptdl"

ARROWS: dict[str, set[str]] = {
    "__init__": set(),
    "errors": set(),
    "forking": set(),
    "plan": set(),
    "goodput": {"errors"},
    "policy": {"errors", "goodput"},
    "sim": {"errors", "goodput", "policy"},
    "torch": {"errors", "plan", "goodput"},
    "runtime": {"errors", "forking", "plan", "policy", "torch"},
    "tune": {"errors", "plan", "runtime"},
    "report": {"errors", "goodput", "policy", "sim"},
    "cli": {"sim", "report"},
    "__main__": {"cli"},
}
"""Each ring or root module, and those directly left of it; what is left of those is allowed as well."""

THIRD_PARTY: dict[str, set[str]] = {
    "goodput": {"numpy", "scipy"},
    "policy": {"numpy", "scipy"},
    "sim": {"numpy", "scipy"},
    "torch": {"numpy", "torch"},
    "runtime": {"numpy", "ray"},
    "tune": {"numpy", "ray"},
    "report": {"numpy"},
}
"""What each may import from outside, besides the standard library."""

ONLY_IN_FUNCTIONS: dict[str, set[str]] = {"runtime": {"torch"}, "tune": {"torch"}, "report": {"matplotlib"}}
"""Rings and packages that a ring imports inside of functions only: a coordinator never imports torch, replicas do; the
plain tables of a report need no matplotlib."""

LIGHT = [
    "adaptdl",
    "adaptdl.errors",
    "adaptdl.plan",
    "adaptdl.goodput",
    "adaptdl.policy",
    "adaptdl.sim",
    "adaptdl.report",
    "adaptdl.cli",
]


@dataclass(frozen=True, kw_only=True)
class Import:
    """One import statement's module, by absolute name."""

    module: str
    where: str
    in_function: bool
    only_types: bool
    """Under ``if TYPE_CHECKING:``: it points somewhere, but takes nothing."""


def ring_of(module: str) -> str:
    """Of ``adaptdl.torch.session``: ``torch``; of ``adaptdl``: ``__init__``."""
    return [*module.split("."), "__init__"][1]


def everything_left_of(ring: str) -> set[str]:
    allowed, todo = set[str](), [ring]
    while todo:
        new = ARROWS[todo.pop()] - allowed
        allowed |= new
        todo += new
    return allowed


def module_name(path: Path) -> str:
    parts = ["adaptdl", *path.relative_to(SOURCE).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path) -> Iterator[Import]:
    module = module_name(path)
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]

    def visit(node: ast.AST, in_function: bool, only_types: bool) -> Iterator[Import]:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            for name in _targets(node, package):
                where = f"{path.relative_to(SOURCE.parent)}:{node.lineno}"
                yield Import(module=name, where=where, in_function=in_function, only_types=only_types)
        in_function |= isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        for field, value in ast.iter_fields(node):
            children = value if isinstance(value, list) else [value]
            checking = isinstance(node, ast.If) and field == "body" and "TYPE_CHECKING" in ast.dump(node.test)
            for child in children:
                if isinstance(child, ast.AST):
                    yield from visit(child, in_function, only_types or checking)

    yield from visit(ast.parse(path.read_text(encoding="utf-8")), False, False)


def _targets(node: ast.Import | ast.ImportFrom, package: str) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    module = node.module or ""
    if node.level:
        base = package.split(".")
        module = ".".join([*base[: len(base) - node.level + 1], *([module] if module else [])])
    if module == "adaptdl":  # `from adaptdl import plan`
        return [f"adaptdl.{alias.name}" for alias in node.names]
    return [module]


SOURCES = sorted(SOURCE.rglob("*.py"))


def test_every_module_has_a_place_in_the_table() -> None:
    rings = {ring_of(module_name(path)) for path in SOURCES}
    assert rings <= set(ARROWS), "add the new ring to ARROWS, with what is left of it"
    assert {"goodput", "policy", "torch", "runtime", "tune"} <= rings


def test_arrows_make_no_circle() -> None:
    assert [ring for ring in ARROWS if ring in everything_left_of(ring)] == []


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_imports_point_left(path: Path) -> None:
    ring = ring_of(module_name(path))
    allowed = everything_left_of(ring) | {ring, "__init__"}
    ours = [found for found in imports_of(path) if found.module.split(".")[0] == "adaptdl"]
    assert [f"{found.where}: {found.module}" for found in ours if ring_of(found.module) not in allowed] == []
    lazy = ONLY_IN_FUNCTIONS.get(ring, set())
    eager = [found for found in ours if ring_of(found.module) in lazy and not (found.in_function or found.only_types)]
    assert [f"{found.where}: {found.module} outside of a function" for found in eager] == []


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_heavy_dependencies_stay_in_their_ring(path: Path) -> None:
    allowed = THIRD_PARTY.get(ring_of(module_name(path)), set()) | {"adaptdl"} | sys.stdlib_module_names
    lazy = ONLY_IN_FUNCTIONS.get(ring_of(module_name(path)), set())
    foreign = [
        found
        for found in imports_of(path)
        if (package := found.module.split(".")[0]) not in allowed
        and not (package in lazy and (found.in_function or found.only_types))
    ]
    assert [f"{found.where}: {found.module}" for found in foreign] == []


@pytest.mark.parametrize("modules", LIGHT, ids=str)
def test_light_modules_import_without_torch_and_ray(modules: str) -> None:
    import_with_blocked([modules], ["torch", "ray", "matplotlib"])


def test_the_command_line_imports_nothing_heavy() -> None:
    import_with_blocked(["adaptdl.cli"], ["numpy", "scipy", "torch", "ray", "matplotlib"])


def test_the_training_side_imports_without_ray() -> None:
    import_with_blocked(["adaptdl.torch"], ["ray"])


def test_the_ray_side_imports_without_torch() -> None:
    import_with_blocked(["adaptdl.runtime", "adaptdl.tune"], ["torch"])


def import_with_blocked(modules: list[str], blocked: list[str]) -> None:
    """Imports `modules` in a new interpreter in which importing any of `blocked` fails."""
    code = f"import sys; sys.modules.update(dict.fromkeys({blocked}, None)); import {', '.join(modules)}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
