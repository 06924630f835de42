"""The code of a job, as it travels: which files, and where each is found again."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from firesteel.errors import SpecError
from firesteel.recipe import _fields, _script

if TYPE_CHECKING:
    from collections.abc import Iterator

    from firesteel.recipe._recipe import Job

# Files of a job: far above any training code, and below what makes the server's
# check of each of them slow.
_FILES = 5000
# What lies in folders of code and is no part of it.
_LEFT_OUT = frozenset({"__pycache__", ".git", ".venv", ".mypy_cache", ".pytest_cache"})


class Code:
    """The files of a job's code.

    The folder of the training script is the root. What lies below it keeps its
    place, so that scripts find their files as they do here; what lies elsewhere
    gets a folder of its own.

    Attributes:
        files: the path in the bundle, with `/` between names, to the file here.
    """

    def __init__(self, root: str) -> None:
        self.files: dict[str, str] = {}
        self._root = root
        self._elsewhere: dict[str, str] = {}

    def add_script(self, field: str, script: str) -> str:
        """Takes a script and what it imports from beside it; its path in the bundle."""
        imports = _script.Imports(script, _FILES)
        if not imports.complete:
            raise _too_many(field)
        folder = os.path.dirname(script)
        place = self._place(folder)
        for path in imports.files:
            self._put(field, _joined(place, os.path.relpath(path, folder)), path)
        return _joined(place, os.path.basename(script))

    def add_file(self, field: str, given: Any) -> None:
        """Takes a file, or a folder with all that is in it."""
        text = os.fspath(given) if isinstance(given, os.PathLike) else given
        path = _script.beside(_fields.text(field, text, expected="the path of a file"))
        if not os.path.exists(path):
            raise SpecError(
                f"`{field}`: {path} does not exist",
                hint="paths are relative to the folder of the running script, "
                "then to the working directory",
                field=field,
            )
        inside = _inside(self._root, path)
        target = os.path.basename(path.rstrip(os.sep)) if inside is None else inside
        if os.path.isfile(path):
            self._put(field, _joined("", target), path)
            return
        for each in _walk(path):
            self._put(field, _joined("", os.path.join(target, os.path.relpath(each, path))), each)

    def _place(self, folder: str) -> str:
        inside = _inside(self._root, folder)
        if inside is not None:
            return inside
        if folder not in self._elsewhere:
            self._elsewhere[folder] = f"other-{len(self._elsewhere) + 1}"
        return self._elsewhere[folder]

    def _put(self, field: str, target: str, path: str) -> None:
        there = self.files.setdefault(target, path)
        if there != path:
            raise SpecError(
                f"`{field}`: {path} and {there} would both be {target} at the sites",
                hint="rename one of them, or put both below the training script's folder",
                field=field,
            )
        if len(self.files) > _FILES:
            raise _too_many(field)


def take(job: Job, spec: dict[str, Any]) -> Code:
    """Collects a job's code, and makes the paths in `spec` those in the bundle.

    Scripts that are installed at the sites stay where they are.
    """
    script = str(spec["trainer"]["script"])
    code = Code(os.path.dirname(script))
    for part, field in (
        (spec["trainer"], "train_script"),
        *((own, f"site_config[{site!r}]") for site, own in spec.get("site", {}).items()),
    ):
        path = part.get("script")
        if path and path not in job.installed:
            part["script"] = code.add_script(field, str(path))
    for placed in sum((spec.get("filters") or {}).values(), []):
        path = placed["filter"].get("file")
        if path:
            placed["filter"]["file"] = code.add_script("filters", str(path))
    for path in job.files:
        code.add_file("files", path)
    return code


def _inside(root: str, path: str) -> str | None:
    relative = os.path.relpath(path, root)
    if relative == os.curdir:
        return ""
    return None if relative.split(os.sep)[0] == os.pardir else relative


def _joined(place: str, rest: str) -> str:
    parts = [part for part in (*place.split(os.sep), *rest.split(os.sep)) if part not in ("", ".")]
    return "/".join(parts)


def _walk(folder: str) -> Iterator[str]:
    for here, folders, names in os.walk(folder):
        folders[:] = sorted(set(folders) - _LEFT_OUT)
        for name in sorted(names):
            path = os.path.join(here, name)
            if not name.endswith(".pyc") and os.path.isfile(path):
                yield path


def _too_many(field: str) -> SpecError:
    return SpecError(
        f"`{field}` makes a job of more than {_FILES} files",
        hint="install what is large at the sites, and name data by `data=`",
        field=field,
    )
