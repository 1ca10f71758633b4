"""Rows in, examples out: read, check, dress for a stage, encode, and keep on disk as a prepared folder."""

import json
from collections import Counter
from dataclasses import asdict, dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from random import Random

import numpy as np

from orcalab import chatml, packing
from orcalab.config import RowError, choose, digest, nearest, read_json, to_json, write_json
from orcalab.strategies import CAUTIOUS, FINAL, FLAN_COT, ORCA1, ORCA1_IDS, STRATEGIES, erase, set_system

BUILDER = 2  # raise when the same rows would give other ids: it is part of a prepared folder's name
FIELDS = ("messages", "system_prompt", "question", "response", "id", "source", "task", "strategy", "teacher",
          "original_system", "answer", "explanation")


@dataclass(frozen=True)
class Row:
    """One training item: messages plus where they come from."""

    messages: list
    id: str = ""
    source: str = ""
    task: str = ""
    strategy: str = ""
    teacher: str = ""
    original_system: str = ""
    answer: str = ""  # the gold answer, where one is known
    explanation: str = ""  # the worked answer, without its final line
    where: str = field(default="", compare=False)  # file:line, for errors


# ------------------------------------------------------------------------------------------------ read

def _lines(path):
    """Yield (number, line) of a text file; raise RowError for an empty file or one that is not UTF-8."""
    raw = Path(path).read_bytes()
    if not raw.removeprefix(b"\xef\xbb\xbf").strip():
        raise RowError(f"{path}: the file is empty")
    for number, line in enumerate(raw.split(b"\n"), 1):
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r")
        except UnicodeDecodeError as e:
            raise RowError(f"{path}:{number}: not UTF-8 at byte {e.start} ({line[e.start]:#04x}); "
                           "save the file as UTF-8") from None
        if text.strip():
            yield number, text


def read_jsonl(path):
    """Yield rows from JSONL: `messages`, or `system_prompt` / `question` / `response`.

    Raises:
        RowError: file:line and the field; a line that is not JSON, a missing or misspelt field, a
            conversation without an assistant turn.
    """
    for number, text in _lines(path):
        where = f"{path}:{number}"
        try:
            item = json.loads(text)
        except json.JSONDecodeError as e:
            cut = " (is the line cut off?)" if e.pos >= len(text) - 1 or "Unterminated" in e.msg else ""
            raise RowError(f"{where}: not JSON at character {e.pos + 1}: {e.msg}{cut}") from None
        if not isinstance(item, dict):
            raise RowError(f"{where}: a line must hold an object, got {text[:40]!r}")
        yield _row(item, where, Path(path).stem)


def _row(item, where, source):
    for key in item:  # a message nobody reads would be lost without a word
        if key not in FIELDS and "system_prompt" not in item and get_close_matches(key, ["system_prompt"], 1, 0.85):
            raise RowError(f"{where}: {key!r}: did you mean 'system_prompt'?")
    if "messages" in item:
        messages = item["messages"]
    elif {"question", "response"} <= set(item):
        system = [{"role": "system", "content": item["system_prompt"]}] if item.get("system_prompt") else []
        messages = [*system, {"role": "user", "content": item["question"]}, {"role": "assistant", "content": item["response"]}]
    else:
        missing = ["question", "response"] if {"question", "response"} & set(item) else ["messages"]
        odd = [k for k in item if k not in FIELDS]
        hint = nearest(odd[0], FIELDS).replace("did you mean", f"{odd[0]!r}: did you mean") if odd else ""
        raise RowError(f"{where}: missing {[m for m in missing if m not in item]}{hint}")
    try:
        chatml.check(messages)
    except ValueError as e:
        raise RowError(f"{where}: {e}") from None
    if not any(m["role"] == "assistant" for m in messages):
        raise RowError(f"{where}: messages has no assistant turn, so there is nothing to learn")
    extra = {k: str(item[k]) for k in FIELDS[4:] if item.get(k) is not None}
    return Row(**{"id": f"{source}-{where.rsplit(':', 1)[1]}", "source": source, "task": source, **extra},
               messages=messages, where=where)


def read_tsv(path):
    """Yield rows from one of FLAN's CoT files: question, answer, explanation, a backslash-n for a newline."""
    name = Path(path).stem.removesuffix("_train")
    for number, text in _lines(path):
        parts = [p.replace("\\n", "\n").strip() for p in text.split("\t")]
        if len(parts) != 3 or not all(parts):
            empty = [n for n, p in zip(("question", "answer", "explanation"), parts + [""] * 3) if not p]
            raise RowError(f"{path}:{number}: expected question, answer, explanation between tabs, got {len(parts)} "
                           f"fields{f', empty: {empty}' if empty else ''}")
        question, answer, explanation = parts
        messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        yield Row(id=f"{name}-{number}", source="flan_cot", task=name, strategy=FLAN_COT.get(name, "explain-then-answer"),
                  teacher="human", messages=messages, answer=answer, explanation=explanation, where=f"{path}:{number}")


READERS = {".jsonl": read_jsonl, ".tsv": read_tsv}


def files(paths):
    """Return the readable files behind comma-separated paths of files and folders, sorted."""
    found = []
    for path in map(Path, str(paths).split(",")):
        if not path.exists():
            near = nearest(path.name, [p.name for p in path.parent.iterdir()]) if path.parent.is_dir() else ""
            raise ValueError(f"no file or folder {path}{near}")
        inside = sorted(p for p in path.iterdir() if p.suffix in READERS) if path.is_dir() else [path]
        if not inside:
            raise ValueError(f"{path} holds no {' or '.join(READERS)} file")
        found += inside
    for path in found:
        choose(path.suffix, READERS, f"reader ({path})")
    return found


def read(paths, seed=0):
    """Return every row of the files behind `paths`, shuffled by `seed` so that files mix.

    Raises:
        RowError, ValueError: before anything is trained; names file, line and field.
    """
    rows = [row for path in files(paths) for row in READERS[path.suffix](path)]
    Random(seed).shuffle(rows)
    return rows


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

    item = asdict(row)
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


def dressed(rows, cfg):
    """Yield `rows` dressed for a stage; solved examples come from 3 to 5 earlier rows of the same task."""
    rng, earlier = Random(f"{cfg.seed}-{cfg.name}"), {}
    for row in rows:
        pool = earlier.setdefault(row.task, [])
        shots = rng.sample(pool, rng.randint(3, 5)) if cfg.few_shot and len(pool) >= 5 else ()
        yield dress(row, cfg, rng, shots)
        if solved(row):
            pool.append(row)
            del pool[:-50]


# --------------------------------------------------------------------------------------------- prepare

@dataclass(frozen=True)
class Prepared:
    """A prepared folder: rows, their (ids, mask), and the plan of packs."""

    folder: Path
    card: dict
    rows: list
    examples: list
    plan: list

    def packs(self, first=0, last=None):
        """Return packs first..last of the plan as packing.Packed."""
        return packing.pack(self.examples, self.plan[first:last], self.card["config"]["seq_len"], self.card["pad_id"])


def fingerprint(tokenizer):
    """Digest what a tokenizer does to a few probes: two that agree here give the same ids."""
    probes = ["Hello world", " 1234 + 5", "a\nb\n\nc", "naïve café ☕ 你好", "<|im_start|>user<|im_end|>", "\tx  y"]
    return digest([len(tokenizer), chatml.marks(tokenizer), tokenizer.pad_token_id,
                   [chatml.plain(p, tokenizer) for p in probes]])


def cut_prompt(row, cfg, tokenizer):
    """Shorten the question (its beginning goes first) until the example fits; None if the answer alone is too long."""
    content = next((m["content"] for m in row.messages if m["role"] == "user"), "")
    low, high = 0, len(content)
    best = None
    while low <= high:  # the fewest characters to remove
        middle = (low + high) // 2
        first = next((m for m in row.messages if m["role"] == "user"), None)
        messages = [{**m, "content": content[middle:]} if m is first else m for m in row.messages]
        trial = chatml.encode(messages, tokenizer)
        if len(trial[0]) <= cfg.seq_len:
            best, high = (trial, messages), middle - 1
        else:
            low = middle + 1
    return best


def build(rows, cfg, tokenizer):
    """Dress and encode rows; every example is proved to teach exactly the assistant's words.

    Args:
        rows: Rows, possibly endless; reading stops when all steps are filled, with 2 % to spare for padding.

    Returns:
        (rows, examples, report); the report counts what was dropped or cut, and why.

    Raises:
        RowError: an example longer than seq_len under too_long "error"; says which, and by how much.
    """
    wanted = cfg.steps * cfg.tokens_per_step * 1.02
    kept, examples, total = [], [], 0
    report = {"rows": 0, "tokens": 0, "targets": 0, "too_long": 0, "tokens_lost": 0, "cut": 0, "as_they_stand": 0}
    for row in dressed(rows, cfg):
        ids, mask = chatml.encode(row.messages, tokenizer)
        name = row.where or row.id
        if len(ids) > cfg.seq_len:
            over = f"{name}: {len(ids)} tokens; seq_len is {cfg.seq_len}"
            if cfg.too_long == "error":
                raise RowError(f"{over}; choose too_long 'drop' or 'cut_prompt', or a larger seq_len")
            was = len(ids)
            found = cut_prompt(row, cfg, tokenizer) if cfg.too_long == "cut_prompt" else None
            report["too_long"] += found is None
            report["cut"] += found is not None
            report["tokens_lost"] += was - (len(found[0][0]) if found else 0)
            if found is None:
                if report["too_long"] >= 1000 and not kept and not hasattr(rows, "__len__"):  # endless rows: not one of a thousand fits
                    break
                continue
            (ids, mask), messages = found
            row = replace(row, messages=messages)
        try:
            chatml.prove(ids, mask, row.messages, tokenizer)
        except ValueError as e:
            raise RowError(f"{name}: {e}") from None
        kept.append(row)
        examples.append((ids, mask))
        total += len(ids)
        report["rows"] += 1
        report["targets"] += sum(mask)
        report["as_they_stand"] += not solved(row)
        if total >= wanted:
            break
    report["tokens"] = total
    if not examples:
        raise ValueError(f"no row is left to train on: {report['too_long']} were longer than seq_len {cfg.seq_len}")
    return kept, examples, report


def prepare(rows, cfg, tokenizer, folder, origin):
    """Build the prepared folder of a stage, or open it if the same inputs already made it.

    The folder's name ends in a digest of what made it: the rows' origin, tokenizer fingerprint,
    template, parameters and builder version. It is written to the side and renamed when whole.

    Args:
        origin: anything JSON can hold that identifies the rows (paths with digests, or seeds).

    Returns:
        Prepared.
    """
    keys = ("answers", "system", "few_shot", "template", "seq_len", "packing", "too_long", "steps", "batch_size",
            "accum", "seed", "name")
    made_of = {"origin": origin, "tokenizer": fingerprint(tokenizer), "builder": BUILDER,
               "messages": digest([STRATEGIES, ORCA1, ORCA1_IDS, CAUTIOUS, FINAL]),
               **{k: v for k, v in to_json(cfg).items() if k in keys}}
    target = Path(folder) / f"{cfg.name}-{digest(made_of)}"
    if not target.exists():
        kept, examples, report = build(rows, cfg, tokenizer)
        plan = packing.plan([len(e[0]) for e in examples], cfg.seq_len, cfg.steps * cfg.packs_per_step, cfg.packing, cfg.seed)
        fill = sum(len(examples[i][0]) for p in plan for i in p) / (len(plan) * cfg.seq_len)
        by = {key: dict(sorted(Counter(getattr(kept[i], key) for p in plan for i in p).items())) for key in ("task", "strategy", "teacher")}
        card = {"config": to_json(cfg), "made_of": made_of, "pad_id": tokenizer.pad_token_id, "report": report,
                "packs": len(plan), "fill": fill, "by": by}
        _write(target, card, kept, examples, plan)
    return open_prepared(target)


def _write(target, card, rows, examples, plan):
    side = target.with_name(target.name + ".part")
    side.mkdir(parents=True, exist_ok=True)
    with open(side / "rows.jsonl", "w", encoding="utf-8") as f:
        f.writelines(json.dumps(asdict(r), ensure_ascii=False) + "\n" for r in rows)
    np.savez(side / "examples.npz", ids=np.concatenate([e[0] for e in examples]).astype(np.int32),
             mask=np.concatenate([e[1] for e in examples]).astype(bool), ends=np.cumsum([len(e[0]) for e in examples]))
    write_json(side / "plan.json", plan)
    write_json(side / "card.json", card)
    side.replace(target)


def open_prepared(folder):
    """Open a prepared folder; raise if it is not one."""
    folder = Path(folder)
    if not (folder / "card.json").exists():
        raise ValueError(f"{folder} is not a prepared folder: it has no card.json")
    card = read_json(folder / "card.json")
    with np.load(folder / "examples.npz") as z:
        ends = z["ends"][:-1]
        examples = list(zip(np.split(z["ids"], ends), np.split(z["mask"], ends)))
    with open(folder / "rows.jsonl", encoding="utf-8") as f:
        rows = [Row(**json.loads(line)) for line in f]
    return Prepared(folder, card, rows, examples, read_json(folder / "plan.json"))


def origin_of(paths):
    """Identify files by path and content, for a prepared folder's digest."""
    import hashlib
    return [[p.name, hashlib.sha256(p.read_bytes()).hexdigest()[:16]] for p in files(paths)]
