"""Imports go one way: no module needs, by whatever way round, itself; and each can be the first to be imported."""

import ast
import os
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from scripts import ROOT, environment

FILES = [*ROOT.glob("kernels/**/*.py"), *ROOT.glob("minillm/**/*.py"), *ROOT.glob("train_*.py")]
# A process of its own: it runs, and its folder must not be on the path.
ALONE = [ROOT / "minillm" / "published" / "chat_sandbox.py"]


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in FILES if path not in ALONE}


def imports_of(source: str, modules) -> set[str]:
    """Those of these modules that a file imports, within functions too; absolute imports, as all here are.

    The packages above a module count only where they are named: Python runs them first, but `import a.b` in a/c.py
    asks for no more of `a` than that it has begun.
    """
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno} imports relatively"
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name for name in inner if name in modules} | ({node.module} if inner - modules.keys() else set())
    return found & modules.keys()


def circle_in(graph) -> list[str] | None:
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return None


def test_no_module_imports_itself_by_way_of_others():
    graph = {name: imports_of(path.read_text(), MODULES) for name, path in MODULES.items()}
    assert graph["minillm.published.vocabularies"] > {"minillm.published.subwords"}
    circle = circle_in(graph)
    assert circle is None, " ← ".join(circle)


@pytest.mark.parametrize(
    ("sources", "circle"),
    [
        ({"p": "", "p.a": "from p import b", "p.b": "import os"}, None),
        ({"p": "", "p.a": "from p import b", "p.b": "def f():\n from p.a import g"}, {"p.a", "p.b"}),
        ({"p": "from p.a import f", "p.a": "import p.b", "p.b": "from p import f"}, {"p", "p.a", "p.b"}),
    ],
)
def test_circles_are_found(sources, circle):
    found = circle_in({name: imports_of(source, sources) for name, source in sources.items()})
    assert (found and set(found)) == circle


def test_generating_needs_no_published_format():
    """What a model and `generate` import, directly or not, is none of other people's formats."""
    seen, todo = set(), {"minillm.generate", "minillm.inference", "minillm.gpt", "minillm.bert", "minillm.heads"}
    while todo:
        seen.add(name := todo.pop())
        todo |= imports_of(MODULES[name].read_text(), MODULES) - seen
    assert not [name for name in seen if name.startswith(("minillm.published", "minillm.commands"))]


EACH_FIRST = """
import importlib, os, sys, torch
for name in sys.argv[1:]:
    child = os.fork()
    if child == 0:
        importlib.import_module(name)
        os._exit(0)
    if os.waitpid(child, 0)[1] != 0:
        sys.exit(f"{name} cannot be the first to be imported")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_every_module_can_be_the_first():
    """Each in a process of its own, forked from one that has loaded PyTorch."""
    command = [sys.executable, "-c", EACH_FIRST, *sorted(MODULES)]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
