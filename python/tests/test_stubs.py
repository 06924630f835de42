"""The stub of the native module says what the module and the stand-in have."""

from __future__ import annotations

import ast
import importlib
import inspect
from pathlib import Path
from typing import Any

import fake_native
import pytest

import firesteel

STUB = Path(firesteel.__file__).with_name("_native.pyi")


def declared() -> dict[str, Any]:
    """Name to parameters; class name to such a dict."""

    def parameters(node: ast.FunctionDef) -> list[str]:
        args = node.args
        names = [*args.posonlyargs, *args.args, *args.kwonlyargs]
        return [a.arg for a in names if a.arg not in ("self", "cls")]

    found: dict[str, Any] = {}
    for node in ast.parse(STUB.read_text()).body:
        if isinstance(node, ast.FunctionDef):
            found[node.name] = parameters(node)
        elif isinstance(node, ast.ClassDef):
            found[node.name] = {
                item.name: parameters(item) for item in node.body if isinstance(item, ast.FunctionDef)
            }
    return found


def check(module: Any) -> None:
    for name, content in declared().items():
        assert hasattr(module, name), f"{name} is missing"
        if isinstance(content, list):
            assert parameters_of(getattr(module, name)) == content, name
            continue
        for method, expected in content.items():
            if method.startswith("__"):
                continue
            there = getattr(getattr(module, name), method, None)
            if there is None:
                # The stand-in sets plain attributes where the module has getters.
                assert module is fake_native and not expected, f"{name}.{method} is missing"
            elif callable(there):
                assert parameters_of(there) == expected, f"{name}.{method}"


def parameters_of(function: Any) -> list[str]:
    names = list(inspect.signature(function).parameters)
    return [n for n in names if n not in ("self", "cls")]


def test_the_stand_in_keeps_the_signatures() -> None:
    check(fake_native)


@pytest.mark.e2e
def test_the_module_keeps_the_signatures() -> None:
    module = importlib.import_module("firesteel._native")
    check(module)
    public = {n for n in vars(module) if not n.startswith("_")}
    assert public <= set(declared()), "the stub lacks something"
