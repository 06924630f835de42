"""Results that are written into the file of an earlier one."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

import numpy as np
import pytest

if TYPE_CHECKING:
    from pathlib import Path

_native = pytest.importorskip("firesteel._native")

SPARE = ".firesteel-spare"


def write(path: Path, numbers: int, value: float) -> bytes:
    """A model in that file; its bytes as they should be."""
    tensors = [("x", "F32", (numbers,), np.full(numbers, value, np.float32))]
    assert _native.write_model(str(path), tensors) == path.stat().st_size
    return bytes(_native.write_model(None, tensors))


@pytest.mark.parametrize("before", [10, 300_000, 400_000])
def test_a_spare_is_written_over_and_cut(tmp_path: Path, before: int) -> None:
    spare = tmp_path / SPARE
    write(tmp_path / "earlier", before, 1.0)
    os.rename(tmp_path / "earlier", spare)
    spare.chmod(0o600)
    file = spare.stat().st_ino
    path = tmp_path / "result.safetensors"
    expected = write(path, 300_000, 2.0)
    assert path.read_bytes() == expected
    assert path.stat().st_ino == file and not spare.exists()
    assert stat.S_IMODE(path.stat().st_mode) == 0o400
    # There is none for the next one, which gets a file of its own.
    assert write(tmp_path / "next", 5, 3.0) == (tmp_path / "next").read_bytes()
    assert (tmp_path / "next").stat().st_ino != file


def test_a_result_that_fails_leaves_nothing_of_a_spare(tmp_path: Path) -> None:
    (tmp_path / SPARE).write_bytes(b"an earlier one")

    def broken() -> object:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        _native.write_model(str(tmp_path / "result"), [("x", "F32", (1,), broken)])
    assert list(tmp_path.iterdir()) == []
