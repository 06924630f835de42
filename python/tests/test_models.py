"""Model files of any format, and errors as values."""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import firesteel
from firesteel import errors
from firesteel.errors import Error, SpecError, StoreError

if TYPE_CHECKING:
    from pathlib import Path


def test_formats(fake: Any, tmp_path: Path) -> None:
    params = {"w": np.arange(3.0), "b": np.zeros((), np.float32)}
    for suffix in (".npz", ".safetensors"):
        path = firesteel.save_model(tmp_path / f"m{suffix}", params)
        back = firesteel.load_model(path)
        assert back["w"].tolist() == [0, 1, 2] and back["b"].dtype == np.float32
    path = firesteel.save_model(tmp_path / "m.npy", {"numpy_key": np.arange(2)})
    assert firesteel.load_model(path).tolist() == [0, 1]
    nested = {"a": [np.ones(1), {"t": "text"}]}
    path = firesteel.save_model(tmp_path / "n.safetensors", nested)
    assert firesteel.load_model(path)["a"][1] == {"t": "text"}


@pytest.mark.torch
def test_torch_files(tmp_path: Path) -> None:
    import torch

    params = {"w": np.arange(3.0), "t": torch.ones(2), "l": [np.ones(1)]}
    path = firesteel.save_model(tmp_path / "m.pt", params)
    back = firesteel.load_model(path)
    assert torch.equal(back["w"], torch.arange(3.0, dtype=torch.float64))
    assert torch.equal(back["t"], torch.ones(2))


def test_what_a_format_cannot_hold_is_said(fake: Any, tmp_path: Path) -> None:
    cases = [
        ("m.npy", {"a": np.ones(1), "b": np.ones(1)}, "holds one array"),
        ("m.npz", [np.ones(1)], "holds a dict of arrays"),
        ("m.npz", {"a": "text"}, "params\\['a'\\] is a str"),
        ("m.bin", {}, "suffix '.bin'"),
    ]
    for name, params, sentence in cases:
        with pytest.raises(SpecError, match=sentence):
            firesteel.save_model(tmp_path / name, params)
    (tmp_path / "bad.npz").write_bytes(b"x")
    np.save(tmp_path / "objects.npy", np.array([{}]), allow_pickle=True)
    for name in ("bad.npz", "objects.npy"):
        with pytest.raises(SpecError, match="plain arrays"):
            firesteel.load_model(tmp_path / name)
    with pytest.raises(StoreError, match="no model file"):
        firesteel.load_model(tmp_path / "none.npy")
    with pytest.raises(StoreError, match="could not be written"):
        firesteel.save_model(tmp_path / "no" / "x.npy", np.ones(1))


@pytest.mark.parametrize("name", errors.__all__)
def test_errors_show_sentence_and_hint_and_survive_pickling(name: str) -> None:
    kind = getattr(errors, name)
    error = kind("it broke", hint="mend it", code="raised")
    assert str(error) == "it broke\nhint: mend it"
    assert isinstance(error, Error)
    back = pickle.loads(pickle.dumps(error))
    assert type(back) is kind and str(back) == str(error) and back.code == "raised"
    assert str(kind("it broke")) == "it broke"
