"""Dealing data out: whole, repeatable, and never an empty site without a word."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from firesteel.data import partition, partition_indices, save_partitions
from firesteel.errors import SpecError

if TYPE_CHECKING:
    from pathlib import Path

Y = np.arange(600) % 10
X = np.arange(600.0).reshape(600, 1)


@pytest.mark.parametrize("by", ["iid", "label", "dirichlet"])
def test_every_sample_goes_to_one_site_and_the_same_again(by: str) -> None:
    parts = partition(X, Y, 5, by=by, seed=3)
    assert list(parts) == [f"site-{n}" for n in range(1, 6)]
    everything = np.concatenate([part_x.ravel() for part_x, _ in parts.values()])
    assert sorted(everything) == X.ravel().tolist()
    for part_x, part_y in parts.values():
        assert np.array_equal(part_x.ravel() % 10, part_y)
    again = partition(X, Y, 5, by=by, seed=3)
    other = partition(X, Y, 5, by=by, seed=4)
    assert all(np.array_equal(parts[s][0], again[s][0]) for s in parts)
    assert not all(np.array_equal(parts[s][0], other[s][0]) for s in parts)


def test_the_deal_stays_the_same_over_releases() -> None:
    at = partition_indices(Y[:12], ["a", "b"], by="iid", seed=0)
    assert {site: part.tolist() for site, part in at.items()} == {
        "a": [2, 4, 6, 8, 10, 11],
        "b": [0, 1, 3, 5, 7, 9],
    }


def test_labels_per_site() -> None:
    parts = partition(X, Y, 5, by="label", labels_per_site=2)
    assert [len(set(part_y)) for _, part_y in parts.values()] == [2] * 5


def test_a_small_alpha_is_more_uneven() -> None:
    def spread(alpha: float) -> float:
        at = partition_indices(Y, 5, alpha=alpha, seed=1)
        counts = np.array([np.bincount(Y[part], minlength=10) for part in at.values()])
        return float(counts.std())

    assert spread(0.1) > 2 * spread(100)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"sites": 0}, "`sites` is 0"),
    ({"sites": "site-1"}, "`sites` is 'site-1'"),
    ({"sites": ["a", "a"]}, "none twice"),
    ({"sites": 601}, "600 samples are too few for 601 sites"),
    ({"by": "size"}, "`by` is 'size'"),
    ({"alpha": 0}, "`alpha` is 0"),
    ({"alpha": 1e-6, "sites": 50}, "left a site with fewer than 1"),
    ({"by": "label", "labels_per_site": 11}, "`labels_per_site` is 11, expected 1 to 10"),
    ({"by": "label", "labels_per_site": 1, "sites": 400, "least": 2}, "too few"),
]


@pytest.mark.parametrize(("change", "sentence"), REFUSED)
def test_a_bad_deal_is_refused(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(SpecError, match=sentence):
        partition(X, Y, **{"sites": 5, **change})


def test_parts_are_files_that_an_environment_takes(tmp_path: Path) -> None:
    parts = partition(X, Y, ["a", "b"], by="iid")
    places = save_partitions(parts, tmp_path / "data", name="digits")
    assert set(places) == {"a", "b"}
    with np.load(places["b"]["digits"]) as file:
        assert np.array_equal(file["X"], parts["b"][0])
        assert np.array_equal(file["y"], parts["b"][1])
