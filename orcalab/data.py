"""Rows in, examples out: dress for a stage, encode and prove in parallel, and keep on disk as a prepared folder."""

import json
import pickle
from array import array
from bisect import bisect_left
from collections import Counter
from dataclasses import replace
from itertools import count, islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from orcalab import card, chatml, hygiene, packing, workers
from orcalab.config import ROW, RowError, digest, listed, write_json
from orcalab.dress import dress, dressed, single, solved  # noqa: F401  rooms that one thinks of as this one's
from orcalab.mixture import BLOCK, Mixture
from orcalab.prepared import Prepared, values_of, audit, leaks, open_prepared, read_shard, write_shard  # noqa: F401
from orcalab.progress import Progress
from orcalab.rows import OnDisk, Row  # noqa: F401
from orcalab.sources import read  # noqa: F401
from orcalab.strategies import CAUTIOUS, FINAL, ORCA1, ORCA1_IDS, STRATEGIES, name_of

BUILDER = 5  # raise when the same rows would give other ids or files: it is part of a prepared folder's name


class Block(NamedTuple):
    """What became of some rows, and what the report counts."""

    rows: list
    items: list  # which of the rows given each one is
    ids: list  # int32 bytes of each example
    masks: list  # a byte a token, 1 is learned
    tags: list  # (source, task, strategy, teacher, system message, part) of each
    report: Counter
    hits: Counter  # (evaluation set, number of its question, task) that rows overlap with


def block_of(rows, cfg, encoder, number=0, wanted=float("inf"), most=None, overlap=None, names=("rows",)):
    """Dress and encode rows, and prove that each teaches exactly the assistant's words; return a Block.

    Of an erased row it is also proved that the erased message stands nowhere in the example's ids.

    Args:    rows: Rows, or (row, solved examples, Config) of a Mixture; an iterator of dressed rows, perhaps endless, if `number` is None.
             wanted: tokens after which no further row is taken.  most: rows to take at most.
             overlap: a hygiene.Overlap.  names: of the part that each row is of, in turn; they end with the last one.
    Raises:  RowError: a row that cannot be used, or whose targets are not its words; an example longer than seq_len under too_long "error". Says which row.
    """
    out, drop, endless = Block([], [], [], [], [], Counter(dict.fromkeys(card.TEXT, 0)), Counter()), set(listed(cfg.drop)), number is None
    report = out.report
    taken = islice(rows if number is None else dressed(rows, cfg, number), most)
    if overlap:
        taken = list(taken)
        shared = overlap.of_rows(taken)
    for at, row in enumerate(taken):
        if not (row.messages[-1]["content"] if row.messages else row.text).strip():  # of a stream; a Mixture left them out
            report["empty"] += 1
            continue
        try:
            if overlap and shared[at]:
                out.hits.update((*who, row.task) for who in shared[at])
                report["overlap"] += 1
                if "overlap" in drop:
                    continue
            parts = parts_of(row, cfg, encoder)
            size = was = sum(len(p) for p, _ in parts) // 4
            if was > cfg.seq_len:
                if cfg.too_long == "error":
                    raise ValueError(f"{was} tokens; seq_len is {cfg.seq_len}; choose too_long 'drop' or 'cut_prompt', or a larger seq_len")
                row, parts = cut_prompt(row, cfg, encoder) if cfg.too_long == "cut_prompt" else (row, [])
                size = sum(len(p) for p, _ in parts) // 4
                report.update(tokens_lost=was - size, cut=int(size > 0), too_long=int(size == 0))
            ids, mask = b"".join([p for p, _ in parts]), b"".join([(b"\1" if learn else b"\0") * (len(p) // 4) for p, learn in parts])
            if size:
                chatml.prove(array("i", ids), mask, row.messages or row.text, encoder, cfg.learn)
                if leaks(row, parts, encoder):
                    report["leaks"] += 1
                    continue
        except chatml.Unsayable as e:
            if "unsayable" not in drop:
                raise RowError(f"{row.where or row.id}: {e}; to leave such rows out, add 'unsayable' to `drop`") from None
            report["unsayable"] += 1
            continue
        except ValueError as e:
            raise RowError(f"{row.where or row.id}: {e}") from None
        if size:
            out.rows.append(row), out.ids.append(ids), out.masks.append(mask), out.items.append(at)
            system = next((name_of(m["content"]) for m in row.messages[:1] if m["role"] == "system"), "no message" if row.messages else "plain text")
            out.tags.append((row.source, row.task, row.strategy, row.teacher, system, names[min(at, len(names) - 1)]))
            report.update(rows=1, tokens=size, targets=mask.count(1), as_they_stand=int(not solved(row)), erased=int(bool(row.original_system)))
        if report["tokens"] >= wanted or endless and report["too_long"] >= 1000 and not out.rows:  # endless, and none of a thousand fits
            break
    return out


def parts_of(row, cfg, encoder):
    """Return the parts of a row's example: of messages, or of plain text."""
    if row.text:
        return encoder.text(row.text)
    chatml.check(row.messages, answered=True)
    return encoder.parts(row.messages, learn=cfg.learn)


def cut_prompt(row, cfg, encoder):
    """Shorten the first question (its beginning goes first), or plain text (its end), until it fits; return (row, parts), no parts if it never does."""
    at = next((i for i, m in enumerate(row.messages) if m["role"] == "user"), None)
    if at is None and not row.text:
        return row, []
    whole = row.text or row.messages[at]["content"]

    def less(n):
        if row.text:
            trial = replace(row, text=whole[: len(whole) - n])
        else:
            trial = replace(row, messages=[*row.messages[:at], {**row.messages[at], "content": whole[n:]}, *row.messages[at + 1:]])
        return trial, parts_of(trial, cfg, encoder) if trial.text or trial.messages else []

    fewest = bisect_left(range(len(whole) + 1), True, key=lambda n: sum(len(p) for p, _ in less(n)[1]) <= 4 * cfg.seq_len)
    return less(fewest) if fewest <= len(whole) else (row, [])


def _encode(work, number):
    """Make one shard, unless it is there already."""
    rows, cfg, encoder, overlap, folder, size = work
    path = folder / f"data-{number:05d}.arrow"
    if not path.exists():
        span = range(number * size, min(len(rows), (number + 1) * size))
        cfgs = {part: replace(cfg, **{k: v for k, v in (("answers", part.answers), ("system", part.system), ("few_shot", part.few_shot)) if v not in ("", -1.0)})
                for part in rows.mix.parts}
        names = [rows.mix.parts[p].name for p in rows.part[span.start : span.stop]]
        items = ((several, cfgs[part], part.merge) for several, part in map(rows.item, span))
        write_shard(path, block_of(items, cfg, encoder, number, most=size, overlap=overlap, names=names), span.start)
    return path


def shards(rows, cfg, encoder, folder, overlap=None):
    """Write the shards of rows until the steps are filled, with 2 % to spare for padding, or the rows end; yield (path, rows read).

    Rows of a Mixture go through several processes, whose number changes nothing but the time; shards that are there already stay.
    """
    wanted, tokens, path = cfg.steps * cfg.tokens_per_step * 1.02 or float("inf"), 0, None
    wanted += cfg.held_out * min(cfg.seq_len, ROW)
    if not isinstance(rows, Mixture):
        made = dressed(rows, cfg)
        for number in count():
            block = block_of(made, cfg, encoder, None, wanted - tokens, BLOCK, overlap)
            if number and not block.report.total():  # a block without rows is no end: they may all have been dropped
                return
            path, tokens = folder / f"data-{number:05d}.arrow", tokens + block.report["tokens"]
            write_shard(path, block, number * BLOCK)
            yield path, len(block.rows)
            if tokens >= wanted or not tokens and block.report["too_long"] >= 1000:
                return
    size = BLOCK * max(1, -(-len(rows) // (2000 * BLOCK)))
    numbers = range(-(-len(rows) // size))
    processes = 1 if len(rows) <= 2 * BLOCK else min(cfg.processes or workers.cores(), len(numbers))
    with workers.shared((rows, cfg, encoder, overlap, folder, size), processes) as each:
        for path in each(_encode, numbers):
            yield path, size
            tokens += read_shard(path)[1]["report"]["tokens"]
            if tokens >= wanted:
                break
    for other in [p for p in folder.glob("data-*.arrow") if p > path]:  # made ahead
        other.unlink()


def prepare(rows, cfg, tokenizer, folder, origin, against=""):
    """Build the prepared folder of a stage, or open it if the same inputs already made it.

    The folder's name ends in a digest of what made it: the rows' origin, the tokenizer's fingerprint, template, parameters and builder version. It is written to the
    side and renamed when whole; what an interrupted call left there is used by the next. Memory grows by some tens of bytes a row, not with what rows hold.

    Args:    rows: a mixture.Mixture, a sequence of rows that stays on disk, or any Rows, possibly endless: reading stops when all steps are filled.
             origin: anything JSON can hold that identifies the rows (paths with digests, or seeds).
             against: evaluation sets, paths joined by commas; the card says which questions rows overlap with.
    Returns: Prepared; its card counts what was dropped or cut, and why.
    Raises:  RowError: a row that cannot be used; says which, and why. ValueError: no row is left.
    """
    keys = ("answers", "system", "few_shot", "template", "learn", "seq_len", "packing", "too_long", "steps", "epochs", "batch_size",
            "accum", "seed", "stream", "name", "scale", "drop")
    sets = hygiene.questions(against) if against else {}
    if "overlap" in listed(cfg.drop) and not sets:
        raise ValueError("drop names 'overlap', and no evaluation sets are given: say which in `against`")
    made_of = {"origin": origin, "tokenizer": chatml.fingerprint(tokenizer, cfg.template), "builder": BUILDER,
               "messages": digest([STRATEGIES, ORCA1, ORCA1_IDS, CAUTIOUS, FINAL]), "against": digest(sets),
               **{k: v for k, v in cfg.settings.items() if k in keys}, **({"held_out": cfg.held_out} if cfg.held_out else {})}
    target = Path(folder) / f"{cfg.name}-{digest(made_of)}"
    if target.exists():
        return open_prepared(target)
    side, chosen = target.with_name(target.name + ".part"), {}
    for old in side.glob("data-*") if not (side / "chosen.pickle").exists() else ():  # of a stream, or of a choice that was never made
        old.unlink()
    if isinstance(rows, OnDisk):
        rows, chosen = _choose(rows if isinstance(rows, Mixture) else Mixture.of(rows, cfg), side)
    side.mkdir(parents=True, exist_ok=True)
    report, hits, tags, lengths, tag, item = Counter(dict.fromkeys(card.TEXT, 0)), Counter(), {}, [], [], []
    table, read_rows = None, 0
    encoder, overlap = chatml.encoder(tokenizer, cfg.template), hygiene.Overlap(sets) if sets else None
    known = len(rows) if isinstance(rows, Mixture) else 0
    with Progress(known, f"prepare {cfg.name} (rows)" if known > 2 * BLOCK else "") as bar:
        for path, read_ in shards(rows, cfg, encoder, side, overlap):
            table, counts = read_shard(path)
            report.update(counts["report"])
            hits.update({tuple(key): n for *key, n in counts["hits"]})
            lengths.append(np.diff(values_of(table, "input_ids")[1], prepend=0).astype(np.int32))
            numbers = np.array([tags.setdefault(tuple(t), len(tags)) for t in counts["tags"]], np.int32)
            tag.append(numbers[table["tag"].to_numpy()] if len(numbers) else np.zeros(0, np.int32))
            item.append(table["item"].to_numpy())
            read_rows = min(read_rows + read_, known)
            bar.advance(read_rows - bar.done)
    table = None  # where files that are open cannot be renamed
    report["unread"] = known - read_rows
    lengths, tag, item = (np.concatenate(x) for x in (lengths, tag, item))
    if not len(lengths):
        raise ValueError(f"no row is left to train on: {report['too_long']} were longer than seq_len {cfg.seq_len}" +
                         "".join(f"; {report[k]} {card.TEXT[k]}" for k in ("empty", "leaks", "unsayable", "overlap") if report[k]))
    draws = None
    if known and rows.draws:
        place = np.full(known, -1)
        place[item] = np.arange(len(item))
        draws = [d[d >= 0] for d in (place[e] for e in rows.draws)]
    if cfg.held_out:
        held = np.flatnonzero(item < rows.held) if known else ()  # what a mixture sets aside, where it does
        if not len(held) and cfg.held_out >= len(lengths):
            raise ValueError(f"held_out is {cfg.held_out}, and there are {len(lengths)} examples in all")
        held = held if len(held) else np.sort(np.random.default_rng([cfg.seed, len(lengths)]).choice(len(lengths), cfg.held_out, replace=False))
        draws = [np.setdiff1d(d, held) for d in draws or [np.arange(len(lengths))]]
        np.save(side / "held_out.npy", held)
    plan = packing.plan(lengths, cfg.seq_len, cfg.steps * cfg.packs_per_step or None, cfg.packing, cfg.seed, cfg.epochs, cfg.packs_per_step, draws)
    np.save(side / "plan.npy", plan.members)
    np.save(side / "packs.npy", plan.ends)
    if known and rows.aside:
        with open(side / "validation.jsonl", "w", encoding="utf-8", newline="\n") as f:
            f.writelines(json.dumps({k: v for k, v in vars(r).items() if v and k != "where"}, ensure_ascii=False) + "\n" for r in rows.set_aside())
    (side / "chosen.pickle").unlink(missing_ok=True)
    made = {"config": cfg.settings, "made_of": made_of, "pad_id": tokenizer.pad_token_id, "report": dict(report), "packs": len(plan),
            "fill": int(lengths[plan.members].sum(dtype=np.int64)) / (len(plan) * cfg.seq_len), "epochs": len(plan.members) / len(lengths), "planned": len(np.unique(plan.members)),
            "by": card.counted(list(tags), np.bincount(tag[plan.members], minlength=len(tags))), "rows_by": card.counted(list(tags), np.bincount(tag, minlength=len(tags))),
            "lengths": card.spread(lengths), "chosen": chosen, "contamination": hygiene.report(hits, {n: len(q) for n, q in sets.items()}) if sets else {}}
    card.write(side, made)
    write_json(side / "card.json", made)
    side.replace(target)
    return open_prepared(target)


def _choose(rows, side):
    """Choose the rows of a Mixture, or take the choice that an interrupted call left."""
    kept = side / "chosen.pickle"
    if kept.exists():
        before, said = pickle.loads(kept.read_bytes())
        if all(p.exists() for p in before.paths()):
            return before, said
    said = rows.choose()
    side.mkdir(parents=True, exist_ok=True)
    part = kept.with_suffix(".part")
    part.write_bytes(pickle.dumps((rows, said)))
    part.replace(kept)
    return rows, said
