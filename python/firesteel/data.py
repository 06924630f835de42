"""Dealing one data set out to simulated sites.

    from firesteel.data import partition, save_partitions
    from firesteel.recipe import SimEnv

    parts = partition(X, y, 5, by="dirichlet", alpha=0.3, seed=1)
    env = SimEnv(clients=list(parts), data=save_partitions(parts, "data"))
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np

from firesteel.errors import SpecError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    Part = tuple[NDArray[Any], NDArray[Any]]

__all__ = ["partition", "partition_indices", "save_partitions"]

# Tries at dealing with Dirichlet shares until every site has enough.
_TRIES = 200


def partition(
    X: Any,
    y: Any,
    sites: int | Sequence[str],
    *,
    by: str = "dirichlet",
    seed: int = 0,
    alpha: float = 0.5,
    labels_per_site: int = 2,
    least: int = 1,
) -> dict[str, Part]:
    """Deals samples out to sites; the same arguments give the same parts.

    >>> import numpy as np
    >>> X, y = np.arange(12).reshape(12, 1), np.arange(12) % 3
    >>> parts = partition(X, y, ["a", "b"], by="iid")
    >>> [len(part_y) for part_X, part_y in parts.values()]
    [6, 6]

    Args:
        X: the samples; the first axis counts them.
        y: their labels.
        sites: how many sites, or their names.
        by: `iid` for equal parts at random; `label` for parts that have only
            `labels_per_site` of the labels; `dirichlet` for shares of every
            label that are drawn from a Dirichlet distribution (Hsu et al., 2019).
        seed: another seed deals otherwise.
        alpha: for `dirichlet`; the smaller, the more uneven. 0.1 is very
            uneven, 100 nearly even.
        labels_per_site: for `label`.
        least: samples that every site has at least.

    Returns:
        Site to its samples and labels, in the order in which they came.

    Raises:
        SpecError: when a site would be left without `least` samples.
    """
    samples, labels = np.asarray(X), np.asarray(y)
    parts = partition_indices(
        labels, sites, by=by, seed=seed, alpha=alpha, labels_per_site=labels_per_site, least=least
    )
    if len(samples) != len(labels):
        raise SpecError(f"`X` has {len(samples)} samples, `y` has {len(labels)} labels", field="X")
    return {site: (samples[at], labels[at]) for site, at in parts.items()}


def partition_indices(
    y: Any,
    sites: int | Sequence[str],
    *,
    by: str = "dirichlet",
    seed: int = 0,
    alpha: float = 0.5,
    labels_per_site: int = 2,
    least: int = 1,
) -> dict[str, NDArray[np.intp]]:
    """The same as `partition`, as sorted positions of the samples."""
    labels = np.asarray(y)
    names = _names(sites)
    if labels.ndim != 1:
        raise SpecError(
            f"`y` has {labels.ndim} dimensions, expected one label per sample", field="y"
        )
    if least < 1 or len(labels) < len(names) * least:
        raise SpecError(
            f"{len(labels)} samples are too few for {len(names)} sites with {least} each",
            hint="use fewer sites",
            field="sites",
        )
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or not 0 <= seed < 2**32:
        raise SpecError(
            f"`seed` is {seed!r}, expected a whole number from 0 below 2**32", field="seed"
        )
    # The only generator of NumPy's whose numbers stay the same in every release.
    generator = np.random.RandomState(seed)
    kinds, codes = np.unique(labels, return_inverse=True)
    if by == "iid":
        parts = _iid(len(labels), len(names), generator)
    elif by == "label":
        parts = _by_label(codes, len(kinds), len(names), labels_per_site, generator)
    elif by == "dirichlet":
        parts = _dirichlet(codes, len(kinds), len(names), alpha, least, generator)
    else:
        raise SpecError(
            f"`by` is {by!r}, expected 'dirichlet', 'label' or 'iid'", field="by"
        )
    for name, part in zip(names, parts, strict=True):
        if len(part) < least:
            raise SpecError(
                f"{name} would have {len(part)} samples, expected at least {least}",
                hint="use fewer sites, or another `by`",
                field="sites",
            )
    return {name: np.sort(part) for name, part in zip(names, parts, strict=True)}


def save_partitions(
    parts: Mapping[str, Part], folder: str | os.PathLike[str], *, name: str = "train"
) -> dict[str, dict[str, str]]:
    """Writes every site's part as `<folder>/<site>.npz`, with arrays `X` and `y`.

    Returns:
        What `SimEnv(data=…)` takes: `{site: {name: path}}`.
    """
    os.makedirs(folder, exist_ok=True)
    places = {}
    for site, (samples, labels) in parts.items():
        path = os.path.abspath(os.path.join(folder, f"{site}.npz"))
        # Aside and renamed: a run that is cut short leaves no half file.
        with open(path + ".new", "wb") as file:
            np.savez(file, X=samples, y=labels)
        os.replace(path + ".new", path)
        places[site] = {name: path}
    return places


def _names(sites: int | Sequence[str]) -> list[str]:
    if isinstance(sites, str) or isinstance(sites, bool):
        raise SpecError(
            f"`sites` is {sites!r}, expected a number or a list of names", field="sites"
        )
    if isinstance(sites, int):
        names = [f"site-{number}" for number in range(1, sites + 1)]
    else:
        names = [str(site) for site in sites]
    if not names or len(set(names)) != len(names):
        raise SpecError(f"`sites` is {sites!r}, expected at least one, none twice", field="sites")
    return names


def _iid(samples: int, sites: int, generator: np.random.RandomState) -> list[NDArray[np.intp]]:
    return list(np.array_split(generator.permutation(samples), sites))


def _by_label(
    codes: NDArray[np.intp],
    kinds: int,
    sites: int,
    per_site: int,
    generator: np.random.RandomState,
) -> list[NDArray[np.intp]]:
    """Every site gets `per_site` labels; sites that share one split it evenly."""
    if not 1 <= per_site <= kinds:
        raise SpecError(
            f"`labels_per_site` is {per_site}, expected 1 to {kinds}, the number of labels",
            field="labels_per_site",
        )
    # Dealt like cards, so that every label is held as often as any other.
    deck: list[int] = []
    hands: list[list[int]] = []
    for _ in range(sites):
        hand: list[int] = []
        while len(hand) < per_site:
            fresh = [label for label in deck if label not in hand]
            if not fresh:
                deck += generator.permutation(kinds).tolist()
                continue
            hand.append(fresh[0])
            deck.remove(fresh[0])
        hands.append(hand)
    parts: list[list[NDArray[np.intp]]] = [[] for _ in range(sites)]
    for label in range(kinds):
        holders = [site for site, hand in enumerate(hands) if label in hand]
        if not holders:
            continue
        pieces = np.array_split(generator.permutation(np.flatnonzero(codes == label)), len(holders))
        for site, piece in zip(holders, pieces, strict=True):
            parts[site].append(piece)
    return [np.concatenate(pieces) for pieces in parts]


def _dirichlet(
    codes: NDArray[np.intp],
    kinds: int,
    sites: int,
    alpha: float,
    least: int,
    generator: np.random.RandomState,
) -> list[NDArray[np.intp]]:
    if not alpha > 0:
        raise SpecError(f"`alpha` is {alpha!r}, expected a number over 0", field="alpha")
    shuffled = [generator.permutation(np.flatnonzero(codes == label)) for label in range(kinds)]
    for _ in range(_TRIES):
        parts: list[list[NDArray[np.intp]]] = [[] for _ in range(sites)]
        for at in shuffled:
            shares = generator.dirichlet(np.full(sites, alpha))
            if not np.isfinite(shares).all():
                # Every draw was below the smallest float: the limit of a small
                # alpha, where one site has the whole label.
                shares = np.eye(sites)[generator.randint(sites)]
            cuts = np.round(np.cumsum(shares)[:-1] * len(at)).astype(np.intp)
            for site, piece in enumerate(np.split(at, cuts)):
                parts[site].append(piece)
        if min(sum(map(len, pieces)) for pieces in parts) >= least:
            return [np.concatenate(pieces) for pieces in parts]
    raise SpecError(
        f"with alpha={alpha}, {_TRIES} tries all left a site with fewer than {least} samples",
        hint="raise `alpha`, lower `least`, or use fewer sites",
        field="alpha",
    )
