"""Plans of packs: how long planning takes, how full the packs are, and both against TRL's packer; one process on one core.

Lengths are log-normal (median 270, sigma 0.8, within 1..4096, seeded), packs hold 4,096 tokens. The peer is
`pack_dataset(strategy="bfd")` on the first of the same lengths: over all examples at once (`batch_size=None`), and in batches of 1,000, as
its trainer calls it. TRL plans and moves the tokens in one function, so ours stands in that function's place under the same
`Dataset.map`, and the sides take turns. Of each run two times are kept: `plan`, from the lengths to example numbers in packs
(TRL's from where it begins to sort to where it begins to move tokens, so its moving is not held against it), and `all`, the whole call.
`ratio` compares planning over all examples, `ratio_with_tokens` the whole calls, `ratio_batched` the whole calls with TRL in batches.

    pip install trl
    python benchmarks/packing.py [lengths [lengths against TRL]]
"""

import os

os.environ.update(HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})

import gc
import json
import sys
import time
from types import SimpleNamespace

import numpy as np

from orcalab.packing import best_fit, shuffle_partition

SEQ_LEN = 4096


def lengths_of(count, sigma=0.8):
    return np.clip(np.rint(np.random.default_rng(0).lognormal(np.log(270), sigma, count)), 1, SEQ_LEN).astype(np.int32)


def least_packs(lengths):
    return -(-int(lengths.sum(dtype=np.int64)) // SEQ_LEN)


def fill_of(lengths, packs):
    """Percent of the packs' tokens that are not padding."""
    return round(100 * int(lengths.sum(dtype=np.int64)) / (packs * SEQ_LEN), 3)


def timed(method, lengths, repeats=1):
    """Return the seconds of each call and the number of packs, once they hold every example exactly once and none is too long."""
    seconds = []
    for _ in range(repeats):
        begun = time.perf_counter()
        made = method(lengths, SEQ_LEN)
        seconds.append(time.perf_counter() - begun)
    assert len(made.members) == made.ends[-1] == len(lengths) and (np.bincount(made.members) == 1).all(), "an example is missing or twice"
    assert np.add.reduceat(lengths[made.members], np.append(0, made.ends[:-1]), dtype=np.int64).max() <= SEQ_LEN, "a pack is too long"
    return seconds, len(made)


def against_trl(lengths, repeats=2):
    """Return the least seconds (`plan`, `all`) and the packs of ours, of TRL over all examples, and of TRL in batches of 1,000."""
    import datasets
    import pyarrow as pa
    import pyarrow.compute as pc
    from trl import data_utils, pack_dataset
    datasets.disable_caching()
    datasets.disable_progress_bars()
    begins, ends = [], []

    def noted(marks, function):
        return lambda *args: (marks.append(time.perf_counter()), function(*args))[1]

    def ours(table):  # what TRL's function returns, too: a row of tokens per pack, and the lengths of its examples
        column = table.combine_chunks().columns[0].chunks[0]
        begins.append(time.perf_counter())
        made = best_fit(pc.list_value_length(column).to_numpy(), SEQ_LEN)
        ends.append(time.perf_counter())
        column, upto = column.take(pa.array(made.members)), pa.array(np.append(0, made.ends).astype(np.int32))
        parts = (column.offsets.take(upto), column.values), (upto, pc.list_value_length(column))
        return pa.Table.from_arrays([pa.ListArray.from_arrays(*part) for part in parts], names=["input_ids", "seq_lengths"])

    # TRL's planner is no function of its own: it begins at its only make_struct and ends at its only take
    data_utils.pc = SimpleNamespace(**{**vars(pc), "make_struct": noted(begins, pc.make_struct), "take": noted(ends, pc.take)})
    starts = np.append(0, np.cumsum(lengths)).astype(np.int32)
    rows = datasets.Dataset(pa.table({"input_ids": pa.ListArray.from_arrays(starts, np.arange(starts[-1], dtype=np.int32))}))
    once = {"batch_size": None, "new_fingerprint": "packed"}  # a given fingerprint: neither side's function is hashed
    sides = {"ours": lambda: rows.with_format("arrow").map(ours, batched=True, **once), "trl": lambda: pack_dataset(rows, SEQ_LEN, "bfd", once),
             "trl_batched": lambda: pack_dataset(rows, SEQ_LEN, "bfd", {**once, "batch_size": 1000})}
    said = {side: {"plan": np.inf, "all": np.inf} for side in sides}
    for side in list(sides) * repeats:
        begins.clear(), ends.clear()
        begun = time.perf_counter()
        made = sides[side]()
        times = {"plan": sum(ends) - sum(begins), "all": time.perf_counter() - begun}
        said[side] = {**{k: min(t, said[side][k]) for k, t in times.items()}, "packs": len(made), "fill_percent": fill_of(lengths, len(made))}
        tokens, sizes = (made.data.column(i).combine_chunks().flatten().to_numpy() for i in (0, 1))
        at = np.searchsorted(starts, tokens[np.cumsum(sizes) - sizes])  # tokens are numbered: the first one says which example it is
        assert (np.sort(at) == np.arange(len(lengths))).all() and (sizes == lengths[at]).all(), "an example is missing or twice"
        assert pc.max(pc.list_value_length(made.data.column(0))).as_py() <= SEQ_LEN, "a pack is too long"
    return said


def main(count=5_000_000, count_trl=200_000):
    gc.disable()  # as timeit does, for both sides
    lengths, said, fills = lengths_of(count), {}, {}
    print(f"{count} lengths; at least {least_packs(lengths)} packs are needed")
    for method in (best_fit, shuffle_partition):
        seconds, packs = timed(method, lengths, 3)
        said[method.__name__] = {"seconds": round(min(seconds), 3), "packs": packs, "fill_percent": fill_of(lengths, packs)}
        print(f"{method.__name__:17} {', '.join(f'{s:.3f}' for s in seconds)} s; {packs} packs, {fill_of(lengths, packs)} % full", flush=True)

    seconds = {n: min(timed(best_fit, lengths_of(n), 2)[0]) for n in (10**4, 10**5, 10**6, 10**7)}
    cost = {n: round(s / (n * np.log2(n)) / (seconds[10**5] / (10**5 * np.log2(10**5))), 2) for n, s in seconds.items()}
    print("\n       n   seconds   t / (n log2 n), that of 10^5 being 1")
    print("\n".join(f"{n:8}  {s:8.4f}   {cost[n]:.2f}" for n, s in seconds.items()))

    print("\nsigma  best_fit  shuffle_partition   (percent full, 1,000,000 lengths)")
    for sigma in (0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.2):
        drawn = lengths_of(10**6, sigma)
        fills[sigma] = [fill_of(drawn, timed(method, drawn)[1]) for method in (best_fit, shuffle_partition)]
        print(f"{sigma:5}  {fills[sigma][0]:8.3f}  {fills[sigma][1]:17.3f}", flush=True)

    some = lengths[:count_trl]
    trl = against_trl(some)
    print(f"\n{len(some)} lengths against TRL; at least {least_packs(some)} packs are needed")
    for side, s in trl.items():
        print(f"{side:11} plan {s['plan']:.3f} s, with tokens {s['all']:.3f} s; {s['packs']} packs, {s['fill_percent']} % full")
    ratio = {side: {k: round(trl[side][k] / trl["ours"][k], 2) for k in ("plan", "all")} for side in ("trl", "trl_batched")}
    print(json.dumps({
        "peer": 'TRL pack_dataset(strategy="bfd")', "ratio": ratio["trl"]["plan"], "ratio_with_tokens": ratio["trl"]["all"],
        "ratio_batched": ratio["trl_batched"]["all"], "ratio_batched_plan": ratio["trl_batched"]["plan"],
        "against_trl": {side: {k: round(v, 3) for k, v in s.items()} for side, s in trl.items()}, "least_packs_against_trl": least_packs(some),
        "least_packs": least_packs(lengths), **said, "cost_per_n_log_n": cost,
        "no_faster_than_n_log_n": all(c <= 1.5 for n, c in cost.items() if n > 10**5), "fill_by_sigma": fills,
        "work": f"{len(some)} of {count} log-normal lengths (median 270, sigma 0.8), {int(some.sum())} tokens, packs of {SEQ_LEN}, one core"}))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
