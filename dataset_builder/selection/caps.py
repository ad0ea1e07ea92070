"""Caps on pairs: per question, per video, and on the share in which one member is chosen or rejected."""

from __future__ import annotations

import numpy as np

from dataset_builder.errors import KitError


def widest_first(margin: np.ndarray) -> np.ndarray:
    """Order of pairs from the widest margin down; unknown margins last, equal ones in the table's order."""
    return np.argsort(-np.nan_to_num(margin, nan=-1.0), kind="stable")


def beyond(groups: np.ndarray, order: np.ndarray, limit: int | np.ndarray) -> np.ndarray:
    """Indices of members of a group after its first ``limit`` ones.

    Args:
        groups: int [n], the group of each thing.
        order: int [n], the things, the first to be kept first.
        limit: how many a group may keep, one number or one for each group.
    """
    if not len(groups):
        return np.zeros(0, dtype=np.int64)
    sorted_ = order[np.argsort(groups[order], kind="stable")]
    found = groups[sorted_]
    first = np.flatnonzero(np.concatenate([[True], found[1:] != found[:-1]]))
    place = np.arange(len(found)) - np.repeat(first, np.diff(np.append(first, len(found))))
    most = limit if np.isscalar(limit) else limit[found]
    return sorted_[place >= most]


def share_limits(counts: np.ndarray, share: float) -> np.ndarray:
    """Most pairs each member may keep so that none has more than its share of those that are left.

    The number of pairs left is the largest for which this is possible: it is lowered from all pairs to what the limits
    leave, until both agree. All zero when no number of pairs can satisfy the share.
    """
    total = int(counts.sum())
    while total:
        limits = np.minimum(counts, int(share * total + 1e-9))
        left = int(limits.sum())
        if left == total:
            return limits
        total = left
    return np.zeros_like(counts)


def over_share(members: np.ndarray, margin: np.ndarray, share: float, count: int, name: str) -> np.ndarray:
    """Indices of the pairs to drop so that no member has more than its share; the narrowest margins go.

    Args:
        members: int [n], the member of each pair on one side.
        margin: float [n].
        share: 0 to 1.
        count: number of members.
        name: of the setting, for the message.

    Raises:
        KitError: no pair could stay.
    """
    if not len(members):
        return np.zeros(0, dtype=np.int64)
    counts = np.bincount(members, minlength=count)
    limits = share_limits(counts, share)
    if not limits.sum():
        raise KitError(
            f"pairs.{name}: a share of {share:g} cannot hold for {len(members)} pairs of "
            f"{int((counts > 0).sum())} members: no pair would be left; raise it"
        )
    return beyond(members, widest_first(margin), limits)
