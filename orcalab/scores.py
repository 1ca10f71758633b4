"""Scores with intervals from stored answers, and paired comparisons on the same questions.

Answers are records: dicts with task, number, question, right, format_ok, tokens, reason, and, where they have one, seed, group (what questions of one passage
share) and value (a mark that is averaged instead of `right`, such as ROUGE). Any iterable of them is read once; some 40 bytes of an answer are kept.
Every interval is a bootstrap inside each task, of passages where questions share one. Draws are Dirichlet weights (Rubin 1981, "The Bayesian Bootstrap"): a gamma number for
each *distinct* outcome, so a million answers cost no more than ten. Without two additions 95 % would not be 95 %:

- Half a best and half a worst answer, shared among the tasks (Jeffreys' prior, for one task): an interval has a width where all answers are wrong, and enough where few are right.
- Few questions, or passages, tell little of their own spread: draws are stretched as Student's t is against the normal, with Satterthwaite's degrees of freedom.

`low` and `high` are for these tasks with other questions, `tasks_low` and `tasks_high` for other tasks like these (drawn are the tasks' means, which vary by both).
"""

import math
from array import array
from collections import Counter, namedtuple
from itertools import combinations
from zlib import crc32

import numpy as np

DRAWS = 10_000
PATTERNS = 500  # outcomes of a task that are drawn one by one; where more are distinct, questions are bundled at random into so many
Gathered = namedtuple("Gathered", "tasks facts marked")  # {task: Outcomes}, {task: Counter of facts}, whether outcomes are values
Outcomes = namedtuple("Outcomes", "outcomes unit asked")  # (seeds, questions); (questions,), equal where drawn together; (3, seeds x questions): seed, number, digest of the question


def gather(records):
    """Return what all of this room needs of records, from one pass; `score`, `versus` and `regret` take that in the place of records."""
    if isinstance(records, Gathered):
        return records
    columns, facts, marked, digest = {}, {}, set(), lambda text: crc32(str(text).encode("utf-8", "replace"))
    for r in records:
        task, outcome = r["task"], r["value"] if "value" in r else r["right"]
        if task not in columns:
            columns[task], facts[task] = [array(kind) for kind in "diiII"], Counter()
        if outcome is None or outcome != outcome:
            raise ValueError(f"task {task!r}, question {r['number']}: its value is {outcome}, and has to be a number; leave the question out, for every student")
        marked.add("value" in r)
        for column, x in zip(columns[task], (outcome, r.get("seed", 0), r["number"], digest(r.get("question", "")), digest(r.get("group") or ""))):
            column.append(x)
        facts[task].update({"answers": 1, "format": bool(r["format_ok"]), "tokens": r["tokens"], ("reason", r["reason"]): 1})
    if len(marked) != 1:
        raise ValueError("some answers have a value and some have none: score them apart" if marked else "there are no answers to score")
    return Gathered({t: _outcomes(t, *(np.frombuffer(c, c.typecode) for c in columns.pop(t))) for t in sorted(columns)}, facts, marked == {True})


def _outcomes(task, outcome, seed, number, asked, group):
    order, seeds = np.lexsort((number, seed)), len(np.unique(seed))
    asked = np.array([seed, number, asked])[:, order]
    twice = (np.diff(asked[:2]) == 0).all(0)
    if twice.any():
        raise ValueError(f"task {task!r}: question {asked[1, twice.argmax()]} is answered twice; records are those of one student under one message, or of one for each seed")
    if len(order) % seeds or np.diff(asked[1].reshape(seeds, -1), axis=0).any():
        raise ValueError(f"task {task!r}: its {seeds} seeds did not answer the same questions")
    group = group[order[:len(order) // seeds]].astype(int)
    return Outcomes(outcome[order].reshape(seeds, -1), np.unique(np.where(group, group, -1 - np.arange(len(group))), return_inverse=True)[1], asked)


def table(records):
    """Return {task: array (seeds, questions)} of one student's outcomes, or of one for each seed, under one message."""
    return {t: a.outcomes for t, a in gather(records)[0].items()}


def _cells(x, unit, rng):
    """Return the distinct outcomes of a task, (sums of each column and size (columns + 1, cells), how often each, how many units in effect, size of the added ones)."""
    sums = np.stack([np.bincount(unit, row) for row in (*x, np.ones(len(unit)))])
    units = sums.shape[1]
    size = len(unit) / units if (x == x[:, :1]).all() else 1  # where all are alike, nothing tells how much those of a passage are
    rows = sums[:, np.lexsort(sums)]
    first = np.flatnonzero(np.append(True, (rows[:, 1:] != rows[:, :-1]).any(0)))
    if len(first) <= PATTERNS:
        return rows[:, first], np.diff(np.append(first, units)), sums[-1].sum() ** 2 / (sums[-1] ** 2).sum(), size  # passages of unlike sizes tell as much as so many alike
    bundle = rng.permutation(units) % PATTERNS
    return np.stack([np.bincount(bundle, row) for row in sums]), np.ones(PATTERNS), PATTERNS, size


def _interval(cells, ends, sides, rng):
    """Return (low, high, two-sided p of no difference) of a mean over tasks, or of two `sides`' difference; of each of `ends` (columns, 2) half a question is added."""
    means, off, free = [], [], np.maximum([units - 1 for _, _, units, _ in cells], 1)
    for (sums, counts, _, size), df in zip(cells, free):
        mean = (sums[:-1] @ counts) / (sums[-1] @ counts)
        if ends is not None:
            sums, counts = np.hstack([sums, size * np.vstack([ends, [1, 1]])]), np.append(counts, [0.5 / len(cells)] * 2)
        drawn = rng.standard_gamma(counts, (DRAWS, len(counts))) @ sums.T                         # (draws, columns + 1)
        drawn = ((drawn[:, :-1] / drawn[:, -1:] - mean) * math.sqrt((df + 2) / df)).T              # drawn is s2 / (n + 1), a mean has s2 / (n - 1)
        for out, x in ((means, mean), (off, drawn)):
            x = x.reshape(sides, -1, *x.shape[1:])
            out.append(x[0] - x[1:].sum(0))                                                        # (seeds,) and (seeds, draws)
    spread = np.mean(off, 1).var(1)                                                                # (tasks,)
    df = spread.sum() ** 2 / (spread**2 / free).sum() if spread.any() else 1
    drawn = np.mean(means, 0)[:, None] + np.mean(off, 0) * np.sqrt(df / rng.chisquare(df, DRAWS))  # (seeds, draws)
    if len(drawn) > 1:
        drawn = np.take_along_axis(drawn, rng.integers(0, len(drawn), drawn.shape), 0)
    drawn, macro = drawn.mean(0), np.mean(means)
    low, high = np.percentile(drawn, [2.5, 97.5])
    far = abs(drawn - macro) * math.sqrt((min(free) + 2) / min(free))  # a p value may err to one side alone, so for it draws are stretched once more
    return min(low, macro), max(high, macro), float((1 + (far >= abs(macro)).sum()) / (DRAWS + 1))


def _intervals(columns, tasks, marked, sides=1):
    """Return ({low, high, tasks_low, tasks_high, intervals: {task: [low, high]}}, p) for {task: (sides x seeds, questions)} and {task: Outcomes}."""
    rng, seen = np.random.default_rng(0), [x if sides == 1 else np.subtract(*np.split(x, 2)) for x in columns.values()]
    worst, best = (min(x.min() for x in seen), max(x.max() for x in seen)) if marked else (1 - sides, 1)
    added = np.repeat([[worst, best], [0, 0]][:sides], len(next(iter(columns.values()))) // sides, axis=0)
    inside = lambda *xs: [float(np.clip(x, worst, best)) for x in xs]
    cells = {t: _cells(x, tasks[t].unit, rng) for t, x in columns.items()}
    low, high, p = _interval(list(cells.values()), added, sides, rng)
    drawn = _interval([_cells(np.stack([x.mean(1) for x in columns.values()], 1), np.arange(len(cells)), rng)], None, sides, rng)
    wide = inside(min(low, drawn[0]), max(high, drawn[1])) if len(cells) > 1 else (None, None)
    return dict(zip(("low", "high", "tasks_low", "tasks_high"), (*inside(low, high), *wide))) | {
        "intervals": {t: inside(*_interval([c], added, sides, rng)[:2]) for t, c in cells.items()}}, p


def score(records):
    """Return the macro score over tasks with its 95 % intervals, the score of each task, and what the answers cost.

    Records that have a `seed` are those of several students, one for each seed, that answered the same questions: questions and seeds are drawn
    anew. Of few seeds that draws too narrow an interval where they differ much, so look at each seed, too.

    Returns: dict: macro, low, high, tasks_low, tasks_high (None for one task), by_task, intervals {task: [low, high]}, questions; format_ok, tokens (mean new tokens),
             cut (share that hit max_new_tokens), reasons {stop reason: answers}; these also as {task: ...} in format_by_task, tokens_by_task, ...
    """
    tasks, facts, marked = gather(records)
    by_task = {t: float(a.outcomes.mean()) for t, a in tasks.items()}
    every = sum(facts.values(), Counter())
    told = {"format": lambda c: c["format"] / c["answers"], "tokens": lambda c: c["tokens"] / c["answers"], "cut": lambda c: c["reason", "length"] / c["answers"],
            "reasons": lambda c: {k[1]: n for k, n in sorted(c.items(), key=str) if k[0] == "reason"}}
    return {"macro": float(np.mean(list(by_task.values()))), **_intervals({t: a.outcomes for t, a in tasks.items()}, tasks, marked)[0],
            "by_task": by_task, "questions": every["answers"]} | {"format_ok" if k == "format" else k: f(every) for k, f in told.items()} | {f"{k}_by_task": {t: f(facts[t]) for t in tasks} for k, f in told.items()}


def _same(a, b):
    for t in sorted({*a, *b}):
        if t not in a or t not in b or not np.array_equal(a[t].asked, b[t].asked):
            n, m = (x[t].asked.shape[1] if t in x else 0 for x in (a, b))
            raise ValueError(f"a paired comparison needs the same questions in both; these two answered different ones (task {t!r}: {n} and {m} answers)")


def compare(a, b):
    """Compare two students (or messages) on the same questions: a minus b.

    Each draw takes the same questions for both. The p value is McNemar's, exact: of the questions on which they differ, how lopsided is the split. That takes every question
    for itself, and as right or wrong, so where questions share a passage, tasks have unlike numbers of them, or answers have values, p is the bootstrap's (`test` says which). With several seeds (see
    `score`) seeds are drawn, too, and there is no p: the answers of several seeds to one question are not independent.

    Returns: dict: macro (difference), low, high, tasks_low, tasks_high, only_a, only_b (questions on which a, or b, did better), p, test, by_task, intervals.
    """
    (found,) = versus({0: a, 1: b}).values()
    return {k: v for k, v in found.items() if k != "holm"}


def mcnemar(only_a, only_b):
    """Return the exact two-sided p value of McNemar's test.

    >>> round(mcnemar(9, 1), 4)
    0.0215
    """
    n, i = only_a + only_b, np.arange(1, min(only_a, only_b) + 1)
    ways = np.append(0.0, np.cumsum(np.log((n - i + 1) / i)))  # logarithms of n over 0, n over 1, ...: the numbers themselves would fill memory
    return min(1.0, 2 * math.exp(np.logaddexp.reduce(ways) - n * math.log(2)))


def holm(p):
    """Return {key: p} adjusted for there being several (Holm 1979): in at most 5 % of such families is a false one under 0.05. None stays None.

    >>> holm({"a": 0.01, "b": 0.04, "c": 0.03})
    {'a': 0.03, 'b': 0.06, 'c': 0.06}
    """
    known = sorted((k for k in p if p[k] is not None), key=p.get)
    steps = np.maximum.accumulate([min(1.0, (len(known) - i) * p[k]) for i, k in enumerate(known)])
    return dict.fromkeys(p) | dict(zip(known, map(float, steps)))


def versus(by_key, pairs=None):
    """Compare pairs of {key: records}, all if none are named; return {(key, key): what `compare` returns}, with `holm`: its p adjusted for there being so many."""
    read, out = {k: gather(r) for k, r in by_key.items()}, {}
    for one, other in combinations(read, 2) if pairs is None else pairs:
        (a, _, marked), (b, _, _) = read[one], read[other]
        _same(a, b)
        found, p = _intervals({t: np.vstack([a[t].outcomes, b[t].outcomes]) for t in a}, a, marked, 2)
        by_task = {t: float(a[t].outcomes.mean() - b[t].outcomes.mean()) for t in a}
        only_a, only_b = (int(sum((x[t].outcomes > y[t].outcomes).sum() for t in a)) for x, y in ((a, b), (b, a)))
        alone = not marked and all(x.unit.max() + 1 == len(x.unit) for x in a.values()) and len({len(x.unit) for x in a.values()}) == 1
        test = None if any(len(x.outcomes) > 1 for x in a.values()) else "McNemar" if alone else "bootstrap"
        out[one, other] = {"macro": float(np.mean(list(by_task.values()))), **found, "only_a": only_a, "only_b": only_b,
                           "p": mcnemar(only_a, only_b) if test == "McNemar" else p if test else None, "test": test, "by_task": by_task}
    adjusted = holm({k: c["p"] for k, c in out.items()})
    return {k: {**c, "holm": adjusted[k]} for k, c in out.items()}


def regret(by_strategy, chosen, splits=20):
    """Return what a student loses by choosing for itself (`chosen`: records), against the best of {strategy: records} for each task, on the same questions.

    The best of several is best by luck, too (the winner's curse): measured where it was chosen (`naive`) its lead is too large. So it is chosen on one half of a task's questions
    and measured on the other, both ways, over several random halves; that errs to the low side, since half finds the best less surely. `low` is from these, `high` from naive.

    Returns: dict: macro, low, high, tasks_low, tasks_high, naive, by_task {task: {best (on all its questions), regret, low, high, naive}}; below zero, choosing gains.
    """
    rng, honest, naive, best, read = np.random.default_rng(0), {}, {}, {}, [gather(r) for r in (chosen, *by_strategy.values())]
    for tasks, _, _ in read[1:]:
        _same(tasks, read[0][0])
    for t, a in read[0][0].items():
        mine, *each = np.array([tasks[t].outcomes.mean(0) for tasks, _, _ in read])
        each, units, found = np.array(each), a.unit.max() + 1, np.zeros(len(mine))
        if units < 2:
            raise ValueError(f"task {t!r}: regret needs two questions that share no passage, to choose by one and measure by the other")
        for _ in range(splits):
            half = (rng.permutation(units) % 2)[a.unit]
            for there in (half == 0, half == 1):
                found[~there] += each[each[:, there].mean(1).argmax(), ~there]
        top = each.mean(1)
        best[t] = " or ".join(str(s) for s, x in zip(by_strategy, top) if x == top.max())
        honest[t], naive[t] = np.array([found / splits, mine]), np.array([each[top.argmax()], mine])
    lead = lambda x: float(x[0].mean() - x[1].mean())
    low, high = (_intervals(x, *read[0][::2], 2)[0] for x in (honest, naive))
    by_task = {t: {"best": best[t], "regret": lead(honest[t]), "low": low["intervals"][t][0], "high": high["intervals"][t][1], "naive": lead(naive[t])} for t in best}
    macro, curse = (float(np.mean([x[k] for x in by_task.values()])) for k in ("regret", "naive"))
    return {"macro": macro, "low": low["low"], "high": high["high"], "tasks_low": low["tasks_low"], "tasks_high": high["tasks_high"], "naive": curse, "by_task": by_task}
