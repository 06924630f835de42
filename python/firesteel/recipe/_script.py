"""Training scripts: where they lie and what they import."""

from __future__ import annotations

import ast
import importlib.util
import os
import sys
from typing import Any

from firesteel.errors import SpecError
from firesteel.recipe import _fields

# What a warm parent may import before it forks trainers, beside the standard
# library: packages that take long and start nothing of their own.
PRELOAD_ROOTS = ("numpy", "scipy", "sklearn", "pandas", "torch")

# Of the standard library: what does something when it is imported.
_NOISY = frozenset({"antigravity", "idlelib", "this", "tkinter", "turtle", "turtledemo"})

# Files of the script's own folder that are read for further imports.
_FILES = 50


def is_installed(script: Any) -> bool:
    """Whether a script is taken to be at the sites already.

    So it is when its path is absolute, unless it lies beside `job.py` or below:
    that is the job's own code, however it was named.
    """
    given = os.fspath(script) if isinstance(script, os.PathLike) else script
    if not isinstance(given, str) or not os.path.isabs(given):
        return False
    main = getattr(sys.modules.get("__main__"), "__file__", None)
    home = os.path.dirname(os.path.abspath(main)) if main else os.getcwd()
    return os.path.commonpath([home, os.path.normpath(given)]) != home


def find(field: str, script: Any) -> str:
    """The script's absolute path: beside `job.py`, or from the working directory.

    A job and its script lie in one folder, and the job may be started from
    another, which may hold a script of the same name. One that is installed at
    the sites need not be here.

    Raises:
        SpecError: when there is no such file; it names the places.
    """
    given = os.fspath(script) if isinstance(script, os.PathLike) else script
    path = _fields.text(field, given, expected="the path of the training script")
    if is_installed(path):
        return os.path.normpath(path)
    first = beside(path)
    if os.path.isfile(first):
        return first
    what = "is a folder" if os.path.isdir(first) else "does not exist"
    hint = "paths are relative to the folder of the running script, then to the working directory"
    near = _near(first)
    raise SpecError(
        f"`{field}`: the training script {first} {what}",
        hint=f"did you mean {near!r}?" if near else hint,
        code="script-missing",
        field=field,
    )


def beside(path: str) -> str:
    """A path beside the running script where something is there, else from the
    working directory."""
    main = getattr(sys.modules.get("__main__"), "__file__", None)
    if main and not os.path.isabs(path):
        there = os.path.join(os.path.dirname(os.path.abspath(main)), path)
        if os.path.exists(there):
            return os.path.normpath(there)
    return os.path.abspath(path)


def _near(path: str) -> str | None:
    import difflib

    folder, wanted = os.path.split(path)
    try:
        names = [n for n in os.listdir(folder) if n.endswith(".py")]
    except OSError:
        return None
    close = difflib.get_close_matches(wanted, names, n=1, cutoff=0.6)
    return os.path.join(folder, close[0]) if close else None


class Imports:
    """What a script imports, itself and through files beside it.

    Attributes:
        modules: dotted names of everything that is not beside the script.
        files: the script and the files beside it that it uses.
        complete: whether all of them were read.
    """

    def __init__(self, script: str, most: int = _FILES) -> None:
        self.modules: list[str] = []
        self.files: list[str] = []
        self._folder = os.path.dirname(script)
        waiting = [script]
        seen = {script}
        while waiting and len(self.files) < most:
            path = waiting.pop(0)
            self.files.append(path)
            for further in self._read(path):
                if further not in seen:
                    seen.add(further)
                    waiting.append(further)
        self.complete = not waiting

    def _read(self, path: str) -> list[str]:
        try:
            with open(path, "rb") as file:
                tree = ast.parse(file.read(), path)
        except (OSError, SyntaxError, ValueError):
            # The trainer meets the same error and reports it with its site.
            return []
        beside: list[str] = []
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    self._note(alias.name, (), beside)
            elif isinstance(node, ast.ImportFrom):
                module = self._absolute(path, node.level, node.module)
                if module:
                    self._note(module, tuple(a.name for a in node.names), beside)
            elif isinstance(node, ast.Call):
                named = _imported_by_name(node)
                if named:
                    self._note(named, (), beside)
        return beside

    def _absolute(self, path: str, level: int, module: str | None) -> str | None:
        """The name that a relative import means, seen from the script's folder."""
        if level == 0:
            return module
        inside = os.path.relpath(os.path.dirname(path), self._folder)
        parts = [] if inside == "." else inside.split(os.sep)
        # One dot is the package itself, each further one its parent.
        if level - 1 > len(parts) or ".." in parts:
            return None
        kept = parts[: len(parts) - (level - 1)]
        return ".".join([*kept, *(module.split(".") if module else [])]) or None

    def _note(self, module: str, members: tuple[str, ...], beside: list[str]) -> None:
        local = _module_files(self._folder, module)
        if local is not None:
            beside += local
            # What is imported from a package may be a module of it.
            for member in members:
                beside += _module_files(self._folder, f"{module}.{member}") or ()
            return
        for name in (module, *(f"{module}.{member}" for member in members)):
            if name not in self.modules:
                self.modules.append(name)

    def preload(self, framework: str) -> list[str]:
        """Modules for the warm parent, in the order in which they are met."""
        roots = {"pytorch": ("torch",), "sklearn": ("sklearn",)}.get(framework, ())
        chosen = ["numpy"]
        for name in (*roots, *self.modules):
            root = name.partition(".")[0]
            if name in chosen or (root not in PRELOAD_ROOTS and not _is_standard(root)):
                continue
            if _exists(name):
                chosen.append(name)
        return chosen

    def uses(self, root: str) -> bool:
        """Whether the script imports a library."""
        return any(name.partition(".")[0] == root for name in self.modules)


def _is_standard(root: str) -> bool:
    """Whether this is a module of the standard library that is worth loading ahead."""
    compiled_in = root in sys.builtin_module_names
    return root in sys.stdlib_module_names and root not in _NOISY and not compiled_in


def _imported_by_name(node: ast.Call) -> str | None:
    """The module of `importlib.import_module("x")` and `__import__("x")`."""
    called = node.func
    name = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
    if name not in ("import_module", "__import__") or not node.args:
        return None
    first = node.args[0]
    given = first.value if isinstance(first, ast.Constant) else None
    return given if isinstance(given, str) and not given.startswith(".") else None


def _module_files(folder: str, module: str) -> list[str] | None:
    """The files that importing a module beside the script runs; None: there is none.

    A package's `__init__.py` runs before what lies in it; a folder without one
    is a package as well, but only counts for what is found in it.
    """
    parts = module.split(".")
    base = os.path.join(folder, *parts)
    found = [path for path in (f"{base}.py", os.path.join(base, "__init__.py"))
             if os.path.isfile(path)][:1]  # fmt: skip
    if not found and not os.path.isdir(base):
        return None
    if not found and not any(name.endswith(".py") for name in os.listdir(base)):
        # A folder of data that bears a module's name.
        return None
    for depth in range(1, len(parts)):
        parent = os.path.join(folder, *parts[:depth], "__init__.py")
        if os.path.isfile(parent):
            found.append(parent)
    return found


def _exists(name: str) -> bool:
    """Whether a name is a module, found without importing anything."""
    root, _, rest = name.partition(".")
    try:
        found = importlib.util.find_spec(root)
    except (ImportError, ValueError):
        return False
    if found is None:
        return False
    if not rest:
        return True
    for folder in found.submodule_search_locations or ():
        base = os.path.join(folder, *rest.split("."))
        if os.path.isfile(f"{base}.py") or os.path.isfile(os.path.join(base, "__init__.py")):
            return True
    return False
