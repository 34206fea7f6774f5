"""The shape of the code: who may import whom, what is loaded late, what every module carries.

Imports are read from the syntax tree, so nothing is executed; one test then starts a real
process to see that the heavy packages stay out.
"""

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

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

REPOSITORY = Path(__file__).resolve().parent.parent
PACKAGES = ("facerec", "gallery", "training")

COMPOSITION_ROOTS = ("facerec.cli", "facerec.web", "facerec.demo", "app")
"""These may import everything."""

FORBIDDEN = {
    "core": ("gallery", "training", "gradio", "torch", *COMPOSITION_ROOTS),
    "gallery": ("training", "gradio", "torch", *COMPOSITION_ROOTS),
    "training": ("gallery", "gradio", *COMPOSITION_ROOTS),
}
"""What a layer never imports, not even inside a function."""

LATE = ("torch", "gradio", "insightface", "onnx", "matplotlib")
"""Imported inside the function that needs them, if at all."""

MAY_LOAD_AT_ONCE = {"facerec.web": ("gradio",), "training": ("torch",)}
"""Packages that are themselves imported late."""

DISTRIBUTIONS = {
    "cv2": "opencv-python",
    "PIL": "pillow",
    "faiss": "faiss-cpu",
    "fastapi": "gradio",
    "uvicorn": "gradio",
    "starlette": "gradio",
    "grpc": "grpcio",
    "milvus_lite": "milvus-lite",
    "pymilvus": "pymilvus",
    "pydantic_settings": "pydantic-settings",
}
"""Where the import's name is not the distribution's, or another distribution brings it."""


@dataclass(frozen=True)
class Import:
    """One import of a module: absolute name, line, and whether it runs as the module loads."""

    name: str
    line: int
    at_once: bool


def _module_name(path: Path) -> str:
    parts = path.relative_to(REPOSITORY).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def _modules() -> dict[str, Path]:
    paths = [p for package in PACKAGES for p in sorted((REPOSITORY / package).rglob("*.py"))]
    return {_module_name(path): path for path in [*paths, REPOSITORY / "app.py"]}


@cache
def _listed_by_git(*options: str) -> frozenset[Path] | None:
    """Files of the repository; None outside of a checkout."""
    command = ["git", "ls-files", "-z", *options]
    try:
        listed = subprocess.run(command, cwd=REPOSITORY, capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return frozenset(REPOSITORY / name for name in listed.decode().split("\0") if name)


def _is_kept(path: Path) -> bool:
    """Whether a file is part of the project, and not just lying in somebody's checkout."""
    tracked = _listed_by_git()
    return tracked is None or path in tracked


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def _is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def _walk(node: ast.AST, at_once: bool = True) -> Iterator[tuple[ast.AST, bool]]:
    """Every node that ever runs, and whether it does so as the module loads."""
    for child in ast.iter_child_nodes(node):
        if _is_type_checking(child):
            continue
        late = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        yield child, at_once and not late
        yield from _walk(child, at_once and not late)


def _imports(tree: ast.Module, module: str, is_package: bool) -> list[Import]:
    found = []
    for node, at_once in _walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = module.split(".")
                keep = len(parents) - node.level + (1 if is_package else 0)
                base = ".".join([*parents[:keep], *([base] if base else [])])
            # "from facerec import web" imports facerec.web as well.
            names = [base, *(f"{base}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            names = [a.value for a in node.args[:1] if isinstance(a, ast.Constant)]
        found.extend(Import(name, getattr(node, "lineno", 0), at_once) for name in names)
    return found


def _imports_of(module: str) -> list[Import]:
    path = _modules()[module]
    return _imports(_tree(path), module, path.name == "__init__.py")


def _within(name: str, packages: tuple[str, ...]) -> bool:
    return any(name == package or name.startswith(package + ".") for package in packages)


def _layer(module: str) -> str | None:
    if _within(module, COMPOSITION_ROOTS):
        return None
    return "core" if _within(module, ("facerec",)) else module.split(".")[0]


def test_the_parser_sees_what_it_should() -> None:
    """Of this test's own eyes: every form of import, and when it runs."""
    source = """
import torch.nn
from facerec import web
from . import sibling
from ..other import thing
if TYPE_CHECKING:
    import gradio
try:
    import onnx
except ImportError:
    onnx = None
class A:
    import matplotlib
    def f(self):
        import insightface
        importlib.import_module("gallery")
"""
    found = {(i.name, i.at_once) for i in _imports(ast.parse(source), "facerec.a.b", False)}
    assert {
        ("torch.nn", True),
        ("facerec.web", True),
        ("facerec.a.sibling", True),
        ("facerec.other", True),
        ("onnx", True),
        ("matplotlib", True),
        ("insightface", False),
        ("gallery", False),
    } <= found
    assert not any(name == "gradio" for name, _ in found)
    package = _imports(ast.parse("from .b import c"), "facerec.a", True)
    assert package[0].name == "facerec.a.b"


def test_the_modules_are_found() -> None:
    assert {"app", "facerec", "facerec.detection.base", "gallery.gallery"} <= set(_modules())
    assert _layer("facerec.detection.base") == "core"
    assert _layer("gallery.gallery") == "gallery"
    assert _layer("facerec.cli") is _layer("facerec.web.server") is _layer("app") is None


@pytest.mark.parametrize("module", sorted(_modules()))
def test_layers_import_only_what_is_below_them(module: str) -> None:
    layer = _layer(module)
    if layer is None:
        return
    wrong = [
        f"line {i.line}: {i.name}" for i in _imports_of(module) if _within(i.name, FORBIDDEN[layer])
    ]
    assert not wrong, f"{module} ({layer}) imports {wrong}"


@pytest.mark.parametrize("module", sorted(_modules()))
def test_heavy_packages_are_imported_late(module: str) -> None:
    exempt = tuple(
        heavy
        for owner, allowed in MAY_LOAD_AT_ONCE.items()
        if _within(module, (owner,))
        for heavy in allowed
    )
    late = LATE
    if not _within(module, tuple(MAY_LOAD_AT_ONCE)):
        late += tuple(MAY_LOAD_AT_ONCE)  # what loads them at once is itself imported late
    wrong = [
        f"line {i.line}: {i.name}"
        for i in _imports_of(module)
        if i.at_once and _within(i.name, late) and not _within(i.name, exempt)
    ]
    assert not wrong, f"{module} imports as it loads: {wrong}"


def _loaded_after(statement: str) -> set[str]:
    code = f"{statement}\nimport sys; print(*(m for m in sys.modules if '.' not in m))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPOSITORY
    )
    return set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize(
    "statement",
    [
        "import facerec.pipeline, gallery",
        "import facerec.evaluation, facerec.packs, gallery.enrolment",
        "import facerec.cli",
        "import app",
        """
import contextlib, sys
from facerec.cli import main
sys.argv = ["facerec", "--help"]
with contextlib.suppress(SystemExit):
    main()""",
    ],
)
def test_a_real_import_loads_nothing_heavy(statement: str) -> None:
    loaded = _loaded_after(statement)
    assert "facerec" in loaded
    assert not loaded & {*LATE, "onnxruntime", "skimage", "fastapi"}


def test_importing_changes_nothing_for_others() -> None:
    """No thread count, no warning filter, no limit of Pillow, no socket timeout, no locale."""
    state = """
import warnings, os, socket, locale, threading, cv2, PIL.Image
def state():
    return (list(warnings.filters), dict(os.environ), cv2.getNumThreads(),
            PIL.Image.MAX_IMAGE_PIXELS, socket.getdefaulttimeout(), locale.setlocale(locale.LC_ALL),
            threading.active_count())
import numpy, pydantic, sqlalchemy, faiss
before = state()
"""
    code = state + "import facerec.pipeline, gallery, facerec.cli\nassert state() == before"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=REPOSITORY)


@pytest.mark.parametrize("module", sorted(m for m in _modules() if m != "app"))
def test_what_is_public_has_a_docstring(module: str) -> None:
    tree = _tree(_modules()[module])
    if not tree.body:
        return
    missing = [] if ast.get_docstring(tree) else ["the module"]
    for node in tree.body:
        named = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))
        if named and not node.name.startswith("_") and not ast.get_docstring(node):
            missing.append(f"{node.name} (line {node.lineno})")
    assert not missing, f"{module}: no docstring on {missing}"


@pytest.mark.parametrize("module", sorted(_modules()))
def test_third_party_imports_are_declared(module: str) -> None:
    """In pyproject.toml, as a dependency or in an extra."""
    if not _is_kept(_modules()[module]):
        pytest.skip("not in the repository yet")
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))["project"]
    wanted = [*project["dependencies"]]
    for extra in project["optional-dependencies"].values():
        wanted.extend(extra)
    declared = {re.split(r"[\s<>=!~\[;]", line, maxsplit=1)[0].lower() for line in wanted}
    third_party = {
        top
        for i in _imports_of(module)
        if (top := i.name.split(".")[0]) not in {*sys.stdlib_module_names, *PACKAGES, "tests"}
    }
    missing = {n for n in third_party if DISTRIBUTIONS.get(n, n).lower() not in declared}
    assert not missing, f"{module} imports {missing}, which pyproject.toml does not name"


def test_every_package_is_in_the_wheel() -> None:
    """setuptools is given a list; a package that is not on it is missing once installed."""
    pyproject = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))
    listed = set(pyproject["tool"]["setuptools"]["packages"])
    here = {m for m, path in _modules().items() if path.name == "__init__.py" and _is_kept(path)}
    assert listed == here


def _project_files() -> list[Path]:
    """What is, or is about to be, in the repository."""
    listed = _listed_by_git("--cached", "--others", "--exclude-standard")
    if listed is None:
        pytest.skip("needs git and a checkout")
    return sorted(path for path in listed if path.is_file())


def test_no_file_holds_paths_of_a_machine() -> None:
    suspicious = re.compile(r"(?<![\w.])/(?:work|root|home/\w+|Users/\w+|tmp/\w+)/")
    wrong = []
    for path in _project_files():
        relative = path.relative_to(REPOSITORY)
        if relative.parts[0] in ("tests", "benchmarks", ".ci"):
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # a model or a picture
        for number, line in enumerate(text.splitlines(), 1):
            if suspicious.search(line):
                wrong.append(f"{relative}:{number}: {line.strip()[:80]}")
    assert not wrong


def test_benchmarks_are_told_where_the_data_is() -> None:
    """No default of theirs points out of the repository."""
    for path in (REPOSITORY / "benchmarks").glob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert "../" not in text and "parent.parent.parent" not in text, path.name


def test_tests_are_flat_and_named_after_their_package() -> None:
    """No __init__.py: with importmode=importlib equal names do not clash, and need none."""
    folder = REPOSITORY / "tests"
    assert not list(folder.rglob("__init__.py"))
    for path in folder.glob("test_*.py"):
        assert re.match(
            r"test_(facerec|gallery|training|scripts|architecture|docs|readme|app)", path.name
        )
