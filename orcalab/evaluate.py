"""Questions asked of students: answers kept so that a kill costs little, several processes can share the work, and all of it can be read again."""

import json
import math
import re
import time
from operator import itemgetter
from pathlib import Path

import numpy as np

from orcalab import families, hygiene, parser, scores
from orcalab.config import digest, read_json, write_json
from orcalab.procedural import strategy_of
from orcalab.progress import Progress
from orcalab.strategies import FINAL, STRATEGIES, message

ORDER = itemgetter("task", "number")  # of records; files have them in the order in which they were asked
TOGETHER = 6  # batches that are answered and kept together: in bf16 an answer's last bits hang on its neighbours, so after a kill it gets the same ones
KEPT = ("kind", "options", "labels", "golds", "group", "unanswerable", "grounds", "references")  # of a benchmark's question, so that its answer can be read again and judged
USED = [*STRATEGIES, "other"]  # how an answer may be given, by its form; benchmarks/ablation.json keeps their numbers


def parse(text):
    """Return (answer, whether the format was right): what follows the last final-answer line, else all of it.

    An answer without that line counts as well formed if it is one line: a direct answer is one.

    >>> parse("12 + 5 = 17.\\nFinal answer: 17"), parse("17"), parse("let me see\\n17")
    (('17', True), ('17', True), ('let me see\\n17', False))
    """
    head, found, tail = text.rpartition(FINAL)
    if found:
        return tail.strip(), bool(tail.strip())
    return text.strip(), bool(text.strip()) and "\n" not in text.strip()


def right(task_name, answer, entry):
    """Score one parsed answer: a benchmark's by parser.right, the others by reasoning_gym's own scorer, where only a full mark counts.

    Those scorers give part marks, and for a substring too ("14" for "4"), so anything below 1 is wrong. An entry that is not
    reasoning_gym's, so without metadata, has to state its gold answer (hygiene.agrees).
    """
    if "kind" in entry:
        return parser.right(answer, entry)
    if "metadata" not in entry:
        return hygiene.agrees(f"{FINAL} {answer}", entry["answer"]) is True
    import reasoning_gym
    return reasoning_gym.get_score_answer_fn(entry["metadata"].get("source_dataset", task_name))(answer, entry) == 1.0


def message_to(system, recipe, task):
    """Return the system message that goes with a question of a task: one by name, or the `right` or `wrong` one for the task.

    The right one asks for the task's own strategy. The wrong one asks for the opposite: steps where a bare answer should do, a bare answer where steps are needed.
    """
    if system in ("right", "wrong"):
        own = recipe.task(task)
        system = own.strategy if system == "right" else "step-by-step" if own.direct else "direct-answer"
    return message(system)


def ask(student, name, system, questions, folder, recipe, said=None, shard=(1, 1), what=""):
    """Let a student answer every question under one system message; return the records.

    Answers are appended to `<folder>/<name>.<system>.jsonl`, six batches at a time: a kill costs those under way, and the same call goes on to the same bytes.
    Several processes may share the work, each with a file of its own; a call without `shard` takes what they did and asks the rest.

    Args:    student: a generate.Student, or a Lazy one, which is loaded only if needed.
             name: what to call the student.  system: a strategy, "cautious", "empty", or "right" or "wrong" for each task.
             questions: {task name: [reasoning_gym entry, or a question of tasks.py]}.  recipe: a config.Recipe; max_new_tokens and eval_batch are used.
             said: the message for each task, {task name: text}, where `system` is but a name for them.
             shard: (i, n) for the i-th of n shares.  what: the name of the progress bar.
    Returns: list of dicts, by task and number, of all shares as far as they are there: student, system, task, number, question, gold, text, tokens, reason ("stop", "length",
             or "too long" for a question that the model's context does not hold, which counts as wrong), answer, format_ok, right; what KEPT names; `texts`, if there are
             several turns.
    """
    folder, stem = Path(folder), f"{name}.{system}"
    path = folder / (stem + (".{}of{}".format(*shard) if shard != (1, 1) else "") + ".jsonl")
    folder.mkdir(parents=True, exist_ok=True)
    todo = [((t, e.get("number", i)), e) for t, entries in questions.items() for i, e in enumerate(entries)]
    own, said = said, said or {task: message_to(system, recipe, task) for task in questions}
    done, mine = {}, []
    head = {"questions": len(todo), "asked": digest([[*key, e["question"]] for key, e in todo]), "student": identity(student),
            "max_new_tokens": recipe.max_new_tokens, "message": digest(said if own or system in ("right", "wrong") else message(system))}
    files = _files(folder, stem, digest(head))
    size = next((_first(file)["together"] for file in files), TOGETHER * recipe.eval_batch)  # who began says what is answered together
    parts = [todo[i : i + size] for i in range(0, len(todo), size)]
    for file in sorted(files, key=lambda p: p == path):
        held = {(r["task"], r["number"]): r for r in Answers([file])}
        mine = [n for n, part in enumerate(parts) if n not in done and all(which in held for which, _ in part)]
        done |= {n: [held[which] for which, _ in parts[n]] for n in mine}
    left = [n for n in range(len(parts)) if n % shard[1] == shard[0] - 1 and n not in done]
    if shard[0] > len(parts):
        print(f"share {shard[0]} of {shard[1]} has nothing to do: {len(todo)} questions are {len(parts)} parts of up to {size} that are answered together; a smaller eval_batch makes more of them", flush=True)
    if left:
        student = student if hasattr(student, "answers") else student.load()
        side = path.with_suffix(".part")
        side.write_text("".join(json.dumps(x, ensure_ascii=False) + "\n" for x in [head | {"together": size, "rules": rules()}, *(r for n in (mine if path.exists() else ()) for r in done[n])]), encoding="utf-8")
        side.replace(path)  # without the half line, or the part of six batches, that a kill may have left
        with open(path, "a", encoding="utf-8") as f, Progress(sum(len(parts[n]) for n in [*done, *left]), what or f"ask {name} ({system})") as bar:
            bar.resume(sum(map(len, done.values())))
            for n in left:
                begun = time.monotonic()
                done[n] = [{"student": name, "system": system, **r} for r in _answer(student, parts[n], said, recipe, bar)]
                f.write("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in done[n]))
                f.flush()
                with open(folder / "timing.log", "a") as log:  # beside the answers, which are the same each time
                    log.write(json.dumps([name, system, len(done[n]), round(time.monotonic() - begun, 3), digest(head)]) + "\n")
    return sorted((r for part in done.values() for r in part), key=ORDER)


def _files(folder, stem, key):
    """Return the files that hold answers of these settings, shares of other processes among them.

    Files of other questions, another student or another limit are put aside, and those that were put aside under these settings taken back.
    """
    named = lambda end: [p for p in sorted(folder.glob(f"{stem}*{end}")) if re.fullmatch(re.escape(stem) + r"(\.\d+of\d+)?" + re.escape(end), p.name)]
    for file in named(".jsonl"):
        if (found := digest(_head(_first(file)))) != key:
            file.replace(file.with_suffix(f".{found}.before"))
    for file in named(f".{key}.before"):
        if not (back := file.with_name(file.name.removesuffix(f".{key}.before") + ".jsonl")).exists():
            file.replace(back)
    return named(".jsonl")


def _first(path):
    """Return the first line of a file of answers, which says whose they are; {} where a kill left not even that."""
    with open(path, "rb") as lines:
        line = next(lines, b"")
    return json.loads(line) if line.endswith(b"\n") else {}


def identity(student):
    """Return what tells a student's answers from another's: its weights' digest, its template, and the type it computes in."""
    if not hasattr(student, "answers"):
        return student.identity()
    return [student.origin["digest"], *([student.encoder.name, str(student.model.dtype)] if hasattr(student, "encoder") else [])]


def _reading(text, task, entry):
    """Return what of a record hangs on how a text is read."""
    answer, ok = parser.read(text, entry)[:2] if "kind" in entry else parse(text)
    return {"answer": answer, "format_ok": bool(ok), "right": bool(right(task, answer, entry))}


def _answer(student, part, said, recipe, bar):
    """Answer some questions, turn by turn; return their records."""
    turns = [[e["question"].strip(), *e.get("turns", ())] for _, e in part]
    prompts, given = [student.prompt(t[0], said[task]) for t, ((task, _), _) in zip(turns, part)], [[] for _ in part]
    room = student.room(recipe.max_new_tokens) if hasattr(student, "room") else math.inf
    while live := [n for n in range(len(part)) if len(given[n]) < len(turns[n]) and len(prompts[n]) <= room]:
        for i, a in student.answers([prompts[n] for n in live], recipe.max_new_tokens, recipe.eval_batch):
            given[live[i]].append(a)
            bar.advance(len(given[live[i]]) == 1)
        for n in (n for n in live if len(given[n]) < len(turns[n])):  # a further turn reads what was said before
            before = [{"role": role, "content": text} for q, a in zip(turns[n], given[n]) for role, text in (("user", q), ("assistant", a.text))]
            prompts[n] = student.ids_of([{"role": "system", "content": said[part[n][0][0]]}, *before, {"role": "user", "content": turns[n][len(given[n])]}])
    out = []
    for ((task, number), e), answers in zip(part, given):
        text, reason = (answers[-1].text, answers[-1].reason) if len(answers) == 1 + len(e.get("turns", ())) else ("", "too long")
        out.append({"task": task, "number": number, "question": e["question"], "gold": e["answer"], "text": text, "tokens": sum(a.tokens for a in answers), "reason": reason,
                    **_reading(text, task, e), **{k: e[k] for k in KEPT if e.get(k) or k == "labels" and k in e},
                    **({"turns": e["turns"], "texts": [a.text for a in answers]} if e.get("turns") else {})})
    return out


def choose_strategies(student, name, questions, folder, recipe):
    """Try every candidate strategy of each family with a student, and choose one for each.

    The family's own is kept unless under another one the student gives right answers to so many more of the same questions that chance would do that in
    less than one of ten trials (McNemar); of several such, the one with most right answers, then the one with the shorter ones.

    Args:    questions: {family: [entry]}; an entry has question and answer, and reasoning_gym's have metadata.
    Returns: {family: {"chosen", "own", "tried": {strategy: {"right", "questions", "tokens", "each", "p"}}}}; also in `<folder>/strategies.json`. The answers stay there too.
    Paper: Orca 2, "Teaching Orca 2 to be a Cautious Reasoner": strategies are chosen guided by how the student does.
    """
    tried = {f: {} for f in questions}
    texts = {f: families.candidates(families.FAMILIES[f]) for f in questions}
    for strategy in dict.fromkeys(s for t in texts.values() for s in t):
        mine = {f: q for f, q in questions.items() if strategy in texts[f]}
        records = ask(student, name, strategy, mine, folder, recipe, said={f: texts[f][strategy] for f in mine})
        for f in mine:
            own = [r for r in records if r["task"] == f]
            tried[f][strategy] = {"right": sum(r["right"] for r in own), "questions": len(own), "tokens": float(np.mean([r["tokens"] for r in own])),
                                  "each": [int(r["right"]) for r in sorted(own, key=lambda r: r["number"])]}
    out = {}
    for f in tried:
        first, t = families.FAMILIES[f].strategy, {s: tried[f][s] for s in texts[f]}
        for s in t:
            pairs = list(zip(t[s]["each"], t[first]["each"]))
            t[s]["p"] = scores.mcnemar(pairs.count((1, 0)), pairs.count((0, 1)))
        better = [s for s in t if t[s]["right"] > t[first]["right"] and t[s]["p"] < 0.1]
        out[f] = {"chosen": max(better or [first], key=lambda s: (t[s]["right"], -t[s]["tokens"])), "own": first, "tried": t}
    write_json(Path(folder) / "strategies.json", out)
    return out


class Lazy:
    """A student that is loaded only if there is something left to ask it."""

    def __init__(self, source, device="auto", dtype="auto", template=None):
        self.how, self.student = (str(source), device, dtype, template), None

    def identity(self):
        """Return what `identity` gives once it is loaded."""
        from orcalab import model as models
        source, device, dtype, template = self.how
        own = Path(source) / "orcalab.json"
        return [models.weights_digest(source), template or (read_json(own)["template"] if own.exists() else "chatml"), str(models.pick(device, dtype)[1])]

    def load(self):
        from orcalab.generate import Student
        self.student = self.student or Student(*self.how)
        return self.student


def read_lines(path):
    """Return the whole lines of a JSONL file; what a kill left after the last newline is no line.

    Bytes are split, not text: an answer may hold characters that str.splitlines takes for a line's end.
    """
    return [json.loads(x) for x in Path(path).read_bytes().split(b"\n")[:-1]]


def rules():
    """Return the digest of the rules by which answers to benchmarks are read today."""
    return digest(Path(parser.__file__).read_text(encoding="utf-8"))


def _head(line):
    """Return what of a file's first line tells one set of answers from another."""
    return {k: v for k, v in line.items() if k not in ("rules", "together")}


class Answers:
    """What one student said under one message: records, read from the files a line at a time each time they are walked through.

    An answer to a benchmark's question that was read by other rules than today's is read again, so a better parser needs no new answers.
    """

    def __init__(self, paths, head=None):
        self.paths, self.head = paths, head

    def __iter__(self):
        today = rules()
        for path in self.paths:
            with open(path, "rb") as lines:
                old = json.loads(next(lines)).get("rules", today) != today
                for r in (json.loads(line) for line in lines if line.endswith(b"\n")):
                    yield {**r, **_reading(r["text"], r["task"], {**r, "answer": r["gold"]})} if old and "kind" in r else r


def stored(folder):
    """Return {(student, system): Answers} of every whole set of answers in a folder, shares of several processes put together; one that broke off is left out."""
    found, out = {}, {}
    for path in sorted(Path(folder).glob("*.jsonl")):
        with open(path, "rb") as lines:
            head, first, count = next(lines, b"{}"), next(lines, b""), sum(line.endswith(b"\n") for line in lines)
        if first.endswith(b"\n") and "student" in (r := json.loads(first)):
            head = _head(json.loads(head))
            found.setdefault((r["student"], r["system"], digest(head)), (head, []))[1].append((path, count + 1))
    for (*who, _), (head, files) in found.items():
        count = sum(n for _, n in files)
        if count > (whole := head.get("questions", count)):
            raise ValueError(f"{', '.join(str(p) for p, _ in files)} hold {count} answers to {whole} questions: two commands asked the same at once; delete one of these files")
        if count == whole:
            out[tuple(who)] = Answers([p for p, _ in files], head)
    return out


def read_answers(folder):
    """Return {(student, system): records} of every whole set of answers in a folder."""
    return {who: sorted(answers, key=ORDER) for who, answers in stored(folder).items()}


def seconds(folder):
    """Return {(student, system): seconds an answer took}, many being made side by side."""
    log, now = Path(folder) / "timing.log", {who: digest(answers.head) for who, answers in stored(folder).items()}
    took = {}
    for name, system, count, time_, *key in read_lines(log) if log.exists() else ():
        if [now.get((name, system))] == key:
            took.setdefault((name, system), []).append((count, time_))
    return {who: sum(t for _, t in times) / sum(n for n, _ in times) for who, times in took.items()}


def of_runs(folders):
    """Return {(student, system): records} of several runs of one recipe, each record with its `seed` and the strategy `used`, read off the answer's form."""
    out, seeds = {}, set()
    for folder in map(Path, folders):
        seed = next((read_json(p)["seed"] for p in sorted(folder.glob("*/config.json"))), None)
        if seed is None or seed in seeds:
            raise ValueError(f"{folder} is " + ("no run's folder: no stage in it has a config.json" if seed is None else f"a second run of seed {seed}: each has to be of another"))
        seeds.add(seed)
        for key, records in read_answers(folder / "answers").items():
            out.setdefault(key, []).extend({**r, "seed": seed, "used": strategy_of(r["text"])} for r in records)
    if not out:
        raise ValueError(f"no whole answers file in {', '.join(map(str, folders)) or 'no folder'}")
    return out


def unpack_records(packed):
    """Return what `of_runs` gives, without the texts, from the form in which benchmarks/ablation.json keeps it: a digit for each fact of an answer."""
    out = {}
    for student, system, seed, task, *columns in packed:
        out.setdefault((student, system), []).extend(
            {"student": student, "system": system, "seed": seed, "task": task, "number": n, "question": "", "right": right == "1", "format_ok": ok == "1",
             "reason": "length" if cut == "1" else "stop", "used": USED[int(used)], "tokens": tokens} for n, (right, ok, cut, used, tokens) in enumerate(zip(*columns)))
    return out
