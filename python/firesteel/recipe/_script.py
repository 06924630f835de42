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


def find(field: str, script: Any) -> str:
    """The script's absolute path: beside `job.py`, or from the working directory.

    A job and its script lie in one folder, and the job may be started from
    another, which may hold a script of the same name.

    Raises:
        SpecError: when there is no such file; it names the places.
    """
    given = os.fspath(script) if isinstance(script, os.PathLike) else script
    path = _fields.text(field, given, expected="the path of the training script")
    beside = _beside_main(path)
    if beside is not None and os.path.isfile(beside):
        return beside
    first = os.path.abspath(path)
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


def _beside_main(path: str) -> str | None:
    main = getattr(sys.modules.get("__main__"), "__file__", None)
    if not main or os.path.isabs(path):
        return None
    return os.path.join(os.path.dirname(os.path.abspath(main)), path)


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
    """

    def __init__(self, script: str) -> None:
        self.modules: list[str] = []
        self.files: list[str] = []
        self._folder = os.path.dirname(script)
        waiting = [script]
        while waiting and len(self.files) < _FILES:
            path = waiting.pop(0)
            if path in self.files:
                continue
            self.files.append(path)
            waiting += self._read(path)

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
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                self._note(node.module, tuple(a.name for a in node.names), beside)
        return beside

    def _note(self, module: str, members: tuple[str, ...], beside: list[str]) -> None:
        local = _module_file(self._folder, module)
        if local is not None:
            beside.append(local)
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


def _module_file(folder: str, module: str) -> str | None:
    base = os.path.join(folder, *module.split("."))
    for path in (f"{base}.py", os.path.join(base, "__init__.py")):
        if os.path.isfile(path):
            return path
    return None


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
