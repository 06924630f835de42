"""The guides' programs run, and so do the examples in docstrings.

A Python block whose first line is a comment with a file name is that file. The
blocks of a page are written into one folder; `job.py` and those that execute a
recipe are run there, in the page's order. Other blocks must at least be Python.
"""

from __future__ import annotations

import ast
import doctest
import importlib
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import firesteel

GUIDES = Path(__file__).resolve().parents[2] / "docs" / "guides"
PAGES = [
    "quickstart", "client-api", "simulation", "poc", "filters", "models", "streaming",
    "when-it-fails",
]  # fmt: skip
#: Pages whose programs need a federation that runs.
FOR_READERS = ["production", "operator"]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NAME = re.compile(r"^# (\w+\.py)\n")


def blocks(page: str) -> list[tuple[str | None, str]]:
    """The Python blocks of a page, with their file names."""
    text = (GUIDES / f"{page}.md").read_text(encoding="utf-8")
    found = []
    for block in BLOCK.findall(text):
        name = NAME.match(block)
        found.append((name.group(1) if name else None, block))
    return found


@pytest.mark.parametrize("page", [*PAGES, "production"])
def test_every_block_is_python(page: str) -> None:
    assert blocks(page)
    for _, block in blocks(page):
        ast.parse(block)


@pytest.mark.parametrize("page", [*PAGES, *FOR_READERS])
def test_links_lead_somewhere(page: str) -> None:
    text = (GUIDES / f"{page}.md").read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)#]+)", text):
        if "://" not in link:
            assert (GUIDES / link).exists(), link


@pytest.mark.e2e
@pytest.mark.torch
def test_the_guide_to_models_runs_where_numpy_knows_bfloat16(tmp_path: Path) -> None:
    # One of its scripts needs `ml_dtypes`, which comes with this group's Keras.
    import ml_dtypes

    del ml_dtypes
    run_programs("models", tmp_path)


@pytest.mark.e2e
@pytest.mark.parametrize("page", PAGES)
def test_the_programs_of_a_guide_run(page: str, tmp_path: Path) -> None:
    run_programs(page, tmp_path)


def run_programs(page: str, tmp_path: Path) -> None:
    """Writes a page's files into a folder and runs those that are jobs."""
    programs = []
    for name, block in blocks(page):
        if name is not None:
            (tmp_path / name).write_text(block)
            if ".execute(" in block:
                programs.append(name)
    assert programs
    for name in programs:
        done = subprocess.run(
            [sys.executable, name], cwd=tmp_path, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, f"{name}:\n{done.stdout}{done.stderr}"
        assert done.stdout


def modules() -> list[str]:
    """Every module of the package but the compiled one and the warm parent's."""
    names = ["firesteel"]
    for found in pkgutil.walk_packages(firesteel.__path__, "firesteel."):
        if found.name not in ("firesteel._native", "firesteel._warm"):
            names.append(found.name)
    return names


@pytest.mark.parametrize("name", modules())
def test_examples_in_docstrings(name: str) -> None:
    module = importlib.import_module(name)
    assert doctest.testmod(module).failed == 0
    assert module.__doc__, f"{name} has no docstring"


@pytest.mark.parametrize("name", [n for n in modules() if "._" not in n])
def test_public_names_are_listed_and_documented(name: str) -> None:
    module = importlib.import_module(name)
    for public in module.__all__:
        thing = getattr(module, public)
        if callable(thing):
            assert thing.__doc__, f"{name}.{public} has no docstring"


