"""Rows in, examples out: dress for a stage, encode and prove in parallel, and keep on disk as a prepared folder."""

import json
import os
import pickle
import signal
import threading
from array import array
from collections import Counter, deque
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from multiprocessing import get_context, parent_process
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np

from orcalab import chatml, packing
from orcalab.config import RowError, choose, digest, read_json, to_json, write_json
from orcalab.progress import Progress
from orcalab.rows import Lines, OnDisk, Row, files, origin_of, read, stored  # noqa: F401  the reading half of this room
from orcalab.strategies import CAUTIOUS, FINAL, ORCA1, ORCA1_IDS, STRATEGIES, erase, set_system

BUILDER = 4  # raise when the same rows would give other ids or files: it is part of a prepared folder's name
BLOCK = 2000  # rows that one process takes at a time; they share a random stream and their solved examples


# ----------------------------------------------------------------------------------------------- dress

def dress(row, cfg, rng, shots=()):
    """Give a row the answer, system message and solved examples that a stage asks for.

    Args:
        row: a Row; with `answer` and `explanation` known, its assistant turn is rewritten.
        cfg: the stage's Config: `answers`, `system`, `few_shot`.
        rng: a random.Random; draws Orca 1's message and whether examples are shown.
        shots: rows of the same task to show as solved examples in the user turn.

    Returns:
        A Row. With system "cautious" the strategy's message was there and has been erased; it is kept
        in `original_system`.
    """
    def reply(r):
        if cfg.answers == "gold" or r.strategy == "direct-answer":
            return r.answer
        return f"{r.explanation}\n{FINAL} {r.answer}" if r.explanation else r.messages[-1]["content"]

    item = dict(vars(row))
    if solved(row):
        user = row.messages[-2]["content"]
        if shots and rng.random() < cfg.few_shot:
            user = "\n\n".join(f"{s.messages[-2]['content']}\n{reply(s)}" for s in shots) + f"\n\n{user}"
        item["messages"] = row.messages[:-2] + [{"role": "user", "content": user}, {"role": "assistant", "content": reply(row)}]
    if cfg.system == "empty":
        item = set_system(item, "")
    elif cfg.system == "none":
        item = set_system(item, None)
    elif cfg.system == "orca1":
        item = set_system(item, ORCA1[rng.choice(ORCA1_IDS["cot"])])
    elif cfg.system in ("strategy", "cautious") and row.strategy:
        item = set_system(item, STRATEGIES[choose(row.strategy, STRATEGIES, f"strategy ({row.where or row.id})")])
    if cfg.system == "cautious":
        item = erase(item)
    return Row(**item)


def solved(row):
    """Tell whether a row is one question with a known gold answer, so that a stage can choose what is learned of it."""
    return bool(row.answer) and [m["role"] for m in row.messages if m["role"] != "system"] == ["user", "assistant"]


def dressed(rows, cfg, block=0):
    """Yield `rows` dressed for a stage; solved examples are 3 to 5 earlier rows of the same task, of the same block of rows."""
    rng, earlier = Random(f"{cfg.seed}-{cfg.name}-{block}" if block else f"{cfg.seed}-{cfg.name}"), {}
    for row in rows:
        pool = earlier.setdefault(row.task, [])
        shots = rng.sample(pool, rng.randint(3, 5)) if cfg.few_shot and len(pool) >= 5 else ()
        yield dress(row, cfg, rng, shots)
        if solved(row):
            pool.append(row)
            del pool[:-50]


# -------------------------------------------------------------------------------------------- examples

COUNTS = ("rows", "tokens", "targets", "too_long", "tokens_lost", "cut", "as_they_stand")


class Block(NamedTuple):
    """What became of some rows: bytes ready to be written, and what the report counts."""

    rows: bytes  # JSONL
    ids: bytes  # int32
    mask: bytes  # a byte a token, 1 is learned
    lengths: array  # tokens of each example
    tags: list  # (task, strategy, teacher) of each
    report: Counter


def block_of(rows, cfg, encoder, number=0, wanted=float("inf")):
    """Dress and encode rows, and prove that each teaches exactly the assistant's words; return a Block.

    Args:
        wanted: tokens after which no further row is taken; rows may then be endless.

    Raises:
        RowError: a row that cannot be used, or whose targets are not its words; an example longer than seq_len under
            too_long "error". Says which row.
    """
    text, all_ids, all_masks, lengths, tags, report = [], [], [], array("i"), [], Counter(dict.fromkeys(COUNTS, 0))
    for row in dressed(rows, cfg, number):
        try:
            chatml.check(row.messages, answered=True)
            parts = encoder.parts(row.messages, learn=cfg.learn)
            size = was = sum(len(p) for p, _ in parts) // 4
            if was > cfg.seq_len:
                if cfg.too_long == "error":
                    raise ValueError(f"{was} tokens; seq_len is {cfg.seq_len}; choose too_long 'drop' or 'cut_prompt', or a larger seq_len")
                row, parts = cut_prompt(row, cfg, encoder) if cfg.too_long == "cut_prompt" else (row, [])
                size = sum(len(p) for p, _ in parts) // 4
                report.update(tokens_lost=was - size, cut=int(size > 0), too_long=int(size == 0))
            ids, mask = b"".join([p for p, _ in parts]), b"".join([(b"\1" if learn else b"\0") * (len(p) // 4) for p, learn in parts])
            if size:
                chatml.prove(array("i", ids), mask, row.messages, encoder, cfg.learn)
                text.append(json.dumps(vars(row), ensure_ascii=False).encode() + b"\n")
        except ValueError as e:
            raise RowError(f"{row.where or row.id}: {e}") from None
        if size:
            all_ids.append(ids), all_masks.append(mask), lengths.append(size), tags.append((row.task, row.strategy, row.teacher))
            report.update(rows=1, tokens=size, targets=mask.count(1), as_they_stand=int(not solved(row)))
        if report["tokens"] >= wanted or report["too_long"] >= 1000 and not lengths and not hasattr(rows, "__len__"):  # endless, and none of a thousand fits
            break
    return Block(b"".join(text), b"".join(all_ids), b"".join(all_masks), lengths, tags, report)


def cut_prompt(row, cfg, encoder):
    """Shorten the first question (its beginning goes first) until the example fits; return (row, parts), no parts if it never does."""
    at = next((i for i, m in enumerate(row.messages) if m["role"] == "user"), None)
    best, low, high = (row, []), 0, len(row.messages[at]["content"]) if at is not None else -1
    while low <= high:  # the fewest characters to remove
        middle = (low + high) // 2
        trial = [*row.messages[:at], {"role": "user", "content": row.messages[at]["content"][middle:]}, *row.messages[at + 1:]]
        parts = encoder.parts(trial, learn=cfg.learn)
        if sum(len(p) for p, _ in parts) <= 4 * cfg.seq_len:
            best, high = (replace(row, messages=trial), parts), middle - 1
        else:
            low = middle + 1
    return best


# ------------------------------------------------------------------------------------------- processes

_mine = ()  # what a worker process works on: rows, cfg, encoder


def _start(work):
    global _mine
    _mine = pickle.loads(Path(work).read_bytes())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides when to stop
    threading.Thread(target=lambda: (parent_process().join(), os._exit(1)), daemon=True).start()  # nor outlive it


def _encode(block):
    rows, cfg, encoder = _mine
    return block_of(_span(rows, block), cfg, encoder, block)


def _check(block):
    return sum(1 for _ in _span(_mine[0], block))


def _span(rows, block):
    return (rows[i] for i in range(block * BLOCK, min(len(rows), (block + 1) * BLOCK)))


@contextmanager
def _workers(rows, cfg, encoder):
    """Give a function that does a job on blocks of rows, in several processes if there are many, and yields the results in order."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    number = 1 if len(rows) <= 2 * BLOCK else min(cfg.processes or cores, -(-len(rows) // BLOCK))
    if number == 1:
        global _mine
        _mine = rows, cfg, encoder
        yield map
        _mine = ()
        return
    with TemporaryDirectory() as side, ProcessPoolExecutor(number, get_context("spawn"), _start, (f"{side}/work",)) as pool:
        Path(side, "work").write_bytes(pickle.dumps((rows, cfg, encoder)))  # a file: a pipe to a process that died would block

        def each(job, blocks):
            waiting = deque()
            for block in blocks:
                waiting.append(pool.submit(job, block))
                if len(waiting) > 2 * number:  # so that results do not pile up
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        try:
            yield each
        except BrokenExecutor as e:
            raise OSError("a process that prepares rows ended before its time. Was there enough memory? Does your script work under "
                          "`if __name__ == '__main__':`? With processes 1 there is no other process") from e
        finally:
            pool.shutdown(cancel_futures=True)


def blocks_of(rows, cfg, encoder):
    """Yield Blocks until the steps are filled, with 2 % to spare for padding.

    Rows of files go through several processes, whose number changes nothing but the time; those that are left over are
    checked all the same.
    """
    wanted, tokens = cfg.steps * cfg.tokens_per_step * 1.02, 0
    if not isinstance(rows, Lines):
        yield block_of(rows, cfg, encoder, 0, wanted)
        return
    numbers = range(-(-len(rows) // BLOCK))
    with _workers(rows, cfg, encoder) as each, Progress(len(rows), f"prepare {cfg.name} (rows)" if len(rows) > 2 * BLOCK else "") as bar:
        for number, block in zip(numbers, each(_encode, numbers)):
            yield block
            bar.advance(min(BLOCK, len(rows) - number * BLOCK))
            tokens += len(block.mask)
            if tokens >= wanted:
                break
        for checked in each(_check, numbers[number + 1:]):
            bar.advance(checked)


# --------------------------------------------------------------------------------------------- prepare

class Examples(OnDisk):
    """The examples of a prepared folder: (ids, mask) as int32 and bool arrays, mapped from disk."""

    def __init__(self, folder):
        self.ends = np.cumsum(np.load(folder / "lengths.npy"), dtype=np.int64)
        self.ids, self.mask = (np.memmap(folder / f, t, "c") for f, t in (("ids.bin", np.int32), ("mask.bin", bool)))
        if not len(self.ids) == len(self.mask) == self.ends[-1]:
            raise ValueError(f"{folder} is damaged: {self.ends[-1]} tokens are listed, {len(self.ids)} ids and {len(self.mask)} masks are there; delete it")

    def __len__(self):
        return len(self.ends)

    def get(self, i):
        span = slice(self.ends[i - 1] if i else 0, self.ends[i])
        return self.ids[span], self.mask[span]


@dataclass(frozen=True)
class Prepared:
    """A prepared folder: rows, their (ids, mask), and the plan of packs. Rows and examples stay on disk until asked for."""

    folder: Path
    card: dict
    examples: Examples
    plan: packing.Plan

    @cached_property
    def rows(self):
        return Lines([self.folder / "rows.jsonl"], stored)

    def packs(self, first=0, last=None):
        """Return packs first..last of the plan as packing.Packed."""
        return packing.pack(self.examples, self.plan[first:last], self.card["config"]["seq_len"], self.card["pad_id"])


def prepare(rows, cfg, tokenizer, folder, origin):
    """Build the prepared folder of a stage, or open it if the same inputs already made it.

    The folder's name ends in a digest of what made it: the rows' origin, the tokenizer's fingerprint, template, parameters and
    builder version. It is written to the side and renamed when whole. Memory grows by some tens of bytes a row, not with what rows hold.

    Args:
        rows: rows.Lines, or any Rows, possibly endless: reading stops when all steps are filled (of Lines, at the end of a block).
        origin: anything JSON can hold that identifies the rows (paths with digests, or seeds).

    Returns:
        Prepared; its card counts what was dropped or cut, and why.

    Raises:
        RowError: a row that cannot be used; says which, and why. ValueError: no row is left.
    """
    keys = ("answers", "system", "few_shot", "template", "learn", "seq_len", "packing", "too_long", "steps", "batch_size",
            "accum", "seed", "name")
    made_of = {"origin": origin, "tokenizer": chatml.fingerprint(tokenizer, cfg.template), "builder": BUILDER,
               "messages": digest([STRATEGIES, ORCA1, ORCA1_IDS, CAUTIOUS, FINAL]),
               **{k: v for k, v in to_json(cfg).items() if k in keys}}
    target = Path(folder) / f"{cfg.name}-{digest(made_of)}"
    if target.exists():
        return open_prepared(target)
    side = target.with_name(target.name + ".part")
    side.mkdir(parents=True, exist_ok=True)
    report, lengths, tag, tags = Counter(dict.fromkeys(COUNTS, 0)), array("i"), array("i"), {}
    with open(side / "rows.jsonl", "wb") as lines, open(side / "ids.bin", "wb") as ids, open(side / "mask.bin", "wb") as mask:
        for block in blocks_of(rows, cfg, chatml.encoder(tokenizer, cfg.template)):
            lines.write(block.rows), ids.write(block.ids), mask.write(block.mask)
            lengths.extend(block.lengths)
            tag.extend(tags.setdefault(t, len(tags)) for t in block.tags)
            report.update(block.report)
    if not lengths:
        raise ValueError(f"no row is left to train on: {report['too_long']} were longer than seq_len {cfg.seq_len}")
    plan = packing.plan(lengths, cfg.seq_len, cfg.steps * cfg.packs_per_step, cfg.packing, cfg.seed)
    used = plan.members
    names, by = list(tags), {key: Counter() for key in ("task", "strategy", "teacher")}
    for t, n in enumerate(np.bincount(np.array(tag)[used], minlength=len(names)).tolist()):
        for counts, value in zip(by.values(), names[t]):
            counts[value] += n
    np.save(side / "lengths.npy", np.array(lengths))
    np.save(side / "plan.npy", plan.members)
    np.save(side / "packs.npy", plan.ends)
    write_json(side / "card.json", {"config": to_json(cfg), "made_of": made_of, "pad_id": tokenizer.pad_token_id, "report": report,
                                    "packs": len(plan), "fill": int(np.array(lengths)[used].sum()) / (len(plan) * cfg.seq_len), "by": {key: dict(sorted(counts.items())) for key, counts in by.items()}})
    side.replace(target)
    return open_prepared(target)


def open_prepared(folder):
    """Open a prepared folder; raise if it is not one, or not whole."""
    folder = Path(folder)
    if not (folder / "card.json").exists():
        raise ValueError(f"{folder} is not a prepared folder: it has no card.json")
    return Prepared(folder, read_json(folder / "card.json"), Examples(folder), packing.Plan(*(np.load(folder / f"{n}.npy", mmap_mode="r") for n in ("plan", "packs"))))
