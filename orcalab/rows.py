"""Rows from files: an index of lines in memory, each row read, checked and made when it is asked for."""

import json
from array import array
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from itertools import accumulate
from pathlib import Path

import numpy as np

from orcalab import chatml
from orcalab.config import RowError, choose, listed, nearest
from orcalab.families import family_of

FIELDS = ("messages", "text", "system_prompt", "question", "response", "id", "source", "task", "strategy", "teacher", "original_system", "answer", "explanation", "kind")
OTHERS = {"system": "system_prompt", "instruction": "question", "output": "response", "conversations": "messages", "conversation": "messages"}  # other projects' names


@dataclass(frozen=True)
class Row:
    """One training item: messages, or plain text, plus where they come from."""

    messages: list
    text: str = ""  # for language modelling: every token of it is learned
    id: str = ""
    source: str = ""
    task: str = ""
    strategy: str = ""
    teacher: str = ""
    original_system: str = ""
    answer: str = ""  # the gold answer, where one is known
    explanation: str = ""  # the worked answer, without its final line
    kind: str = ""  # FLAN's kind of template: zs_opt, zs_noopt, fs_opt, fs_noopt
    where: str = field(default="", compare=False)  # file:line, for errors


def parse(path, number, text):
    """Return the object of a JSONL line.

    Raises:  RowError: file:line; a line that is not JSON, or not an object.
    """
    try:
        item = json.loads(text)
    except json.JSONDecodeError as e:
        cut = " (is the line cut off?)" if e.pos >= len(text) - 1 or "Unterminated" in e.msg else ""
        raise RowError(f"{path}:{number}: not JSON at character {e.pos + 1}: {e.msg}{cut}") from None
    if not isinstance(item, dict):
        raise RowError(f"{path}:{number}: a line must hold an object, got {text[:40]!r}")
    return item


def row_of(item, where, source, number):
    """Return the row of a dictionary: `messages`, or `system_prompt` / `question` / `response`, or `text` alone; without
    a response, a question for a teacher, or one whose gold `answer` is the response.

    Raises:  RowError: where, and the field: a missing or misspelt one, or a conversation that does not end with the assistant.
    """
    for key in item.keys() - FIELDS:  # words that nobody reads would be lost without a word
        meant = OTHERS.get(key) if "messages" not in item else None
        if (meant := meant or "".join(get_close_matches(key, ["system_prompt"], 1, 0.85))) and meant not in item:
            raise RowError(f"{where}: {key!r}: did you mean {meant!r}?")
    if "messages" in item:
        if twice := sorted({"system_prompt", "question", "response", "text"} & set(item)):
            raise RowError(f"{where}: 'messages' and {twice}: a row has the one or the other")
        messages = item["messages"]
    elif "question" in item and ("response" in item or "text" not in item and not get_close_matches("response", item.keys() - FIELDS, 1, 0.6)):
        system = [{"role": "system", "content": item["system_prompt"]}] if item.get("system_prompt") else []
        asked, gold = ("" if item.get(k) is None else item[k] for k in ("question", "answer"))
        replied = "response" in item or gold != ""  # if not, it is a question for a teacher
        said = str(gold) if "response" not in item else "" if item["response"] is None else item["response"]
        messages = [*system, {"role": "user", "content": asked}, *([{"role": "assistant", "content": said}] if replied else [])]
    elif "text" in item and not {"question", "response"} & set(item):
        messages = []
    else:
        missing = ["question", "response"] if {"question", "response"} & set(item) else ["messages"]
        odd = [k for k in item if k not in FIELDS]
        hint = nearest(odd[0], FIELDS).replace("did you mean", f"{odd[0]!r}: did you mean") if odd else ""
        raise RowError(f"{where}: missing {[m for m in missing if m not in item]}{hint}")
    try:
        chatml.check(messages if messages != [] or "text" not in item else [{"role": "assistant", "content": item["text"]}], answered="messages" in item or "text" in item or replied)
    except ValueError as e:
        raise RowError(f"{where}: {e}") from None
    extra = {k: str(item[k]) for k in (*FIELDS[5:], "text") if item.get(k) is not None}
    if half := [k for k, v in extra.items() if not v.isascii() and chatml.HALF.search(v)]:
        raise RowError(f"{where}: {half[0]!r} holds half a character (a lone surrogate), which has no UTF-8")
    return Row(**{"id": f"{source}-{number}", "source": source, "task": source, **extra}, messages=messages, where=where)


def joined(rows):
    """Return rows under one system message as one conversation, under the first one's."""
    first, turns = rows[0], [m for r in rows for m in r.messages if m["role"] != "system"]
    if len(rows) == 1:
        return first
    same = lambda field, other: getattr(first, field) if all(getattr(r, field) == getattr(first, field) for r in rows) else other
    return replace(first, messages=[m for m in first.messages if m["role"] == "system"] + turns, task=same("task", "conversation"), strategy=same("strategy", ""), answer="", explanation="")


def tsv(path, number, text):
    """Return the row of a line of FLAN's CoT files: question, answer, explanation, a backslash-n for a newline."""
    name = path.stem.removesuffix("_train")
    parts = [p.replace("\\n", "\n").strip() for p in text.split("\t")]
    if len(parts) != 3 or not all(parts):
        empty = [n for n, p in zip(("question", "answer", "explanation"), parts + [""] * 3) if not p]
        raise RowError(f"{path}:{number}: expected question, answer, explanation between tabs, got {len(parts)} fields{f', empty: {empty}' if empty else ''}")
    question, answer, explanation = parts
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return Row(id=f"{name}-{number}", source="flan_cot", task=name, strategy=family_of(name).strategy,
               teacher="human", messages=messages, answer=answer, explanation=explanation, where=f"{path}:{number}")


class OnDisk(Sequence):
    """A sequence that fetches an item when it is asked for, so that memory does not grow with what the items hold."""

    def __getitem__(self, at):
        if isinstance(at, slice):
            return [self.get(i) for i in range(*at.indices(len(self)))]
        if not -len(self) <= at < len(self):
            raise IndexError(f"there are {len(self)} items, number {at} is not among them")
        return self.get(at % len(self))

    def __eq__(self, other):
        return len(self) == len(other) and all(a == b for a, b in zip(self, other))


class Stacked(OnDisk):
    """Sequences one behind the other, in their order or in another one."""

    def __init__(self, parts, order=None):
        self.parts, self.order, self.ends = parts, order, list(accumulate(map(len, parts)))

    def __len__(self):
        return self.ends[-1] if self.ends else 0

    def get(self, i):
        i = i if self.order is None else int(self.order[i])
        k = bisect_right(self.ends, i)
        return self.one(k, i - (self.ends[k - 1] if k else 0))

    def one(self, k, i):
        """Return item i of part k."""
        return self.parts[k].get(i)


class Lines(OnDisk):
    """The rows of files, a line each: some 18 bytes a row in memory. Can be sent to another process.

    Args:    reader: makes a Row of (path, line number, text).
    Raises:  RowError: an empty file; and, when a row is asked for, whatever is wrong with its line.
    """

    def __init__(self, paths, reader):
        self.paths, self.reader, self.open = [Path(p) for p in paths], reader, {}  # open: files, as far as rows were asked for
        self.file, self.number, self.start, self.size = array("H"), array("i"), array("q"), array("i")
        for n, path in enumerate(self.paths):
            before, at = len(self.file), 0
            with open(path, "rb") as f:
                for number, line in enumerate(f, 1):
                    if line.strip() and line.strip() != b"\xef\xbb\xbf":
                        self.file.append(n), self.number.append(number), self.start.append(at), self.size.append(len(line))
                    at += len(line)
            if len(self.file) == before:
                raise RowError(f"{path}: the file is empty")
        for name in ("file", "number", "start", "size"):  # NumPy's arrays are shared by processes, and not copied
            setattr(self, name, np.asarray(getattr(self, name)))

    def __len__(self):
        return len(self.file)

    def __getstate__(self):
        return {**vars(self), "open": {}}

    def __del__(self):
        for file in vars(self).get("open", {}).values():
            file.close()

    def get(self, i):
        n, number = int(self.file[i]), int(self.number[i])
        if n not in self.open:
            self.open[n] = open(self.paths[n], "rb", buffering=0)
        self.open[n].seek(int(self.start[i]))
        line = self.open[n].read(int(self.size[i]))
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
        except UnicodeDecodeError as e:
            raise RowError(f"{self.paths[n]}:{number}: not UTF-8 at byte {e.start} ({line[e.start]:#04x}); save the file as UTF-8") from None
        return self.reader(self.paths[n], number, text)


def files(paths, suffixes, pattern="*", leave_out=None):
    """Return the readable files behind comma-separated paths of files and folders, sorted.

    Args:    pattern: which files of a folder, as in Path.glob.  leave_out: a regular expression of names inside a folder that are not wanted.
    """
    found = []
    for path in map(Path, listed(paths)):
        if not path.exists():
            near = nearest(path.name, [p.name for p in path.parent.iterdir()]) if path.parent.is_dir() else ""
            raise ValueError(f"no file or folder {path}{near}")
        inside = [path]
        if path.is_dir():
            inside = sorted(p for p in path.glob(pattern) if p.suffix in suffixes and not (leave_out and leave_out.search(p.relative_to(path).as_posix())))
        if not inside:
            raise ValueError(f"{path} holds no {' or '.join(suffixes)} file" + (f" named {pattern}" if "." in pattern else ""))
        found += inside
    for path in found:
        choose(path.suffix, suffixes, f"reader ({path})")
    return found
