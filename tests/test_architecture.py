"""The rooms of the package form layers, importing it stays light, and docs/architecture.md names files that exist."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

import llmsearch_optuna

PACKAGE = Path(llmsearch_optuna.__file__).parent
ROOT = PACKAGE.parent
NAME = PACKAGE.name

LAYERS = (
    "redaction", "errors", "transient_errors", "types", "openmp", "progress", "verbosity", "fingerprint",
    "engine.sampling", "engine.request", "engine.completions", "engine.stats",  # what is asked and answered
    "stats", "metrics", "models", "task", "space", "presets", "backends", "declaration", "options", "engine", "storage",
    "demo", "optimize", "judging", "analysis", "report", "dashboard", "search_result", "api", "", "study_file",
    "workers", "cli", "__main__",
)  # fmt: skip
"""The rooms from low to high; each may import what stands before it. ``""`` is the package's own ``__init__``."""


@dataclass(frozen=True, order=True)
class Import:
    """One module imports another, anywhere in its text: at its head, in a function, or for its types."""

    line: int
    source: str
    target: str

    def __str__(self) -> str:
        return f"{self.source}:{self.line} imports {self.target}"


@cache
def modules() -> dict[str, Path]:
    """Module -> file, named from the package on; the package itself is ``""``."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def nodes(path: Path) -> tuple[ast.AST, ...]:
    """Everything that the code of a file consists of."""
    return tuple(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))


@cache
def imports() -> tuple[Import, ...]:
    return tuple(
        Import(node.lineno, source, target)
        for source, path in modules().items()
        for node in nodes(path)
        for target in targets(node)
    )


def targets(node: ast.AST) -> Iterator[str]:
    names: list[str] = []
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
        assert node.level == 0, "imports name their module in full"
        names = [f"{node.module}.{alias.name}" for alias in node.names]
    for name in names:
        if name == NAME or name.startswith(f"{NAME}."):
            yield module_of(name.removeprefix(NAME).removeprefix("."))


def module_of(name: str) -> str:
    """The module that a name is in, or is."""
    while name not in modules():
        name = name.rpartition(".")[0]
    return name


def layer(module: str) -> int:
    """The place of the narrowest room that a module is in."""
    parents = [module]
    while parents[-1]:
        parents.append(parents[-1].rpartition(".")[0])
    room = next((parent for parent in parents if parent in LAYERS), None)
    assert room is not None, f"{module} is in no room of LAYERS"
    assert room or not module, f"{module} is in no room of LAYERS"
    return LAYERS.index(room)


def test_no_room_imports_from_a_higher_one() -> None:
    upward = [f for f in sorted(imports()) if layer(f.source) < layer(f.target)]
    assert upward == [], "\n".join(map(str, upward))


def test_no_module_imports_itself_over_others() -> None:
    """Inside a room, too; what a function imports when it is called counts as well."""
    graph: dict[str, set[str]] = {}
    for found in imports():
        graph.setdefault(found.source, set()).add(found.target)
    for start in graph:
        seen, todo = set[str](), [*graph[start]]
        while todo:
            module = todo.pop()
            if module not in seen:
                seen.add(module)
                todo += graph.get(module, ())
        assert start not in seen, f"{start} imports itself over other modules"


def test_every_room_exists_and_no_two_names_are_alike() -> None:
    rooms = [room for room in LAYERS if room]
    assert all(room in modules() for room in rooms)
    assert not {f"{room}s" for room in rooms} & set(rooms)
    public = {"search", "score", "forecast"}
    assert not public & {module for module in modules() if "." not in module}


PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
TOUCHED = dict(re.findall(r"^\| (an? [a-z ]+?) \| (.+) \|$", PAGE, re.MULTILINE))
"""What to add -> the files to touch, as the page says it."""


def mentioning(word: str) -> set[str]:
    """The files of the package whose code has a name or a text that is this word; presets use them, as users do."""
    found = set()
    for path in modules().values():
        for node in nodes(path):
            said = getattr(node, "id", None), getattr(node, "name", None), getattr(node, "value", None)
            if word in (*said, getattr(node, "arg", None), getattr(node, "attr", None)):
                found.add(path.relative_to(PACKAGE).as_posix())
    return found - {"presets.py"}


@pytest.mark.parametrize(
    ("thing", "example", "most"),
    [
        ("a metric", "sentence_chrf", 2),
        ("a sampling parameter", "tfs", 6),
        ("a backend", "FunctionBackend", 1),
        ("a sampler", "RandomSuggester", 2),
        ("a figure", "learning_curves", 2),
        ("an option", "holdout_replicates", 1),
    ],
)
def test_the_page_names_all_files_that_one_of_them_stands_in(thing: str, example: str, most: int) -> None:
    """A backend and an option are used elsewhere; there it is named where it is declared."""
    named = re.findall(r"`([\w/]+\.py)`", TOUCHED[thing])
    assert len(named) <= most
    assert all((PACKAGE / file).is_file() for file in named)
    stands_in = mentioning(example)
    assert set(named) & stands_in
    if thing not in ("a backend", "an option"):
        assert stands_in <= set(named)


def test_the_page_lists_the_rooms_in_their_order() -> None:
    section = PAGE[PAGE.index("## Rooms") : PAGE.index("## What to touch")].partition("as well.")[2]
    assert re.findall(r"`([\w.]+)`", section) == [room or "__init__" for room in LAYERS]


def test_a_backend_is_one_class() -> None:
    """It is used as it is; nothing has to know it."""
    from llmsearch_optuna.backends.protocol import EngineBackend
    from llmsearch_optuna.optimize.resolve_engine import resolve_engine
    from tests.synthetic import TextEngine

    own = TextEngine()
    backend = resolve_engine(own).backend
    assert isinstance(backend, EngineBackend)
    assert resolve_engine(backend).backend is backend


@pytest.mark.parametrize("code", ["import llmsearch_optuna", "import llmsearch_optuna.options"])
def test_importing_loads_nothing_heavy(code: str) -> None:
    assert loaded_by(code) == []


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import contextlib, io\nfrom llmsearch_optuna.cli import main\n"
        "with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):\n    main(['--help'])"
    )
    assert loaded_by(code) == []


def loaded_by(code: str) -> list[str]:
    heavy = ("torch", "transformers", "optuna", "pandas", "datasets", "scipy", "plotly")
    script = f"{code}\nimport sys\nprint([m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return list(ast.literal_eval(done.stdout.splitlines()[-1]))
