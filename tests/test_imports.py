"""The folder names are the architecture: imports go one way and in no circle."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BELOW = {"msvit": {"msvit"}, "analysis": {"msvit", "analysis"}}


def modules():
    """Name → file of every module of the project."""
    files = [
        file for room in ("msvit", "analysis", "studies") for file in ROOT.glob(f"{room}/**/*.py")
    ]
    names = [file.relative_to(ROOT).with_suffix("").parts for file in files]
    return {
        ".".join(n[:-1] if n[-1] == "__init__" else n): f for n, f in zip(names, files, strict=True)
    }


def imported(name, known, everywhere):
    """Modules of the project that ``name`` imports; ``everywhere`` also within functions."""
    file = known[name]
    tree = ast.parse(file.read_text(encoding="utf-8"))
    package = name.split(".") if file.stem == "__init__" else name.split(".")[:-1]
    found = set()
    for node in ast.walk(tree) if everywhere else module_level(tree):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*start, *filter(None, [node.module])])
            found.update(f"{source}.{alias.name}" for alias in node.names)
            found.add(source)
    return {module for module in found if module in known} - {name}


def module_level(tree):
    """Statements that run when the module is imported, or that a type checker reads there."""
    for node in tree.body:
        yield from ast.walk(node) if isinstance(node, ast.If | ast.Try) else [node]


@pytest.mark.parametrize("room", BELOW)
def test_imports_go_down_only(room):
    known = modules()
    for name in known:
        if name.split(".")[0] == room:
            used = {module.split(".")[0] for module in imported(name, known, everywhere=True)}
            assert used <= BELOW[room], name


def test_no_module_imports_itself_by_way_of_others():
    known = modules()
    assert len(known) > 80
    graph = {name: imported(name, known, everywhere=False) for name in known}
    for name, used in graph.items():  # a package holds its modules and may import them
        graph[name] = {u for u in used if not name.startswith(f"{u}.")}
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle
