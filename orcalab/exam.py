"""The paper's benchmarks, asked of students: who answers what, what came out, and what the numbers stand on.

Paper: Orca 2 (arXiv:2311.11045), "Experimental Setup": zero-shot, greedy, under an empty system message, and for Orca 2 under the cautious one, too.
"""

import json
import re
from array import array
from collections import Counter
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import combinations
from pathlib import Path
from statistics import fmean as mean

from orcalab import __version__, endpoint, evaluate, harness, hygiene, judge as judges, parser, procedural, scores, tasks
from orcalab.config import check, choose, listed, read_json, write_json
from orcalab.prepared import open_prepared
from orcalab.strategies import STRATEGIES, message

BOTH = "empty,cautious"  # the paper's two system messages


@dataclass(frozen=True)
class Exam:
    """Which benchmarks `orcalab evaluate` asks, and of whom."""

    tasks: str = ""  # benchmarks, their groups, or single tasks such as bbh/navigate, joined by commas, or paper for all; empty is the recipe's own questions
    model: str = ""  # models to ask in place of the recipe's students, names, hub ids or folders joined by commas
    students: str = ""  # which of the recipe's students to ask, base or stages joined by commas; empty is base and the last that explains
    shard: str = ""  # the share of the work that is done here, such as 2/4; without it, what is left, and the results
    hint: str = ""  # a line to put behind each question, such as one that asks for a final answer
    harness: str = ""  # tasks of EleutherAI's harness to run with these students instead, joined by commas
    judge: str = ""  # model that judges what no parser can (MT-Bench, grounded answers), at the endpoint --url

    def __post_init__(self):
        check(self)
        if self.shard and not (re.fullmatch(r"[1-9]\d*/[1-9]\d*", self.shard) and self.part[0] <= self.part[1]):
            raise ValueError(f"shard is the number of a share and how many there are, such as 2/4; got {self.shard!r}")

    @property
    def part(self):
        """(number of the share, how many there are)."""
        return tuple(map(int, self.shard.split("/"))) if self.shard else (1, 1)


def students(rec, exam):
    """Return {name: where its model is} of those who are asked.

    Raises:  ValueError: a student that the recipe does not have, or that is not trained yet; two models of one name.
    """
    if exam.model and exam.students:
        raise ValueError(f"either --model or --students: who is asked, {exam.model} or {exam.students}?")
    if gone := next((m for m in listed(exam.model) if m[0] in "./~" and not Path(m).is_dir()), None):
        raise ValueError(f"there is no folder {gone}: --model takes the folder of a model or of a stage, a name or a hub id")
    if exam.model:
        found = {re.sub(r"[^\w-]+", "_", [p for p in Path(m).parts if p not in ("model", "/")][-1]): m for m in listed(exam.model)}
        if len(found) < len(listed(exam.model)):
            raise ValueError(f"{exam.model}: two of these have one name, by which their answers are kept; ask them with an out of their own")
        return found
    names = listed(exam.students) or ["base", *[s.name for s in rec.stages if s.answers == "explained" and s.finished][-1:]]
    for name in names:
        if choose(name, ["base", *(s.name for s in rec.stages)], "student") != "base" and name not in rec.finished:
            raise ValueError(f"{name} is not trained yet: no {rec.stage(name).folder / 'model'}")
    return {name: rec.base if name == "base" else str(rec.stage(name).folder / "model") for name in names}


def template_of(rec, template=None):
    """Return the template that the base is asked in: the one named, else that of its students."""
    return template or ([read_json(s.folder / "config.json")["template"] for s in rec.stages if s.finished] or [rec.stages[0].template])[0]


def ask_own(rec, exam, template=None):
    """Let every trained student of a recipe answer its held-out questions under its messages; return the folder of the answers."""
    if refused := [k for k in ("model", "students", "hint", "judge") if getattr(exam, k)]:
        raise ValueError(f"{refused[0]} goes with benchmarks: name them with --tasks, such as --tasks bbh, or paper for all")
    questions, root = procedural.held_out(rec.tasks, rec.questions), Path(rec.out) / "answers"
    for word in listed(rec.messages):
        evaluate.message_to(word, rec, rec.tasks[0].name)  # a misspelt one is said before hours of asking
    if not rec.finished:
        print(f"no student is trained in {rec.out}, so the base model alone is asked; first: orcalab train --recipe {rec.name} --out {rec.out}", flush=True)
    for name, messages in rec.students.items():
        if name == "base" or name in rec.finished:
            student = evaluate.Lazy(rec.base if name == "base" else rec.stage(name).folder / "model", rec.stages[0].device, rec.stages[0].dtype, template_of(rec, template))
            for system in messages:
                evaluate.ask(student, name, system, questions, root, rec, shard=exam.part)
    if not exam.shard:
        write_json(Path(rec.out) / "results.json", summary(root, [(n, m) for n, said in rec.students.items() for m in said]))
    return root


def ask(rec, exam, data="", per_task=0, template=None, judge=None):
    """Let each student answer the questions of each benchmark under each of the recipe's messages; return the folder, `<out>/benchmarks`, and {benchmark: [(student, message)]}.

    Args:    rec: a config.Recipe; `messages`, `max_new_tokens`, `eval_batch` and `out` are used.
             data: folder that holds a folder for each benchmark; empty is the hub.  per_task: so many questions of each task, 0 for all.
             template: that of the base model, None for that of its students.  judge: an endpoint.Teacher, if `exam` names one.
    """
    said, who, root = listed(rec.messages), students(rec, exam), Path(rec.out) / "benchmarks"
    for word in said:
        message(word)  # a misspelt one is said before hours of asking
    questions = tasks.questions(exam.tasks, data, per_task)
    is_open = any(q["kind"] == "open" for qs in questions.values() for q in qs[:1])
    if exam.judge and not is_open:
        raise ValueError(f"--judge is for answers that no parser can mark (mt_bench, aci_bench, ms_marco, qmsum); {exam.tasks} has none")
    if is_open and not exam.judge:
        print("open answers are among these: they are kept, and marked once the same command is given with --judge MODEL (and --url)", flush=True)
    if exam.judge and not exam.shard:
        endpoint.knock(judge)
        endpoint.client_of(judge, endpoint.Pace()).close()  # no key is said now, not after hours of asking
    if any(q.get("references") and not q.get("turns") for qs in questions.values() for q in qs[:1]) and not (find_spec("sacrebleu") and find_spec("rouge_score")):
        print("BLEU and ROUGE will be left out; to have them: pip install -c constraints.txt -e '.[eval]'", flush=True)
    if exam.hint:
        questions = {t: [{**q, "question": f"{q['question']}\n{exam.hint}"} for q in qs] for t, qs in questions.items()}
    benchmarks = {t.split("/")[0]: {} for t in questions}
    for t, qs in questions.items():
        benchmarks[t.split("/")[0]][t] = qs
    print(f"{sum(map(len, questions.values())):,} questions of {len(questions)} tasks, {len(said)} system messages, {len(who)} students: {', '.join(who)}" + (f"; share {exam.shard} of that" if exam.shard else ""), flush=True)
    sets = [(name, system, b) for name in who for system in said for b in benchmarks]
    for n, (name, system, b) in enumerate(sets):
        if not n or name != sets[n - 1][0]:
            student = evaluate.Lazy(who[name], rec.stages[0].device, rec.stages[0].dtype, template_of(rec, template))
        evaluate.ask(student, name, system, benchmarks[b], root / b, rec, shard=exam.part, what=f"[{n + 1}/{len(sets)}] {b}: {name}, {system}")
    return root, {b: [(n, s) for n in who for s in said] for b in benchmarks}


def overlap(questions, folders):
    """Return, for each task, how many of its questions share a run of 13 words with rows of prepared folders, and with rows of which tasks (hygiene.report).

    Args:    questions: {task: [text]}.  folders: prepared folders, those that a student was trained on.
    """
    found, hits = hygiene.Overlap(questions), Counter()
    for rows in (open_prepared(f).rows for f in folders):
        for n in range(0, len(rows), 1000):
            some = [rows[i] for i in range(n, min(n + 1000, len(rows)))]
            hits.update((*which, r.task) for r, shared in zip(some, found.of_rows(some)) for which in shared)
    return hygiene.report(hits, {t: len(qs) for t, qs in questions.items()})


def trained_on(rec, name):
    """Return the prepared folders that a student of the recipe was trained on, its earlier stages' among them."""
    out = []
    while name != "base":
        cfg = rec.stage(name)
        out.append(Path(rec.out) / "prepared" / read_json(cfg.folder / "config.json")["seal"]["data"])
        name = cfg.start
    return out


def summary(folder, only=None, odd=None):
    """Score every whole set of answers in a folder, and compare them; flat in memory, since each answer is read once, and a few bytes of it are kept.

    Args:    only: (student, system) pairs, in order; all that are whole if none are named.
             odd: a file for the answers that AGIEval's own rule reads otherwise, a line of JSON each.
    Returns: dict. `scores`: for each student and message what scores.score gives (nothing on accuracy for open answers, which `judged` is for), the `forms` of the answers by
             task (procedural.strategy_of), accuracy by AGIEval's `official` rule and by `ours` over the `lettered` questions, `of_read` (of the answers that could be read),
             that of `chance`, and the `settings`.  `versus`: the pairs of one student or under one message that answered the same questions, `a` minus `b` (scores.versus).
             `regret`: of each student asked under several strategies (scores.regret).
    """
    found, scored, kept = evaluate.stored(folder), [], {}
    for who in [who for who in only or sorted(found) if who in found]:
        told, luck, forms = Counter(), {}, {}

        def heard():
            for r in found[who]:
                forms.setdefault(r["task"], Counter())[procedural.strategy_of(r["text"])] += 1
                luck.setdefault(r["task"], array("f")).append(1 / len(r["options"]) if r.get("options") else 0)
                told.update(open=r.get("kind") == "open", read=bool(r["format_ok"]), right=bool(r["right"]))
                if r.get("labels"):
                    official = parser.first_capital(r["text"], r["labels"])
                    told.update(lettered=1, official=official in (r["gold"], *r.get("golds", ())), ours=r["right"])
                    if odd and official != r["answer"]:
                        odd.write(json.dumps({**{k: r[k] for k in ("student", "system", "task", "number", "gold", "answer", "text")}, "official": official}, ensure_ascii=False) + "\n")
                yield r
        kept[who] = scores.gather(heard())
        made, share = scores.score(kept[who]), lambda k: told[k] / told["lettered"] if told["lettered"] else None
        if told["open"]:
            made |= dict.fromkeys(("macro", "low", "high", "tasks_low", "tasks_high", "by_task", "intervals"))
            del kept[who]
        scored.append({"student": who[0], "system": who[1], **made, "forms": forms, "lettered": told["lettered"], "ours": share("ours"), "official": share("official"),
                       "of_read": told["right"] / told["read"] if told["read"] else None, "settings": found[who].head, "chance": mean(mean(of) for of in luck.values())})
    asked = lambda who: found[who].head.get("asked")
    pairs = [(a, b) for a, b in combinations(kept, 2) if (a[0] == b[0] or a[1] == b[1]) and asked(a) == asked(b)]
    regret = {}
    for (student, system) in kept:
        told = {m: kept[s, m] for s, m in kept if s == student and m in STRATEGIES and asked((s, m)) == asked((student, system))}
        if system == "cautious" and len(told) > 1:
            try:
                regret[student] = scores.regret(told, kept[student, system])
            except ValueError as e:  # too few questions that share no passage
                print(f"{folder}: no regret for {student}: {e}")
    return {"scores": scored, "versus": [{"a": list(a), "b": list(b), **c} for (a, b), c in scores.versus(kept, pairs).items()], "regret": regret}


def judged(folder, only, judge):
    """Return what no parser can say of open answers, {who: {"overlap": BLEU and ROUGE against references, "grounded" or "marks": a judge's verdicts, each with its score}, "a against b": judge.pairs}.

    Empty answers, and those to questions that were too long, are judged by nobody: `left_out` counts them. What cannot be had stands as `why`.

    Args:    only: (student, system) pairs.  judge: an endpoint.Teacher; one without a model is not asked, and the judge's parts are missing.
    """
    answers = {who: list(of) for who, of in evaluate.stored(folder).items() if who in only and next(iter(of)).get("kind") == "open"}
    found = {who: said for who, of in answers.items() if (said := [r for r in of if r["text"].strip()])}
    out, asks = {", ".join(who): {"left_out": len(of) - len(found.get(who, ()))} for who, of in answers.items()}, bool(judge and judge.model)

    def tell(who, name, way, *records):
        try:
            marked, said = way(*records)
            valued = [r for r in marked if r["value"] is not None]
            out.setdefault(who, {})[name] = {**said, "score": scores.score(valued) if valued else None}
        except ValueError as e:
            out.setdefault(who, {})[name] = {"why": str(e)}
    for who, said in found.items():
        if (rich := [r for r in said if r.get("references")]) and not said[0].get("turns"):
            tell(", ".join(who), "overlap", judges.overlap, rich)
        if asks:
            name, way = ("grounded", judges.grounded) if all(r.get("grounds") for r in said) else ("marks", judges.marks)
            tell(", ".join(who), name, lambda records: way(records, judge, Path(folder) / "judge"), said)
    for a, b in combinations(found, 2):
        same = {(r["task"], r["number"], r["question"]) for r in found[a]} & {(r["task"], r["number"], r["question"]) for r in found[b]}
        both = [[r for r in found[x] if (r["task"], r["number"], r["question"]) in same] for x in (a, b)]
        if asks and a[1] == b[1] and same and not both[0][0].get("grounds"):  # two students under one message
            tell(f"{', '.join(a)} against {', '.join(b)}", "pairs", lambda x, y: judges.pairs(x, y, judge, Path(folder) / "judge"), *both)
    return out


def results(root, sets, rec=None, judge=None):
    """Score what was asked, {benchmark: [(student, message)]}, and nothing else that lies in the folder; write `<root>/results.json`, and return what it holds; `disagreements.jsonl` lists what AGIEval's own rule reads otherwise.

    Args:    rec: the recipe whose students are among those asked; what they were trained on is held against the questions.
             judge: an endpoint.Teacher for open answers, None for none.
    Returns: dict: `scores`, as in `summary`, each with its `benchmark`; `versus` and `regret` by benchmark; `judged`, for open answers, by benchmark;
             `overlap`: {student: {task: hygiene.report's}}.
    """
    root, made, trained = Path(root), {"version": __version__, "scores": [], "versus": {}, "regret": {}, "judged": {}, "overlap": {}}, [s.name for s in rec.stages if s.finished] if rec else []
    with open(root / "disagreements.jsonl", "w", encoding="utf-8") as odd:
        for b, who in sets.items():
            one = summary(root / b, who, odd)
            made["scores"] += [{"benchmark": b, **s} for s in one["scores"]]
            made["versus"][b], made["regret"][b] = one["versus"], one["regret"]
    for name in (n for n in trained if any(s["student"] == n for s in made["scores"])):
        asked = {}
        for answers in (a for b, who in sets.items() for w, a in evaluate.stored(root / b).items() if w in who and w[0] == name):
            for r in answers:
                asked.setdefault(r["task"], {})[r["number"]] = r["question"]
        try:
            made["overlap"][name] = overlap({t: list(qs.values()) for t, qs in asked.items()}, trained_on(rec, name))
        except (ValueError, OSError) as e:  # a run that was moved without its rows
            print(f"what {name} was trained on is not held against the questions: {e}", flush=True)
    write_json(root / "results.json", made)  # before anybody is paid for judging
    made["judged"] = {b: judged(root / b, who, judge) for b, who in sets.items()}
    write_json(root / "results.json", made)
    return made


def in_harness(rec, exam, limit=0):
    """Ask tasks of EleutherAI's harness of each student under each message; print the line that does the same without us, and the scores, and keep all of it in `<out>/harness`."""
    who, said = students(rec, exam), listed(rec.messages)
    if exam.tasks:
        raise ValueError("either --tasks (benchmarks, asked by us) or --harness (tasks of lm-eval's): one command asks one of them")
    for word in said:
        message(word)
    for name, system in ((n, s) for n in who for s in said):
        how = {"tasks": exam.harness, "system": system, "limit": limit, "max_new_tokens": rec.max_new_tokens, "batch_size": rec.eval_batch, "device": rec.stages[0].device, "dtype": rec.stages[0].dtype}
        try:
            print(f"{name}, {system}, by lm-eval alone: {harness.command(who[name], **how)}", flush=True)
        except ValueError as e:  # a base model that is no folder of ours
            print(f"{name}, {system}: {e}", flush=True)
        try:
            found = harness.run(who[name], **how)
        except OSError as e:
            raise ValueError(f"lm-eval takes the rows of its tasks from the hub, whatever --data says, and could not have those of {exam.harness} ({e}); harness.local writes a task of its kind on a file") from None
        path = Path(rec.out) / "harness" / f"{name}.{system}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({k: found[k] for k in ("results", "samples", "n-samples") if k in found}, indent=1, default=str, ensure_ascii=False), encoding="utf-8")
        for task, values in found["results"].items():
            print(f"  {task}: " + ", ".join(f"{k} {v:.4f}" for k, v in values.items() if isinstance(v, float)), flush=True)
        print(f"  {path}", flush=True)
