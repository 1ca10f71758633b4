"""Held-out questions, answers, scores with intervals, and paired comparisons on the same questions."""

import json
from pathlib import Path

import numpy as np

from orcalab.config import digest, write_json
from orcalab.strategies import FINAL, message


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

    Its scorers give part marks, and for a substring too ("14" for "4"), so anything below 1 is wrong.
    """
    import reasoning_gym
    return reasoning_gym.get_score_answer_fn(task_name)(answer, entry) == 1.0


def ask(student, name, system, questions, folder, recipe, batch=None):
    """Let a student answer every held-out question under one system message; return the records.

    Answers are appended to `<folder>/<name>.<system>.jsonl` batch by batch, so a kill costs one batch and
    the same call goes on from there.

    Args:
        student: a generate.Student, or a function that makes one (called only if needed).
        name: what to call the student.  system: a strategy, "cautious", "empty".
        questions: {task name: [reasoning_gym entry]}.
        recipe: a config.Recipe; max_new_tokens and eval_batch are used.

    Returns:
        list of dicts: student, system, task, number, question, gold, text, tokens, reason, answer,
        format_ok, right.
    """
    path = Path(folder) / f"{name}.{system}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    todo = [(t, i, e) for t, entries in questions.items() for i, e in enumerate(entries)]
    source = student.origin["digest"] if hasattr(student, "origin") else student.digest()
    head = {"questions": len(todo), "asked": digest([[t, i, e["question"]] for t, i, e in todo]), "student": source,
            "max_new_tokens": recipe.max_new_tokens, "message": digest(message(system))}
    done = []
    if path.exists():
        lines = read_lines(path)
        if lines and lines[0] == head:
            done = lines[1:]
        else:  # other questions, another student or another limit: what was answered before is kept
            path.replace(path.with_suffix(f".{digest(lines[:1])}.before"))
    if len(done) == len(todo):
        return done
    if not hasattr(student, "answer"):
        student = student.load()
    size = batch or recipe.eval_batch
    # longest questions first, so that those answered side by side are alike
    todo.sort(key=lambda q: (-len(q[2]["question"]), q[0], q[1]))
    side = path.with_suffix(".part")
    side.write_text("".join(json.dumps(x, ensure_ascii=False) + "\n" for x in [head, *done]), encoding="utf-8")
    side.replace(path)  # without the half line that a kill may have left
    with open(path, "a", encoding="utf-8") as f:
        from orcalab.progress import Progress
        with Progress(len(todo), f"ask {name} ({system})") as bar:
            bar.resume(len(done))
            for at in range(len(done), len(todo), size):
                part = todo[at : at + size]
                prompts = [student.prompt(e["question"].strip(), message(system)) for _, _, e in part]
                for (task, i, e), a in zip(part, student.answer(prompts, recipe.max_new_tokens, size)):
                    answer, ok = parse(a.text)
                    done.append({"student": name, "system": system, "task": task, "number": i, "question": e["question"],
                                 "gold": e["answer"], "text": a.text, "tokens": a.tokens, "reason": a.reason,
                                 "answer": answer, "format_ok": ok, "right": bool(right(task, answer, e))})
                    f.write(json.dumps(done[-1], ensure_ascii=False) + "\n")
                f.flush()
                bar.advance(len(part))
    return done


class Lazy:
    """A student that is loaded only if there is something left to ask it."""

    def __init__(self, source, device="auto", dtype="auto", template=None):
        self.how = (str(source), device, dtype, template)

    def digest(self):
        from orcalab.model import weights_digest
        return weights_digest(self.how[0])

    def load(self):
        from orcalab.generate import Student
        return Student(*self.how)


def table(records):
    """Return {task: 0/1 array in question order} of one student under one message."""
    out = {}
    for r in sorted(records, key=lambda r: r["number"]):
        out.setdefault(r["task"], []).append(float(r["right"]))
    return {t: np.array(v) for t, v in sorted(out.items())}


def _resample(tables, draws=10_000, seed=0):
    """Bootstrap macro averages: questions drawn anew inside each task, the same for every table."""
    rng = np.random.default_rng(seed)
    total = [np.zeros(draws) for _ in tables]
    for task in tables[0]:
        n = len(tables[0][task])
        picks = rng.integers(0, n, (draws, n))
        for t, table_ in zip(total, tables):
            t += table_[task][picks].mean(1) / len(tables[0])
    return total


def score(records):
    """Return macro accuracy over tasks with its 95 % bootstrap interval, and accuracy per task.

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
    p value is McNemar's, exact: of the questions on which they differ, how lopsided is the split.

    Returns:
        dict: macro (difference), low, high, only_a, only_b, p, by_task.

    Raises:
        ValueError: the two did not answer the same questions.
    """
    keys = [[(r["task"], r["number"], r["question"]) for r in sorted(x, key=lambda r: (r["task"], r["number"]))] for x in (a, b)]
    if keys[0] != keys[1]:
        raise ValueError("a paired comparison needs the same questions in both; these two answered different ones")
    ta, tb = table(a), table(b)
    da, db = _resample([ta, tb])
    low, high = np.percentile(da - db, [2.5, 97.5])
    flat_a, flat_b = (np.concatenate(list(t.values())) for t in (ta, tb))
    only_a, only_b = int(((flat_a > flat_b)).sum()), int((flat_b > flat_a).sum())
    return {"macro": float(np.mean([ta[t].mean() - tb[t].mean() for t in ta])), "low": float(low), "high": float(high),
            "only_a": only_a, "only_b": only_b, "p": mcnemar(only_a, only_b),
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


def read_answers(folder):
    """Return {(student, system): records} of every whole answers file in a folder; one that broke off is left out."""
    out = {}
    for path in sorted(Path(folder).glob("*.jsonl")):
        head, *records = read_lines(path) or [{}]
        if records and len(records) == head.get("questions", len(records)):
            out[records[0]["student"], records[0]["system"]] = records
    return out


def results(folder, out):
    """Score every answers file of a folder and write results.json; return it."""
    scores = [{"student": s, "system": m, **score(r)} for (s, m), r in read_answers(folder).items()]
    write_json(out, {"scores": scores})
    return scores
