"""A mixture: rows of several sources chosen in set proportions, some of them with solved examples or joined to conversations.

Choosing takes two steps. Every row of every source is read once, in parallel, and leaves a few numbers: its task, its system message, a digest, a reason to
drop it. What is taken is then decided from these numbers alone, so seven million rows are chosen among in seconds and the rows themselves stay on disk.
"""

from dataclasses import asdict, replace
from math import floor

import numpy as np

from orcalab import hygiene, sources, workers
from orcalab.config import Mix, Part, RowError, digest, listed
from orcalab.progress import Progress
from orcalab.rows import OnDisk, Stacked, joined
from orcalab.sampling import REASONS, Scan, select

BLOCK = 2000  # rows that one process takes at a time


def _scan(work, number):
    """Read one block of a pool; return what Scan holds, the names of its tasks, and MinHashes if near-duplicates are to be dropped."""
    pool, part, drop = work
    wanted = set(listed(part.tasks))
    tasks, strata, out, texts = {}, {}, [], []
    for i in range(number * BLOCK, min(len(pool), (number + 1) * BLOCK)):
        row = pool.get(i)
        said = row.messages[-1]["content"] if row.messages else row.text
        roles = [m["role"] for m in row.messages if m["role"] != "system"]
        system = row.messages[0]["content"] if row.messages and row.messages[0]["role"] == "system" else ""
        asked = [m["content"] for m in row.messages if m["role"] == "user"]
        if "asks" not in drop and roles[-1:] == ["user"]:
            raise RowError(f"{row.where}: missing ['response'], so there is nothing to learn (`orcalab teach` asks a teacher for it)")
        reason = 0
        if wanted and row.task not in wanted or not row.kind.startswith(part.kind):
            reason = 1
        elif not said.strip() and "asks" not in drop or row.messages and not all(m["content"].strip() for m in row.messages if m["role"] == "user"):
            reason = 2
        elif "refusals" in drop and row.messages and hygiene.refuses(said):
            reason = 3
        elif "wrong" in drop and row.answer and not row.explanation and hygiene.agrees(said, row.answer) is False:
            reason = 4
        pieces = -(-len(row.text) // part.chunk) if part.chunk and row.text else 1
        kind = row.strategy or row.task if part.by == "strategies" else row.task
        out.append((reason, tasks.setdefault(row.task, len(tasks)), strata.setdefault(kind, len(strata)), hygiene.digest_of(system), hygiene.digest_of(row.text, *(m["role"] + m["content"] for m in row.messages)),
                    sum(map(len, asked)) + len(said), roles == ["user", "assistant"], roles == ["user", "assistant"] and bool(row.answer), pieces))
        texts.append("\n".join([*asked, said]))
    return out, list(tasks), list(strata), hygiene.sketches(texts) if "near" in drop or part.similar else None


def scan(pool, part, drop, processes, say=""):
    """Read every row of a pool once, in parallel; return a Scan in which `reason` says what is not to be taken."""
    n, near = len(pool), hygiene.Seen() if "near" in drop else None
    found = Scan(*(np.zeros(n, t) for t in (np.uint8, np.int32, np.int32, np.uint64, np.uint64, np.int32, bool, bool, np.int32)), np.zeros((n if part.similar else 0, 2), np.uint32), [])
    blocks, names, kinds = range(-(-n // BLOCK)), {}, {}
    processes = 1 if n <= 2 * BLOCK else min(processes or workers.cores(), len(blocks))
    columns = (found.reason, found.task, found.stratum, found.system, found.same, found.characters, found.single, found.solved, found.pieces)
    with workers.shared((pool, part, drop), processes) as each, Progress(n, say if n > 2 * BLOCK else "") as bar:
        for block, (rows, tasks, strata, sketches) in zip(blocks, each(_scan, blocks)):
            at = slice(block * BLOCK, block * BLOCK + len(rows))
            for column, values in zip(columns, zip(*rows)):
                column[at] = values
            for column, known, local in ((found.task, names, tasks), (found.stratum, kinds, strata)):
                column[at] = np.array([known.setdefault(t, len(known)) for t in local])[column[at]]
            if part.similar:
                found.like[at] = [s.digest()[:2] for s in sketches]
            if near:
                good = np.flatnonzero(found.reason[at] == 0)
                found.reason[at][good[~np.array(near.new([sketches[i] for i in good]), bool)]] = REASONS.index("near")
            bar.advance(len(rows))
    found.tasks = list(names)
    if {"duplicates", "near"} & drop:
        kept = np.flatnonzero((found.reason == 0) | (found.reason == REASONS.index("near")))
        found.reason[np.delete(kept, np.unique(found.same[kept], return_index=True)[1])] = REASONS.index("duplicates")
    return found


class Mixture(OnDisk):
    """The rows of a Mix in an order of chance. Sources are opened, read and chosen among when the rows are asked for, and not before.

    Args:    cfg: a Config; `data`, `scale`, `drop`, `epochs`, `few_shot`, `seed`, `stream` and `processes` are used.
    """

    def __init__(self, mix, cfg):
        self.mix, self.cfg, self.pools, self.shuffled, self.draws, self.aside, self.said = mix, cfg, [], True, None, [], None
        self.asks = False  # rows are to be answered by a teacher: they need no answer
        self.held = 0  # how many rows, the first, are of those set aside: a stage with `held_out` looks at them and draws none

    @classmethod
    def of(cls, rows, cfg):
        """Return the Mixture of a sequence of rows, in the order that they have."""
        made = cls(Mix("rows", (Part("rows", "rows"),)), cfg)
        made.pools, made.shuffled = [Stacked([rows])], False
        return made

    @property
    def origin(self):
        """What identifies the rows, for a prepared folder's digest: the mixture, and names and contents of files, wherever they lie."""
        parts = [{**asdict(p), "sources": ""} for p in self.mix.parts]
        read = {n: sources.origin(n, self.cfg.data) for n in dict.fromkeys(p.sources for p in self.mix.parts)}
        return [self.mix.name, parts, self.mix.subset, [read[p.sources] for p in self.mix.parts]]

    def paths(self):
        """Return the files that the rows lie in, as far as they are files of lines."""
        return [p for pool in self.pools for s in pool.parts for p in getattr(s, "paths", [])]

    def choose(self):
        """Read every row and decide, once, which are taken, in which order; return what is to be said about it, {part: counts}.

        Raises:  RowError: a row that cannot be read.  ValueError: a part asks for more rows than its sources have.
        """
        if self.said:
            return self.said
        cfg, drop, said, scans, made = self.cfg, set(listed(self.cfg.drop)), {}, {}, []
        if not self.pools:
            opened = {n: Stacked(sources.pools(n, cfg.data)) for n in dict.fromkeys(p.sources for p in self.mix.parts)}
            self.pools = [opened[p.sources] for p in self.mix.parts]
        for part, pool in zip(self.mix.parts, self.pools):
            wanted = drop | ({"near"} if part.merge else set())
            wanted = wanted - {"refusals", "wrong"} | {"asks"} if self.asks else wanted  # the answers that are there are not asked about
            key = digest([part.sources, part.tasks, part.kind, part.by == "strategies", part.chunk, part.similar, sorted(wanted)])
            if key not in scans:
                scans[key] = scan(pool, part, wanted, cfg.processes, f"read {part.name} (rows)")
            chosen, said[part.name] = select(part, scans[key], cfg)
            made.append(chosen)
        for part, c in ((p, said[p.name]) for p in self.mix.parts if said[p.name]["asked"] > said[p.name]["available"] or not said[p.name]["taken"]):
            most = floor(1e6 * min(said[p.name]["available"] / p.size for p in self.mix.parts if p.size)) / 1e6 if part.size and c["asked"] else 0
            why = ", ".join(f"{n:,} {k}" for k, n in c.items() if k not in ("rows", "available", "asked", "taken", "aside") and n)
            raise ValueError(f"part {part.name!r} of {self.mix.name!r} asks for {c['asked']:,} rows; of the {c['rows']:,} of its sources ({part.sources}) "
                             f"{c['available']:,} are left{f' ({why})' if why else ''}" + (f": a scale of at most {most:g} would do, or more sources" if most else ""))
        self._arrange(made)
        if self.mix.subset:
            for number, part in enumerate(self.mix.parts):
                taken = int((self.part == number).sum())
                said[part.name].update({"not in the subset": said[part.name]["taken"] - taken, "taken": taken})
        self.said = said
        return said

    def _arrange(self, made):
        """Lay the chosen items of all parts behind one another, by chance; keep a random subset of them if the mix says so. Held-out ones come first."""
        cfg = self.cfg
        drawn = [np.unique(np.concatenate(c.draws)) if len(c.draws) > 1 else c.draws[0] for c in made]
        rng, aside = np.random.default_rng([cfg.seed, cfg.stream]), np.repeat(np.arange(len(made)), [len(c.aside) for c in made])
        aside = (rng.permutation(aside) if cfg.held_out else aside)[: cfg.held_out]  # the part of each that is looked at
        used = [np.append(d, c.aside[: int((aside == p).sum())]) for p, (d, c) in enumerate(zip(drawn, made))]
        offsets = np.cumsum([0, *map(len, used)])
        order = rng.permutation(offsets[-1]) if self.shuffled else np.arange(offsets[-1])
        held = np.concatenate([np.arange(len(u)) >= len(d) for u, d in zip(used, drawn)])
        order = np.append(order[held[order]], order[~held[order]])
        if self.mix.subset:
            wanted = round(self.mix.subset * cfg.scale)
            if wanted > len(order):
                raise ValueError(f"the mixture {self.mix.name!r} asks for a subset of {wanted:,} rows, it has {len(order):,}")
            order = order[np.isin(order, np.random.default_rng([cfg.seed, int(digest(self.mix.name), 16)]).permutation(len(order))[:wanted])]
        self.held = int(held[order].sum())
        place = np.full(offsets[-1], -1)
        place[order] = np.arange(len(order))
        self.part = np.repeat(np.arange(len(used), dtype=np.uint8), list(map(len, used)))[order]
        self.piece = np.concatenate([c.piece[u] for c, u in zip(made, used)]).astype(np.int32)[order]
        flat, size = (np.concatenate(x) for x in zip(*[c.of(u) for c, u in zip(made, used)]))
        start = np.cumsum(size) - size
        self.size, self.start, self.flat = size[order].astype(np.uint16 if size.max(initial=0) < 1 << 16 else np.int32), start[order], flat.astype(np.int32)
        if any(len(c.draws) > 1 for c in made):
            epochs = range(max(len(c.draws) for c in made))
            each = [np.concatenate([place[o + np.searchsorted(d, c.draws[e % len(c.draws)])] for c, d, o in zip(made, drawn, offsets)]) for e in epochs]
            self.draws = [np.sort(d[d >= 0]) for d in each]
        several = lambda c: np.split(c.of(c.aside)[0], np.cumsum(c.sizes[c.aside])[:-1])  # the rows of each item set aside
        self.aside = [(p, rows, int(c.piece[item])) for p, c in enumerate(made) for item, rows in zip(c.aside.tolist(), several(c))]

    def __len__(self):
        return self.choose() and len(self.part)

    def item(self, i):
        """Return (rows, Part) of the i-th row: the row itself, and those that it shows as solved examples or that are joined to it."""
        self.choose()
        return self._made(int(self.part[i]), self.flat[self.start[i] : self.start[i] + int(self.size[i])], int(self.piece[i]))

    def _made(self, number, rows, piece):
        part, pool = self.mix.parts[number], self.pools[number]
        row, *others = (pool.get(int(m)) for m in rows)
        if part.chunk and row.text:
            row = replace(row, text=row.text[piece * part.chunk : (piece + 1) * part.chunk], id=f"{row.id}.{piece}")
        return [row, *others], part

    def get(self, i):
        rows, part = self.item(i)
        return joined(rows) if part.merge else rows[0]

    def set_aside(self):
        """Yield the rows set aside for validation."""
        for item in self.aside:
            rows, part = self._made(*item)
            yield joined(rows) if part.merge else rows[0]
