"""Which rows are taken: Algorithm 1, caps, solved examples, conversations, fractions; all from a few numbers a row, without a look at the rows."""

from collections import Counter
from dataclasses import asdict, dataclass

import numpy as np

from orcalab.config import Part, choose, digest, listed  # noqa: F401  Part is used by a doctest
from orcalab.packing import spans

REASONS = ("kept", "not asked for", "empty", "refusals", "wrong", "duplicates", "near")


@dataclass
class Scan:
    """What is known of each row of a pool, in arrays of (rows,)."""

    reason: np.ndarray  # of REASONS
    task: np.ndarray
    stratum: np.ndarray  # what is drawn with equal chance: its task, or its strategy
    system: np.ndarray  # digest of its system message
    same: np.ndarray  # digest of all its messages
    characters: np.ndarray
    single: np.ndarray  # whether it is one question and one answer
    solved: np.ndarray  # and whether its gold answer is known
    pieces: np.ndarray  # how many rows its text becomes
    like: np.ndarray  # the first values of its MinHash, where one was made
    tasks: list  # names


@dataclass
class Chosen:
    """What was chosen of one part: items, each made of one or several rows of its pool, and which of them each epoch draws."""

    rows: np.ndarray  # of the pool, those of one item behind those of another
    sizes: np.ndarray  # how many each item has
    piece: np.ndarray  # of its row's text, per item
    draws: list  # arrays of items
    aside: np.ndarray  # items set aside

    def of(self, items):
        """Return (rows of these items, one item behind the other; how many each has)."""
        return self.rows[spans((np.cumsum(self.sizes) - self.sizes)[items], self.sizes[items])], self.sizes[items]


def select(part, found, cfg):
    """Choose rows of a part from what is known of them; return (Chosen, counts of what was dropped, available, asked and taken)."""
    rng = np.random.default_rng([cfg.seed, int(digest({**asdict(part), "sources": ""}), 16)])  # the same choice, wherever the files lie
    if part.fraction < 1 and cfg.steps:
        raise ValueError(f"part {part.name!r} draws {part.fraction:.0%} of its rows afresh each epoch: say how many epochs, and steps 0")
    if odd := [t for t in listed(part.tasks) if t not in found.tasks]:
        choose(odd[0], found.tasks, f"task of part {part.name!r}")
    said = Counter({REASONS[r]: int(n) for r, n in enumerate(np.bincount(found.reason, minlength=len(REASONS))) if n and r})
    kept = np.flatnonzero(found.reason == 0)
    few, able = (cfg.few_shot, found.solved) if part.few_shot < 0 else (part.few_shot, found.single)
    if part.few_shot == 1:  # rows with too few of their kind to show are not of this part
        _, inverse, counts = np.unique(_group(found, kept), return_inverse=True, return_counts=True)
        enough = able[kept] & (counts[inverse] >= 4)
        kept, said["too few of a kind"] = kept[enough], int((~enough).sum())
    if part.cap:
        capped = of_each(found.task[kept], part.cap, rng)
        kept, said["over the cap"] = kept[capped], len(kept) - len(capped)
    pieces = found.pieces[kept]
    kept, piece = np.repeat(kept, pieces), spans(np.zeros_like(pieces), pieces)
    if part.merge:
        order = np.lexsort((*found.like[kept].T, found.system[kept])) if part.similar else rng.permutation(len(kept))
        mine = kept[order]
        system = np.where(found.single[mine], found.system[mine], mine.astype(np.uint64))  # what is a conversation already stays one
        parted = conversations(system, found.characters[mine], part.merge)
        flat, sizes = np.concatenate([[], *parted]).astype(int), np.array([len(several) for several in parted], int)
        rows, at, said["joined"] = mine[flat], np.cumsum(sizes) - sizes, len(kept)
        first, piece = rows[at], piece[order][flat][at]
    elif few > 0:
        shown = shots_of(np.where(able[kept], _group(found, kept), np.arange(len(kept), dtype=np.uint64)), rng)
        rows, sizes, first = kept[shown[shown >= 0]], (shown >= 0).sum(1), kept
    else:
        rows, sizes, first = kept, np.ones(len(kept), int), kept
    n, aside = set_aside(len(first), part)
    order = rng.permutation(len(first)) if part.validation else np.arange(len(first))
    train, aside = order[:n], order[len(order) - aside :]
    asked = round((part.size or len(train)) * cfg.scale)
    said.update(rows=len(found.reason), available=len(train), asked=asked, aside=len(aside))
    taken = train
    if asked < len(train):
        taken = train[algorithm1(found.stratum[first[train]], asked, rng)] if part.by != "rows" else rng.permutation(train)[:asked]
    draws = [np.sort(taken)]
    if part.fraction < 1:
        draws = [np.sort(rng.permutation(taken)[: int(part.fraction * len(taken))]) for _ in range(max(1, cfg.epochs))]
    said["taken"] = len(draws[0])
    return Chosen(rows, sizes, piece, draws, aside), dict(said)


def _group(found, rows):
    """Return a number for each row that is the same for rows of one task under one system message."""
    return found.system[rows] * np.uint64(1_000_003) + found.task[rows].astype(np.uint64)


def algorithm1(task, n, rng):
    """Choose `n` rows: a task uniformly at random, then one of its rows without replacement; a task that is used up leaves.

    How many each task gives is what drawing them one by one would give: of many uniform draws, those that hit a task that is used up are
    drawn again among the others.

    Args:    task: (rows,) the number of each row's task.  n: at most the number of rows.
    Returns: (n,) numbers of rows, in random order.
    Paper: Orca 1, "Dataset Construction", Algorithm 1.
    """
    left = np.bincount(task)
    taken = np.zeros_like(left)
    while (missing := n - taken.sum()) > 0:
        open_ = np.flatnonzero(left - taken)
        taken[open_] += rng.multinomial(missing, np.full(len(open_), 1 / len(open_)))
        taken = np.minimum(taken, left)
    return rng.permutation(of_each(task, taken, rng))


def of_each(task, limit, rng):
    """Return numbers of rows, at random at most `limit` of each task; one number, or one for each task."""
    order = rng.permutation(len(task))
    order = order[np.argsort(task[order], kind="stable")]
    start = np.cumsum(np.bincount(task)) - np.bincount(task)
    rank = np.arange(len(order)) - start[task[order]]
    return order[rank < (limit if np.ndim(limit) == 0 else limit[task[order]])]


def shots_of(group, rng):
    """Return for each row the row itself and 3 to 5 others of its group, or itself alone if there are fewer than three others.

    The others are those that follow it in a random cycle of the group: a random choice for every row, without a loop.

    Returns: (rows, 6), filled up with -1.
    """
    order = rng.permutation(len(group))
    order = order[np.argsort(group[order], kind="stable")]
    _, sizes = np.unique(group, return_counts=True)
    size, first = np.repeat(sizes, sizes), np.repeat(np.cumsum(sizes) - sizes, sizes)
    wanted = np.where(size > 3, np.minimum(rng.integers(3, 6, len(group)), size - 1), 0)
    out = np.full((len(group), 6), -1, np.int64)
    for j in range(6):
        out[order, j] = np.where(j <= wanted, order[first + (np.arange(len(order)) - first + j) % size], -1)
    return out


def conversations(system, characters, budget):
    """Join rows under one system message, in their order, until the next one would exceed `budget` characters; return lists of rows.

    A row that is longer than the budget alone is a conversation by itself; what is left over at the end is a last, short one.

    Source: Open-Assistant's DolphinMix (there a conversation may exceed its budget by one row).
    """
    open_, out = {}, []
    for row, (s, n) in enumerate(zip(system.tolist(), characters.tolist())):
        mine = open_.get(s)
        if mine is None or mine[1] + n > budget:
            mine = open_[s] = [[], 0]
            out.append(mine[0])
        mine[0].append(row)
        mine[1] += n
    return out


def set_aside(n, part):
    """Return (rows to train on, rows set aside) of `n`.

    >>> set_aside(236_053, Part("x", "y", validation=0.2, max_validation=5000, surplus="lost"))
    (188842, 5000)
    >>> set_aside(236_053, Part("x", "y", validation=0.2, max_validation=5000))
    (231053, 5000)
    """
    aside = int(np.ceil(part.validation * n))
    kept = min(aside, part.max_validation or aside)
    return n - (aside if part.surplus == "lost" else kept), kept
