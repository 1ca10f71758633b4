"""A prepared folder: rows, ids and masks in Arrow files mapped from disk, the plan of packs, and the audit of what was erased."""

import json
import re
from array import array
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from orcalab import chatml, packing
from orcalab.config import read_json
from orcalab.rows import Row, Stacked
from orcalab.strategies import CAUTIOUS

COLUMNS = ("id", "source", "task", "strategy", "teacher", "original_system", "answer", "explanation", "kind", "text")


def write_shard(path, block, first=0):
    """Write a Block as an Arrow file, whole or not at all; what it counts goes into the file's metadata."""
    import pyarrow as pa
    rows, tags = block.rows, {t: n for n, t in enumerate(dict.fromkeys(block.tags))}
    ends = lambda lists: pa.array(np.cumsum([0, *map(len, lists)], dtype=np.int32))
    flat = lambda parts, kind: pa.array(np.frombuffer(b"".join(parts), kind))
    turns = [m for r in rows for m in r.messages]
    said = pa.StructArray.from_arrays([pa.array([m[k] for m in turns], pa.string()) for k in ("role", "content")], ["role", "content"])
    columns = {c: pa.array([getattr(r, c) for r in rows], pa.string()) for c in COLUMNS}
    columns |= {"messages": pa.ListArray.from_arrays(ends([r.messages for r in rows]), said),
                "input_ids": pa.ListArray.from_arrays(ends(block.masks), flat(block.ids, np.int32)),
                "learned": pa.ListArray.from_arrays(ends(block.masks), flat(block.masks, np.int8)),
                "tag": pa.array([tags[t] for t in block.tags], pa.int32()), "item": pa.array([first + i for i in block.items], pa.int32())}
    counts = {"tags": list(tags), "report": block.report, "hits": [[*k, n] for k, n in sorted(block.hits.items())]}
    batch, side = pa.RecordBatch.from_pydict(columns, metadata={"orcalab": json.dumps(counts)}), path.with_suffix(".part")
    with pa.OSFile(str(side), "wb") as f, pa.ipc.new_file(f, batch.schema) as out:
        out.write_batch(batch)
    side.replace(path)


def read_shard(path):
    """Return (record batch, counts) of an Arrow file, mapped from disk."""
    import pyarrow as pa
    try:
        batch = pa.ipc.open_file(pa.memory_map(str(path))).get_batch(0)
        return batch, json.loads(batch.schema.metadata[b"orcalab"])
    except (pa.ArrowInvalid, OSError, KeyError, TypeError) as e:
        raise ValueError(f"{path.parent} is damaged: {path.name} cannot be read ({str(e)[:60]}); delete it") from None


def values_of(table, name):
    """Return the flat values of a list column as an array, and where each list ends."""
    return table[name].values.to_numpy(), table[name].offsets.to_numpy()[1:].astype(np.int64)


class Stored(Stacked):
    """The rows of a prepared folder."""

    def one(self, k, i):
        (item,) = self.parts[k].slice(i, 1).select([*COLUMNS, "messages"]).to_pylist()
        return Row(**item)


class Examples(Stacked):
    """The examples of a prepared folder: (ids, mask) as int32 and bool arrays, mapped from disk."""

    def __init__(self, tables):
        super().__init__(tables)
        self.values = [(*values_of(t, "input_ids"), values_of(t, "learned")[0].view(bool)) for t in tables]

    def one(self, k, i):
        ids, ends, mask = self.values[k]
        span = slice(int(ends[i - 1]) if i else 0, int(ends[i]))
        return ids[span], mask[span]


@dataclass(frozen=True)
class Prepared:
    """A prepared folder: rows, their (ids, mask), and the plan of packs. Rows and examples stay on disk until asked for."""

    folder: Path
    card: dict
    examples: Examples
    plan: packing.Plan
    rows: Stored
    held_out: np.ndarray  # numbers of the examples that no pack holds, to be looked at while training

    @property
    def steps(self):
        """How many steps the plan has."""
        return len(self.plan) // (self.card["config"]["batch_size"] * self.card["config"]["accum"])

    def packs(self, first=0, last=None):
        """Return packs first..last of the plan as packing.Packed."""
        return self.pack(self.plan[first:last])

    def pack(self, members):
        """Return packs of these examples, a list of numbers each, as packing.Packed."""
        return packing.pack(self.examples, members, self.card["config"]["seq_len"], self.card["pad_id"])


def open_prepared(folder):
    """Open a prepared folder; raise if it is not one, or not whole."""
    folder = Path(folder)
    if not (folder / "card.json").exists():
        raise ValueError(f"{folder} is not a prepared folder: it has no card.json")
    made, tables = read_json(folder / "card.json"), [read_shard(p)[0] for p in sorted(folder.glob("data-*.arrow"))]
    if (rows := sum(map(len, tables))) != made["report"]["rows"]:
        raise ValueError(f"{folder} is damaged: its card lists {made['report']['rows']} rows, {rows} are there; delete it")
    plan = packing.Plan(*(np.load(folder / f"{n}.npy", mmap_mode="r") for n in ("plan", "packs")))
    held = np.load(folder / "held_out.npy") if (folder / "held_out.npy").exists() else np.zeros(0, np.int64)
    return Prepared(folder, made, Examples(tables), plan, Stored(tables), held)


def leaks(row, parts, encoder):
    """Tell whether the message that was erased from a row can be read in the ids of its example behind the system turn; `parts` are those of the encoder."""
    return bool(row.original_system) and encoder.tokens.as_read(row.original_system).encode() in said(parts, encoder)


def said(parts, encoder):
    """Return what the ids behind the system turn stand for, as bytes."""
    return encoder.tokens.bytes_of(array("i", b"".join(ids for ids, _ in parts[3:])))


def audit(prepared, tokenizer):
    """Read a prepared folder back and check every erased row: its ids and mask are exactly those of its messages under the cautious message, and behind that
    message's turn none of them spells any text that was erased, from this row or another (of more than a thousand different texts: from this row).

    Returns: dict: erased rows, different erased texts, rows that leak (0, unless the folder was changed, or a row says what was erased from another).
    Raises:  ValueError: a row whose ids are not its messages'; says which.
    """
    cfg, erased, leaking = prepared.card["config"], 0, 0
    e = chatml.encoder(tokenizer, cfg["template"])
    texts = sorted({text for t in prepared.rows.parts for text in t["original_system"].unique().to_pylist()} - {""})
    any_text = re.compile(b"|".join(re.escape(e.tokens.as_read(t).encode()) for t in texts)) if 0 < len(texts) <= 1000 else None
    for row, (ids, mask) in zip(prepared.rows, prepared.examples) if texts else ():
        if row.original_system:
            now = e.parts(row.messages, learn=cfg["learn"])
            learned = b"".join(bytes([learn]) * (len(p) // 4) for p, learn in now)
            if row.messages[0] != {"role": "system", "content": CAUTIOUS} or ids.tobytes() != b"".join(p for p, _ in now) or mask.tobytes() != learned:
                raise ValueError(f"{prepared.folder}: the ids of row {row.id} are not those of its messages under the cautious message")
            erased, leaking = erased + 1, leaking + bool(any_text.search(said(now, e)) if any_text else leaks(row, now, e))
    return {"erased": erased, "texts": len(texts), "leaks": leaking}
