"""Held-out questions, answers, scores with intervals, and paired comparisons on the same questions."""

import json
from pathlib import Path

import numpy as np

from orcalab import families, hygiene
from orcalab.config import digest, read_json, write_json
from orcalab.procedural import strategy_of
from orcalab.strategies import FINAL, STRATEGIES, message


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
    """Score one parsed answer by reasoning_gym's own scorer; only a full mark counts.

    Its scorers give part marks, and for a substring too ("14" for "4"), so anything below 1 is wrong. An entry that is not
    reasoning_gym's, so without metadata, has to state its gold answer (hygiene.agrees).
    """
    if "metadata" not in entry:
        return hygiene.agrees(f"{FINAL} {answer}", entry["answer"]) is True
    import reasoning_gym
    task_name = entry["metadata"].get("source_dataset", task_name)
    return reasoning_gym.get_score_answer_fn(task_name)(answer, entry) == 1.0


def message_to(system, recipe, task):
    """Return the system message that goes with a question of a task: one by name, or the `right` or `wrong` one for the task.

    The right one asks for the task's own strategy. The wrong one asks for the opposite: steps where a bare answer should do, a bare answer where steps are needed.
    """
    if system in ("right", "wrong"):
        own = recipe.task(task)
        system = own.strategy if system == "right" else "step-by-step" if own.direct else "direct-answer"
    return message(system)


def ask(student, name, system, questions, folder, recipe, said=None):
    """Let a student answer every held-out question under one system message; return the records.

    Each answer is appended to `<folder>/<name>.<system>.jsonl` as it ends, so a kill costs those under way, and the same call goes on from there.

    Args:
        student: a generate.Student, or a Lazy one, which is loaded only if needed.
        name: what to call the student.  system: a strategy, "cautious", "empty", or "right" or "wrong" for each task.
        questions: {task name: [reasoning_gym entry]}.
        recipe: a config.Recipe; max_new_tokens and eval_batch are used.
        said: the message for each task, {task name: text}, where `system` is but a name for them.

    Returns:
        list of dicts, by task and number: student, system, task, number, question, gold, text, tokens, reason, answer,
        format_ok, right.
    """
    path = Path(folder) / f"{name}.{system}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    todo = [(t, i, e) for t, entries in questions.items() for i, e in enumerate(entries)]
    source = student.origin["digest"] if hasattr(student, "origin") else student.digest()
    own, said = said, said or {task: message_to(system, recipe, task) for task in questions}
    head = {"questions": len(todo), "asked": digest([[t, i, e["question"]] for t, i, e in todo]), "student": source,
            "max_new_tokens": recipe.max_new_tokens, "message": digest(said if own or system in ("right", "wrong") else message(system))}
    done = []
    if path.exists():
        lines = read_lines(path)
        if lines and lines[0] == head:
            done = lines[1:]
        else:  # other questions, another student or another limit: what was answered before is kept
            path.replace(path.with_suffix(f".{digest(lines[:1])}.before"))
    if len(done) == len(todo):
        return in_order(done)
    if not hasattr(student, "answers"):
        student = student.load()
    there = {(r["task"], r["number"]) for r in done}
    todo = [q for q in todo if q[:2] not in there]
    side = path.with_suffix(".part")
    side.write_text("".join(json.dumps(x, ensure_ascii=False) + "\n" for x in [head, *done]), encoding="utf-8")
    side.replace(path)  # without the half line that a kill may have left
    prompts = [student.prompt(e["question"].strip(), said[task]) for task, _, e in todo]
    with open(path, "a", encoding="utf-8") as f:
        from orcalab.progress import Progress
        with Progress(len(todo) + len(done), f"ask {name} ({system})") as bar:
            bar.resume(len(done))
            for n, a in student.answers(prompts, recipe.max_new_tokens, recipe.eval_batch):
                (task, i, e), (answer, ok) = todo[n], parse(a.text)
                done.append({"student": name, "system": system, "task": task, "number": i, "question": e["question"],
                             "gold": e["answer"], "text": a.text, "tokens": a.tokens, "reason": a.reason,
                             "answer": answer, "format_ok": ok, "right": bool(right(task, answer, e))})
                f.write(json.dumps(done[-1], ensure_ascii=False) + "\n")
                f.flush()
                bar.advance(1)
    return in_order(done)


def choose_strategies(student, name, questions, folder, recipe):
    """Try every candidate strategy of each family with a student, and choose one for each.

    The family's own is kept unless under another one the student gives right answers to so many more of the same questions that chance would do that in
    less than one of ten trials (McNemar); of several such, the one with most right answers, then the one with the shorter ones.

    Args:
        questions: {family: [entry]}; an entry has question and answer, and reasoning_gym's have metadata.

    Returns:
        {family: {"chosen", "own", "tried": {strategy: {"right", "questions", "tokens", "each", "p"}}}}; also in `<folder>/strategies.json`. The answers stay there too.

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
            t[s]["p"] = mcnemar(pairs.count((1, 0)), pairs.count((0, 1)))
        better = [s for s in t if t[s]["right"] > t[first]["right"] and t[s]["p"] < 0.1]
        out[f] = {"chosen": max(better or [first], key=lambda s: (t[s]["right"], -t[s]["tokens"])), "own": first, "tried": t}
    write_json(Path(folder) / "strategies.json", out)
    return out


class Lazy:
    """A student that is loaded only if there is something left to ask it."""

    def __init__(self, source, device="auto", dtype="auto", template=None):
        self.how, self.student = (str(source), device, dtype, template), None

    def digest(self):
        from orcalab.model import weights_digest
        return weights_digest(self.how[0])

    def load(self):
        from orcalab.generate import Student
        self.student = self.student or Student(*self.how)
        return self.student


def table(records):
    """Return {task: 0/1 array (seeds, questions)} of one student, or of one for each seed, under one message."""
    out = {}
    for r in sorted(records, key=lambda r: (r.get("seed", 0), r["number"])):
        out.setdefault(r["task"], {}).setdefault(r.get("seed", 0), []).append(float(r["right"]))
    return {t: np.array(list(v.values())) for t, v in sorted(out.items())}


def _resample(tables, draws=10_000, seed=0):
    """Bootstrap macro averages: questions drawn anew inside each task, and seeds, if there are several; the same for every table."""
    rng = np.random.default_rng(seed)
    total, seeds = [np.zeros((draws, len(t[next(iter(t))]))) for t in tables], 0
    for task in tables[0]:
        seeds, n = tables[0][task].shape
        picks = rng.integers(0, n, (draws, n))
        for t, table_ in zip(total, tables):
            t += np.stack([one[picks].mean(1) for one in table_[task]], 1) / len(tables[0])
    chosen = rng.integers(0, seeds, (draws, seeds)) if seeds > 1 else np.zeros((draws, 1), int)
    return [np.take_along_axis(t, chosen, 1).mean(1) for t in total]


def score(records):
    """Return macro accuracy over tasks with its 95 % bootstrap interval, and accuracy per task.

    Records that have a `seed` are those of several students, one for each seed, that answered the same questions: questions and seeds are drawn
    anew. Of few seeds that draws too narrow an interval where they differ much, so look at each seed, too.

    Returns:
        dict: macro, low, high, by_task, format_ok, tokens (mean new tokens), cut (share that hit
        max_new_tokens), questions.
    """
    by = table(records)
    (draws,) = _resample([by])
    low, high = np.percentile(draws, [2.5, 97.5])
    mean = lambda f: float(np.mean([f(r) for r in records]))
    return {"macro": float(np.mean([v.mean() for v in by.values()])), "low": float(low), "high": float(high),
            "by_task": {t: float(v.mean()) for t, v in by.items()}, "questions": len(records),
            "format_ok": mean(lambda r: r["format_ok"]), "tokens": mean(lambda r: r["tokens"]),
            "cut": mean(lambda r: r["reason"] == "length")}


def compare(a, b):
    """Compare two students (or messages) on the same questions: a minus b.

    The interval is a paired bootstrap: each draw takes the same questions for both, inside each task. The
    p value is McNemar's, exact: of the questions on which they differ, how lopsided is the split. With several seeds (see `score`) seeds are drawn, too,
    and there is no p: the answers of several seeds to one question are not independent.

    Returns:
        dict: macro (difference), low, high, only_a, only_b, p, by_task.

    Raises:
        ValueError: the two did not answer the same questions.
    """
    keys = [sorted((r["task"], r.get("seed", 0), r["number"], r["question"]) for r in x) for x in (a, b)]
    if keys[0] != keys[1]:
        raise ValueError("a paired comparison needs the same questions in both; these two answered different ones")
    ta, tb = table(a), table(b)
    da, db = _resample([ta, tb])
    low, high = np.percentile(da - db, [2.5, 97.5])
    flat_a, flat_b = (np.concatenate([v.ravel() for v in t.values()]) for t in (ta, tb))
    only_a, only_b = int(((flat_a > flat_b)).sum()), int((flat_b > flat_a).sum())
    return {"macro": float(np.mean([ta[t].mean() - tb[t].mean() for t in ta])), "low": float(low), "high": float(high),
            "only_a": only_a, "only_b": only_b, "p": mcnemar(only_a, only_b) if all(len(v) == 1 for v in ta.values()) else None,
            "by_task": {t: float(ta[t].mean() - tb[t].mean()) for t in ta}}


def mcnemar(only_a, only_b):
    """Return the exact two-sided p value of McNemar's test.

    >>> round(mcnemar(9, 1), 4)
    0.0215
    """
    from math import comb
    n, k = only_a + only_b, min(only_a, only_b)
    return min(1.0, 2 * sum(comb(n, i) for i in range(k + 1)) / 2**n) if n else 1.0


def read_lines(path):
    """Return the whole lines of a JSONL file; what a kill left after the last newline is no line.

    Bytes are split, not text: an answer may hold characters that str.splitlines takes for a line's end.
    """
    return [json.loads(x) for x in Path(path).read_bytes().split(b"\n")[:-1]]


def in_order(records):
    """Return records by task and number; a file has them as they ended."""
    return sorted(records, key=lambda r: (r["task"], r["number"]))


def read_answers(folder):
    """Return {(student, system): records} of every whole answers file in a folder; one that broke off is left out."""
    out = {}
    for path in sorted(Path(folder).glob("*.jsonl")):
        head, *records = read_lines(path) or [{}]
        if records and len(records) == head.get("questions", len(records)):
            out[records[0]["student"], records[0]["system"]] = in_order(records)
    return out


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


USED = [*STRATEGIES, "other"]


def unpack_records(packed):
    """Return what `of_runs` gives, without the texts, from the form in which benchmarks/ablation.json keeps it: a digit for each fact of an answer."""
    out = {}
    for student, system, seed, task, *columns in packed:
        out.setdefault((student, system), []).extend(
            {"student": student, "system": system, "seed": seed, "task": task, "number": n, "question": "", "right": right == "1", "format_ok": ok == "1",
             "reason": "length" if cut == "1" else "stop", "used": USED[int(used)], "tokens": tokens} for n, (right, ok, cut, used, tokens) in enumerate(zip(*columns)))
    return out


def results(folder, out):
    """Score every answers file of a folder and write results.json; return it."""
    scores = [{"student": s, "system": m, **score(r)} for (s, m), r in read_answers(folder).items()]
    write_json(out, {"scores": scores})
    return scores
