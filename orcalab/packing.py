"""Lengths to plan to packs: whole examples side by side, none cut, none seeing its neighbour."""

from random import Random
from typing import NamedTuple

import numpy as np

IGNORE = -100  # label of a token that is not learned


class Packed(NamedTuple):
    """Four int32 arrays of shape (packs, seq_len)."""

    ids: np.ndarray
    labels: np.ndarray  # shifted by one; IGNORE is not learned, nor is the first token of an example
    position: np.ndarray  # restarts at 0 per example
    segment: np.ndarray  # 0, 1, 2 ... per example, -1 is padding

    @property
    def num_targets(self):
        return int((self.labels != IGNORE).sum())

    @property
    def fill(self):
        """Share of tokens that are not padding."""
        return float((self.segment >= 0).mean())


def best_fit(lengths, seq_len, seed=0):
    """Plan packs: each example into the fullest pack that still has room.

    Long examples come first (longest first), as in best-fit decreasing; then the others shuffled, so
    that a pack mixes short and long, and tasks; then the shortest tenth, to fill the gaps. Best-fit
    decreasing alone would sort by length, and so by task: whole packs of one-word answers.

    The bit at position r of `open_` says that a pack with r tokens of room exists, so the tightest
    fit is the lowest bit at or above the length.

    >>> best_fit([3, 5, 2, 6], 8)
    [[3, 2], [1, 0]]
    """
    lengths = np.asarray(lengths)
    order = np.argsort(-lengths, kind="stable")
    first, last = int((lengths > seq_len // 4).sum()), len(order) - len(order) // 10
    order[first:last] = np.random.default_rng(seed).permutation(order[first:last])
    packs, room, open_ = [], {}, 0
    for i in map(int, order):
        length = int(lengths[i])
        fits = open_ >> length
        if fits:
            r = (fits & -fits).bit_length() - 1 + length
            pack = room[r].pop()
            if not room[r]:
                open_ &= ~(1 << r)
        else:
            r, pack = seq_len, len(packs)
            packs.append([])
        packs[pack].append(i)
        room.setdefault(r - length, []).append(pack)
        open_ |= 1 << (r - length)
    return packs


def shuffle_partition(lengths, seq_len, seed=0):
    """Plan packs as the paper does: shuffle, then cut into groups that fit.

    Paper: Orca 2, "Training", on packing.
    """
    order = list(range(len(lengths)))
    Random(seed).shuffle(order)
    packs, room = [], 0
    for i in order:
        if lengths[i] > room:
            packs.append([])
            room = seq_len
        packs[-1].append(i)
        room -= lengths[i]
    return packs


def plan(lengths, seq_len, packs_needed, method="best_fit", seed=0):
    """Plan `packs_needed` packs over as many epochs as that takes, in the order they are trained.

    Args:
        lengths: tokens of each example, none over seq_len.
        packs_needed: steps x packs per step.
        method: "best_fit" or "shuffle_partition".

    Returns:
        A list of packs, each a list of example numbers. A pure function of its arguments.

    Raises:
        ValueError: no examples, or one longer than `seq_len`; says which, and by how much.
    """
    if not len(lengths):
        raise ValueError("there are no examples to pack")
    longest = int(np.argmax(lengths))
    if lengths[longest] > seq_len:
        raise ValueError(f"example {longest} has {lengths[longest]} tokens; seq_len is {seq_len}")
    packs, epoch = [], 0
    while len(packs) < packs_needed:
        new = best_fit(lengths, seq_len, seed + epoch) if method == "best_fit" else shuffle_partition(lengths, seq_len, seed + epoch)
        Random(f"{seed}-{epoch}").shuffle(new)
        packs, epoch = packs + new, epoch + 1
    return packs[:packs_needed]  # shuffled, so chance decides what is left out, not how short an example is


def pack(examples, packs, seq_len, pad_id=0):
    """Lay whole examples side by side in packs of `seq_len` tokens, as planned.

    An example is never split or cut: a reasoning trace without its end teaches the model not to
    finish. Labels are already shifted and never cross from one example into the next.

    Args:
        examples: (ids, mask) pairs, in tokens; mask 1 is learned.
        packs: lists of example numbers, from `plan`.

    Returns:
        Packed.

    Paper: Orca 2, "Training", on packing.

    >>> pack([([1, 2, 3], [0, 1, 1]), ([4, 5], [0, 1])], [[0, 1]], seq_len=6).labels.tolist()
    [[2, 3, -100, 5, -100, -100]]
    """
    shape = (len(packs), seq_len)
    out = Packed(np.full(shape, pad_id, np.int32), np.full(shape, IGNORE, np.int32),
                 np.zeros(shape, np.int32), np.full(shape, -1, np.int32))
    for p, members in enumerate(packs):
        at = 0
        if (total := sum(len(examples[i][0]) for i in members)) > seq_len:
            raise ValueError(f"pack {p} would hold {total} tokens; seq_len is {seq_len}")
        for s, i in enumerate(members):
            ids, mask = (np.asarray(x, np.int32) for x in examples[i])
            end = at + len(ids)
            out.ids[p, at:end] = ids
            out.labels[p, at : end - 1] = np.where(mask[1:], ids[1:], IGNORE)
            out.position[p, at:end] = np.arange(len(ids))
            out.segment[p, at:end] = s
            at = end
    return out


def lengths_of(segment):
    """Return the tokens of each example in one row of `Packed.segment`, and the padding behind them."""
    cuts = np.flatnonzero(np.diff(segment)) + 1
    return np.diff([0, *cuts, len(segment)]).tolist()
