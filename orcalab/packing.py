"""Lengths to plan to packs: whole examples side by side, none cut, none seeing its neighbour."""

from typing import NamedTuple

import numpy as np

from orcalab.rows import OnDisk

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


class Plan(OnDisk):
    """Packs in the order they are trained, each a list of example numbers; two flat arrays, so that millions of packs are light."""

    def __init__(self, members, ends):
        self.members, self.ends = members, ends  # int32, the numbers of one pack behind those of another; where each pack ends in them

    def __len__(self):
        return len(self.ends)

    def get(self, i):
        return self.members[self.ends[i - 1] if i else 0 : self.ends[i]].tolist()


def spans(starts, sizes):
    """Return the numbers of several spans, one behind the other.

    >>> spans(np.array([7, 0]), np.array([2, 3])).tolist()
    [7, 8, 0, 1, 2]
    """
    return np.repeat(starts - np.cumsum(sizes) + sizes, sizes) + np.arange(np.sum(sizes))


def _sorted(values):
    """Return the order of non-negative integers, smallest first, equal ones as they come: a radix sort if they have 16 bits."""
    return np.argsort(values.astype(np.uint16) if values.max(initial=0) < 1 << 16 else values, kind="stable")


def best_fit(lengths, seq_len, seed=0):
    """Plan packs: long examples are spread by chance, the short ones then fill what is left, each where it fits tightest.

    First, in rounds, as many examples as there have to be packs, longest first (more or less: chance decides, so that companions differ by seed): the longest
    goes to the emptiest pack, and so on. So every pack mixes long and short, and tasks; sorting alone would put one-word answers together. What does not fit
    waits. When half of the tokens are placed, the rest goes longest first into the pack with the least room that is enough; a new pack is begun when none is.
    All packs with the same room are alike, so this is done for all examples of a length together: the time is that of sorting. At last the emptiest fifth is
    packed once more, by lengths alone, if that saves a pack.

    >>> list(best_fit([3, 5, 2, 6], 8))
    [[0, 1], [2, 3]]
    """
    lengths = np.asarray(lengths, np.int32)
    packs, total = max(1, -(-int(lengths.sum()) // seq_len)), int(lengths.sum())
    chance = 0.7 + 0.3 * np.random.default_rng(seed).random(len(lengths), np.float32)
    order = _sorted((lengths * chance).astype(np.int32))[::-1]
    room, pack_of, waiting, at, placed = np.full(packs, seq_len, np.int32), np.empty(len(lengths), np.int32), [], 0, 0
    while at < len(order) and placed < total / 2:
        several, at = order[at : at + packs], at + packs
        several = several[_sorted(lengths[several])[::-1]]
        emptiest = _sorted(room)[::-1][: len(several)]
        fits = lengths[several] <= room[emptiest]
        waiting.append(several[~fits])
        several, emptiest = several[fits], emptiest[fits]
        pack_of[several], placed = emptiest, placed + int(lengths[several].sum())
        room[emptiest] -= lengths[several]
    waiting = np.concatenate([*waiting, order[at:]])
    waiting = waiting[_sorted(lengths[waiting])[::-1]]
    pack_of[waiting] = _fill(lengths[waiting], room, seq_len)
    sums = np.bincount(pack_of, lengths).astype(np.int32)
    emptiest = _sorted(sums)[: max(4, len(sums) // 5)]
    again = np.flatnonzero(np.isin(pack_of, emptiest))
    again = again[_sorted(lengths[again])[::-1]]
    fewer = _fill(lengths[again], np.empty(0, np.int32), seq_len)
    if fewer.max() + 1 < (sums[emptiest] > 0).sum():
        pack_of[again] = emptiest[fewer]
    pack_of = (np.cumsum(np.bincount(pack_of) > 0) - 1)[pack_of]  # every pack in use
    order = _sorted(pack_of & 0xFFFF)  # two radix sorts: twice as fast as one sort of 32 bits
    order = order[_sorted(pack_of[order] >> 16)]
    return Plan(order.astype(np.int32), np.cumsum(np.bincount(pack_of)))


def _fill(lengths, room, seq_len):
    """Return the pack of each example, longest first: the tightest that has `room` for it, or a new one.

    The bit at position r of `open_` says that a pack with r tokens of room exists, so the tightest fit is the lowest bit at or above the length.
    """
    order, out, packs, at = _sorted(room), np.empty(len(lengths), np.int32), len(room), 0
    sizes, starts = np.unique(room[order], return_index=True)
    free = dict(zip(sizes.tolist(), map(np.ndarray.tolist, np.split(order, starts[1:])))) if len(room) else {}
    open_ = sum(1 << r for r in free)
    for end in [*(np.flatnonzero(np.diff(lengths)) + 1).tolist(), len(lengths)]:
        length = int(lengths[at]) if at < end else 0
        while at < end:
            fits = open_ >> length
            r = length + (fits & -fits).bit_length() - 1 if fits else seq_len
            each = r // length  # a pack that was just filled is the tightest, as long as it has room
            need = -(-(end - at) // each)
            if not fits:
                took, packs = list(range(packs, packs + need)), packs + need
            elif need < len(free[r]):
                took = free[r][-need:]
                del free[r][-need:]
            else:
                took, open_ = free.pop(r), open_ & ~(1 << r)
            several = min(end - at, len(took) * each)
            out[at : at + several] = took if each == 1 else np.repeat(took, each)[:several] if several > 50 else [p for p in took for _ in range(each)][:several]
            at, full = at + several, several // each
            for left, these in ((r - each * length, took[:full]), (r - several % each * length, took[full:])):
                if these and left in free:
                    free[left] += these
                elif these:
                    free[left], open_ = these, open_ | 1 << left
    return out


def shuffle_partition(lengths, seq_len, seed=0):
    """Plan packs as the paper does: shuffle, then cut into groups that fit.

    Paper: Orca 2, "Training", on packing.
    """
    order = np.random.default_rng(seed).permutation(len(lengths)).astype(np.int32)
    upto, ends, at = np.cumsum(np.asarray(lengths)[order], dtype=np.int64), [], 0
    while at < len(order):
        at = int(np.searchsorted(upto, (upto[at - 1] if at else 0) + seq_len, side="right"))
        ends.append(at)
    return Plan(order, np.array(ends))


def none(lengths, seq_len, seed=0):
    """Plan a pack for each example, the rest of it padding, as OpenAssistant did: then a step of 128 packs is 128 rows, long or short."""
    return Plan(np.arange(len(lengths), dtype=np.int32), np.arange(1, len(lengths) + 1))


def plan(lengths, seq_len, packs_needed=None, method="best_fit", seed=0, epochs=1, multiple=1, draws=None):
    """Plan packs over as many epochs as `packs_needed` takes, in the order they are trained.

    Args:    lengths: tokens of each example, none over seq_len.
             packs_needed: steps x packs per step; None is as many as `epochs` epochs make, rounded up to a `multiple`; with "none" rounded down, as
                 trainers that do not pack leave out the step that rows do not fill.
             method: "best_fit", "shuffle_partition" or "none".
             draws: which examples each epoch takes, a list of arrays that begins anew when it is at its end; None is all.
    Returns: Plan. A pure function of its arguments; each epoch packs anew.
    Raises:  ValueError: no examples, one without tokens, or one longer than `seq_len`; says which, and by how much.
    """
    if not len(lengths):
        raise ValueError("there are no examples to pack")
    lengths = np.asarray(lengths)
    if lengths[at := int(np.argmax(lengths))] > seq_len or lengths[at := int(np.argmin(lengths))] < 1:
        raise ValueError(f"example {at} has {lengths[at]} tokens; seq_len is {seq_len}")
    if method == "none" and not packs_needed:
        rows = sum(len(draws[e % len(draws)]) if draws else len(lengths) for e in range(epochs))
        packs_needed = max(multiple, rows - rows % multiple)
    members, sizes, epoch, made = [], [], 0, 0
    while made < packs_needed if packs_needed else epoch < epochs or made % multiple:
        mine = draws[epoch % len(draws)] if draws else slice(None)
        if not len(lengths[mine]):
            raise ValueError(f"epoch {epoch + 1} draws no example")
        new = {"best_fit": best_fit, "shuffle_partition": shuffle_partition, "none": none}[method](lengths[mine], seq_len, seed + epoch)
        # shuffled, so chance decides what a cut epoch leaves out, not how short an example is
        chance = np.random.default_rng([seed, epoch]).permutation(len(new))
        if not packs_needed and epoch >= epochs:
            chance = chance[: -made % multiple]
        size = np.diff(new.ends, prepend=0)[chance]
        chosen = new.members[spans(new.ends[chance] - size, size)]
        members.append(np.asarray(mine, np.int32)[chosen] if draws else chosen)
        sizes.append(size)
        made, epoch = made + len(size), epoch + 1
    ends = np.cumsum(np.concatenate(sizes))[:packs_needed]
    return Plan(np.concatenate(members)[: ends[-1]], ends)


def pack(examples, packs, seq_len, pad_id=0):
    """Lay whole examples side by side in packs of `seq_len` tokens, as planned.

    An example is never split or cut: a reasoning trace without its end teaches the model not to
    finish. Labels are already shifted and never cross from one example into the next.

    Args:    examples: (ids, mask) pairs, in tokens; mask 1 is learned.  packs: lists of example numbers, from `plan`.
    Paper: Orca 2, "Training", on packing.
    >>> pack([([1, 2, 3], [0, 1, 1]), ([4, 5], [0, 1])], [[0, 1]], seq_len=6).labels.tolist()
    [[2, 3, -100, 5, -100, -100]]
    """
    shape = (len(packs), seq_len)
    out = Packed(np.full(shape, pad_id, np.int32), np.full(shape, IGNORE, np.int32), np.zeros(shape, np.int32), np.full(shape, -1, np.int32))
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
    return np.diff([0, *np.flatnonzero(np.diff(segment)) + 1, len(segment)]).tolist()
