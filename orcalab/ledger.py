"""The ledger: every answer that a teacher gave, a line each, in a file that only grows and that a kill at any byte leaves whole."""

import json
import os
import threading
import time
from collections import Counter
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np

from orcalab.config import digest


def key_of(teacher, messages):
    """Return what an answer is found by, 16 hexadecimal digits of a hash: who was asked, with which sampling settings, and every word of the prompt."""
    return digest([teacher.name, teacher.model, teacher.sampling, messages], 16)


class Ledger(AbstractContextManager):
    """An append-only JSONL file of answers, and an index of it in memory: 16 bytes an answer.

    An entry has id, task, family and strategy of the row, teacher, model as asked for, version as answered, messages and their hash, sampling, answer, finish
    (why it ended), tokens_in, tokens_out, cost, currency, seconds, tries, time, licence, and its key. A line that broke off is passed over, counted in
    `torn`, and its question asked again.

    Args:    path: the file.  write: whether answers are to be added, which one process at a time may do.
    Raises:  ValueError: another process writes to this ledger, or there is none to read.
    """

    def __init__(self, path, write=False):
        from filelock import FileLock, Timeout
        self.path, self.torn, self.synced, self.lock = Path(path), 0, 0.0, threading.RLock()
        self.keys, self.at, self.fresh, self.totals = np.zeros(0, np.uint64), np.zeros(0, np.int64), {}, {}
        if write:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.held = FileLock(f"{self.path}.lock")
            try:
                self.held.acquire(timeout=0)
            except Timeout:
                raise ValueError(f"another process is writing to {self.path}: wait until it ends, or give another out") from None
        elif not self.path.exists():
            raise ValueError(f"there is no ledger {self.path}")
        self.file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0), 0o644) if write else -1
        self.end, line = 0, b""
        with open(self.path, "rb") as lines:
            for line in lines:
                try:
                    self._note(json.loads(line), self.end)
                except (ValueError, KeyError, TypeError, OverflowError):
                    self.torn += bool(line.strip())
                self.end += len(line)
        if write and line and not line.endswith(b"\n"):  # what a kill left: the next line starts on its own
            self._append(b"\n")
            self.end += 1

    def close(self):
        with self.lock:
            file, self.file = self.file, -1  # a thread that was left behind writes to no other file
            if file >= 0:
                os.fsync(file)
                os.close(file)
                self.held.release()

    def __exit__(self, *error):
        self.close()

    def __len__(self):
        return len(self.keys) + len(self.fresh)

    @property
    def cost(self):
        """What all answers cost so far, {currency: amount}."""
        out = Counter()
        for (_, _, currency), t in self.totals.items():
            out[currency] += t["cost"]
        return out

    @property
    def tokens(self):
        """Tokens of all questions and answers so far."""
        return sum(t["tokens_in"] + t["tokens_out"] for t in self.totals.values())

    def _note(self, entry, start):
        """Take an entry that begins at byte `start` of the file into the index and the totals."""
        key = int(np.uint64(int(entry["key"], 16)))
        counts = {"answers": 1, **{k: entry[k] for k in ("tokens_in", "tokens_out", "cost", "seconds", "tries")}, f"finish {entry['finish']}": 1}
        self.totals.setdefault((entry["teacher"], entry["version"], entry["currency"]), Counter()).update(counts)
        self.fresh[key] = start
        if len(self.fresh) >= 1 << 15:  # an index of plain numbers is ten times smaller than a dictionary
            keys, at = (np.concatenate([old, np.array(list(new), old.dtype)]) for old, new in ((self.keys, self.fresh), (self.at, self.fresh.values())))
            order = np.argsort(keys, kind="stable")
            self.keys, self.at, self.fresh = keys[order], at[order], {}

    def _append(self, data):
        """Write bytes at the end, whole or not at all."""
        try:
            done = 0
            while done < len(data):
                done += os.write(self.file, data[done:])
        except OSError as e:
            os.ftruncate(self.file, self.end)
            raise OSError(f"no disk space left for {self.path}, or the disk failed ({e}); what it holds is whole") from e

    def write(self, entry):
        """Add an entry. It is in the file when this returns, whatever becomes of the process; on the disk with the next answer after a second, or at the end."""
        line = json.dumps(entry, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"
        with self.lock:
            self._append(line)
            self._note(entry, self.end)
            self.end += len(line)
            if time.monotonic() - self.synced > 1:
                os.fsync(self.file)
                self.synced = time.monotonic()

    def get(self, key):
        """Return the entry of a key, None if there is none."""
        with self.lock:
            number = int(key, 16)
            place = int(np.searchsorted(self.keys, np.uint64(number), "right")) - 1  # of several, the newest
            start = self.fresh.get(number, int(self.at[place]) if place >= 0 and int(self.keys[place]) == number else None)
        if start is None:
            return None
        with open(self.path, "rb") as f:
            f.seek(start)
            return json.loads(f.readline())

    def table(self):
        """Return (rows, head): a line for each teacher and model version."""
        rows = [[name, version, t["answers"], t["tokens_in"], t["tokens_out"], f"{t['cost']:.4f} {currency}", f"{t['seconds'] / t['answers']:.1f}", t["tries"] - t["answers"],
                 ", ".join(f"{k.removeprefix('finish ')} {n}" for k, n in sorted(t.items()) if k.startswith("finish "))]
                for (name, version, currency), t in sorted(self.totals.items())]
        return rows, ["teacher", "model version", "answers", "tokens in", "tokens out", "cost", "seconds each", "tries again", "ended by"]
