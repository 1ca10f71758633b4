"""evaluate.py: parsed, scored with the full mark alone, and compared on the same questions."""

import importlib.util
import json
import random
from dataclasses import replace
from itertools import product
from math import comb

import numpy as np
import pytest
from conftest import ROOT

from orcalab import evaluate, families, procedural, recipes, strategies
from orcalab.generate import Student


@pytest.mark.parametrize("text, answer, well_formed", [
    ("Final answer: 17", "17", True),
    ("12 + 5 = 17.\nFinal answer: 17", "17", True),
    ("Final answer: 3\nNo.\nFinal answer: 4 \n", "4", True),
    ("Final answer:", "", False),
    ("so it is 17\nFinal answer:   ", "", False),
    ("Final answer: Monday\nor so", "Monday\nor so", True),
    ("17", "17", True),
    (" Yes \n", "Yes", True),
    ("let me see\n17", "let me see\n17", False),
    ("final answer: 17", "final answer: 17", True),
    ("", "", False),
    (" \n ", "", False),
])
def test_parse(text, answer, well_formed):
    assert evaluate.parse(text) == (answer, well_formed)


@pytest.mark.parametrize("task", ["leg_counting", "chain_sum", "simple_equations", "calendar_arithmetic", "needle_haystack", "syllogism"])
def test_only_the_full_mark_is_right(task):
    _, entry = next(procedural.entries(recipes.get("smoke").task(task), 5))
    gold = entry["answer"]
    assert evaluate.right(task, gold, entry)
    for wrong in (f"1{gold}", f"{gold}0", f"the answer is {gold}, or not", "", "unknown"):
        assert not evaluate.right(task, wrong, entry)


def test_part_marks_exist_and_are_not_right():
    from reasoning_gym import get_score_answer_fn
    _, entry = next(procedural.entries(recipes.get("smoke").task("chain_sum"), 5))
    part = get_score_answer_fn("chain_sum")(f"1{entry['answer']}", entry)
    assert 0 < part < 1 and evaluate.right("chain_sum", f"1{entry['answer']}", entry) is False


# ------------------------------------------------------------------------------------------------- ask

class Counting(Student):
    """A student that notes how many prompts it was asked."""

    asked = 0

    def answers(self, prompts, *args, **kwargs):
        self.asked += len(prompts)
        return super().answers(prompts, *args, **kwargs)


@pytest.fixture
def asking(tmp_path, recipe):
    student = Counting("tiny-random", "cpu", "fp32")
    questions = procedural.held_out(recipe.tasks[:3], 3)

    def ask(system="cautious", **changes):
        before = student.asked
        records = evaluate.ask(student, "base", system, questions, tmp_path / "answers", replace(recipe, eval_batch=2, **changes))
        return records, student.asked - before
    ask.student, ask.questions, ask.path = student, questions, tmp_path / "answers" / "base.cautious.jsonl"
    return ask


def test_ask_notes_every_question_once(asking, recipe):
    records, asked = asking()
    assert asked == 9 and sorted((r["task"], r["number"]) for r in records) == sorted(product(asking.questions, range(3)))
    for r in records:
        entry = asking.questions[r["task"]][r["number"]]
        said = asking.student.ask(entry["question"].strip(), strategies.CAUTIOUS, recipe.max_new_tokens)
        assert (r["text"], r["tokens"], r["reason"]) == (said.text, said.tokens, said.reason)
        assert (r["question"], r["gold"], r["student"], r["system"]) == (entry["question"], entry["answer"], "base", "cautious")
        assert (r["answer"], r["format_ok"]) == evaluate.parse(r["text"]) and r["right"] is evaluate.right(r["task"], r["answer"], entry)
    assert evaluate.read_answers(asking.path.parent) == {("base", "cautious"): records}
    assert asking() == (records, 0)  # nothing is asked twice
    assert asking("step-by-step")[1] == 9


@pytest.mark.parametrize("cut", [0.5, "at a brace", "inside a character"])
def test_ask_goes_on_after_a_cut_off_file(asking, cut):
    records, _ = asking()
    head, *lines = asking.path.read_bytes().split(b"\n")
    if cut == 0.5:
        half = lines[4][: len(lines[4]) // 2]
    else:  # a text that ends the half line in a brace, or in the middle of a character
        half = '{"text": "{x}'.encode() if cut == "at a brace" else '{"text": "naï'.encode()[:-1]
    asking.path.write_bytes(b"\n".join([head, *lines[:4], half]))
    assert asking() == (records, 5)
    assert evaluate.read_answers(asking.path.parent) == {("base", "cautious"): records}


def test_other_settings_ask_again(asking):
    asking()
    before = asking.path.read_bytes()
    assert asking(max_new_tokens=5)[1] == 9
    assert asking(max_new_tokens=5)[1] == 0
    (kept,) = asking.path.parent.glob("*.before")
    assert kept.read_bytes() == before  # nothing that took minutes to answer is thrown away


def test_an_answers_file_that_broke_off_is_not_scored(asking):
    asking()
    head, *lines = asking.path.read_bytes().split(b"\n")
    asking.path.write_bytes(b"\n".join([head, *lines[:4], b""]))
    assert evaluate.read_answers(asking.path.parent) == {}


def test_any_character_in_an_answer_comes_back(tmp_path):
    line = {"student": "s", "system": "empty", "task": "t", "number": 0, "text": "a\u2028b\x85c\u2029d\x0be"}
    (tmp_path / "s.empty.jsonl").write_text("{}\n" + json.dumps(line, ensure_ascii=False) + "\n", encoding="utf-8")
    assert evaluate.read_answers(tmp_path) == {("s", "empty"): [line]}


def test_a_lazy_student_is_known_by_the_same_digest(asking, recipe, tmp_path):
    records, _ = asking()
    lazy = evaluate.Lazy("tiny-random", "cpu", "fp32")
    assert evaluate.ask(lazy, "base", "cautious", asking.questions, tmp_path / "answers", recipe) == records
    assert isinstance(lazy.load(), Student)


# ---------------------------------------------------------------------------------------------- scores

def made(rights, task="t", student="a", tokens=5, reason="stop"):
    return [{"student": student, "system": "cautious", "task": task, "number": i, "question": f"{task} {i}", "right": bool(r),
             "format_ok": bool(r), "tokens": tokens, "reason": reason} for i, r in enumerate(rights)]


def binomial_interval(n, right):
    """The bootstrap of a share is binomial: its exact 2.5 and 97.5 percentiles."""
    p, total, cuts = right / n, 0.0, []
    for k in range(n + 1):
        total += comb(n, k) * p**k * (1 - p) ** (n - k)
        cuts += [k / n] if total >= (0.025, 0.975, 2)[len(cuts)] else []
    return cuts


@pytest.mark.parametrize("n, right", [(50, 30), (50, 3), (200, 100)])
def test_the_interval_of_one_task_is_the_binomial_one(n, right):
    s = evaluate.score(made([1] * right + [0] * (n - right)))
    low, high = binomial_interval(n, right)
    assert s["macro"] == pytest.approx(right / n) and abs(s["low"] - low) <= 1.01 / n and abs(s["high"] - high) <= 1.01 / n


def naive_bootstrap(tables, draws=4000, seed=1):
    rng, out = random.Random(seed), []
    for _ in range(draws):
        picks = {t: [rng.randrange(len(v)) for _ in v] for t, v in tables[0].items()}
        out.append([sum(sum(x[t][i] for i in picks[t]) / len(picks[t]) for t in picks) / len(picks) for x in tables])
    return out


def test_score_and_compare_against_a_naive_bootstrap():
    rng = random.Random(0)
    a = {t: [int(rng.random() < p) for _ in range(n)] for t, p, n in (("x", 0.8, 40), ("y", 0.3, 25))}
    b = {t: [int(v and rng.random() < 0.7) for v in vs] for t, vs in a.items()}
    ra, rb = ([r for t, v in x.items() for r in made(v, t)] for x in (a, b))
    rng.shuffle(ra)  # the order in the file is not the order of the questions
    drawn = np.array(naive_bootstrap([a, b]))
    mean = lambda x: sum(sum(v) / len(v) for v in x.values()) / len(x)
    s, c = evaluate.score(ra), evaluate.compare(ra, rb)
    assert s["macro"] == pytest.approx(mean(a)) and s["by_task"] == {t: pytest.approx(sum(v) / len(v)) for t, v in a.items()}
    assert [s["low"], s["high"]] == pytest.approx(np.percentile(drawn[:, 0], [2.5, 97.5]).tolist(), abs=0.012)
    assert [c["low"], c["high"]] == pytest.approx(np.percentile(drawn[:, 0] - drawn[:, 1], [2.5, 97.5]).tolist(), abs=0.012)
    assert c["macro"] == pytest.approx(mean(a) - mean(b)) and c["only_b"] == 0
    assert c["only_a"] == sum(x > y for t in a for x, y in zip(a[t], b[t])) and c["p"] == evaluate.mcnemar(c["only_a"], 0)
    back = evaluate.compare(rb, ra)
    assert (back["macro"], back["low"], back["high"], back["only_b"]) == (-c["macro"], -c["high"], -c["low"], c["only_a"])


def test_a_mean_over_tasks_weighs_tasks_alike():
    s = evaluate.score(made([1] * 10, "easy") + made([0] * 90, "hard", tokens=15, reason="length"))
    assert s["macro"] == 0.5 and s["by_task"] == {"easy": 1.0, "hard": 0.0} and s["questions"] == 100
    assert (s["format_ok"], s["tokens"], s["cut"], s["low"], s["high"]) == (0.1, 14.0, 0.9, 0.5, 0.5)


def test_nobody_beats_himself():
    c = evaluate.compare(made([1, 0, 1]), made([1, 0, 1], student="b"))
    assert (c["macro"], c["low"], c["high"], c["only_a"], c["only_b"], c["p"]) == (0, 0, 0, 0, 0, 1.0)


def test_other_questions_are_not_compared():
    other = made([1, 0, 1])
    other[1]["question"] = "another"
    for b in (other, made([1, 0]), made([1, 0, 1], "u")):
        with pytest.raises(ValueError, match="needs the same questions in both; these two answered different ones"):
            evaluate.compare(made([1, 0, 1]), b)


def test_mcnemar_against_every_way_to_flip_the_coins():
    for a, b in product(range(6), range(6)):
        flips = [abs(2 * sum(f) - (a + b)) >= abs(a - b) for f in product((0, 1), repeat=a + b)]
        assert evaluate.mcnemar(a, b) == pytest.approx(sum(flips) / len(flips))
    assert evaluate.mcnemar(30, 10) == pytest.approx(0.0022, abs=5e-5)


def test_results(tmp_path):
    records = made([1, 0, 1, 1])
    (tmp_path / "a.cautious.jsonl").write_text("{}\n" + "".join(json.dumps(r) + "\n" for r in records))
    (scores,) = evaluate.results(tmp_path, tmp_path / "results.json")
    assert scores["macro"] == 0.75 and json.loads((tmp_path / "results.json").read_text()) == {"scores": [scores]}


# ------------------------------------------------------------------------------- several seeds, several messages

def test_with_several_seeds_both_questions_and_seeds_are_drawn():
    rng = random.Random(1)
    runs = [[int(rng.random() < p) for _ in range(40)] for p in (0.9, 0.5, 0.1)]
    several = [{**r, "seed": s} for s, v in enumerate(runs) for r in made(v)]
    one = evaluate.score([{**r, "seed": 7} for r in made(runs[0])])
    assert one == evaluate.score(made(runs[0]))  # one seed is as none
    drawn = []
    for _ in range(4000):
        picks = [rng.randrange(40) for _ in range(40)]
        drawn.append(np.mean([np.mean([runs[s][i] for i in picks]) for s in (rng.randrange(3) for _ in range(3))]))
    found = evaluate.score(several)
    assert found["macro"] == pytest.approx(np.mean(runs)) and found["questions"] == 120
    assert [found["low"], found["high"]] == pytest.approx(np.percentile(drawn, [2.5, 97.5]).tolist(), abs=0.03)
    assert evaluate.compare(several, several)["p"] is None
    worse = [{**r, "right": r["right"] and r["number"] % 2 == 0} for r in several]
    c = evaluate.compare(several, worse)  # the seeds drawn are the same on both sides, so a difference hangs less on them
    assert c["high"] - c["low"] < found["high"] - found["low"] and c["macro"] == pytest.approx(found["macro"] - evaluate.score(worse)["macro"])
    with pytest.raises(ValueError, match="needs the same questions in both"):
        evaluate.compare(several, several[:80])


def test_right_and_wrong_messages_are_those_of_the_task(asking, recipe):
    assert evaluate.message_to("right", recipe, "chain_sum") == strategies.STRATEGIES["step-by-step"]
    assert evaluate.message_to("wrong", recipe, "chain_sum") == strategies.STRATEGIES["direct-answer"]
    assert evaluate.message_to("right", recipe, "needle_haystack") == strategies.STRATEGIES["extract-generate"]
    assert evaluate.message_to("wrong", recipe, "needle_haystack") == evaluate.message_to("wrong", recipe, "syllogism") == strategies.STRATEGIES["step-by-step"]
    assert evaluate.message_to("cautious", recipe, "chain_sum") == strategies.CAUTIOUS
    records, asked = asking("right")
    for r in records:
        said = asking.student.ask(r["question"].strip(), strategies.STRATEGIES[recipe.task(r["task"]).strategy], recipe.max_new_tokens)
        assert r["text"] == said.text and r["system"] == "right"
    assert asked == 9 and asking("right")[1] == 0 and asking("wrong")[1] == 9


def test_runs_are_read_packed_and_unpacked(asking, recipe, tmp_path):
    folders = []
    for seed in (3, 5):
        folder = tmp_path / f"run-{seed}"
        (folder / "stage").mkdir(parents=True)
        (folder / "stage" / "config.json").write_text(json.dumps({"seed": seed}))
        for system in ("cautious", "empty"):
            evaluate.ask(asking.student, "s", system, asking.questions, folder / "answers", recipe)
        folders.append(folder)
    found = evaluate.of_runs(folders)
    assert set(found) == {("s", "cautious"), ("s", "empty")} and sorted({r["seed"] for r in found["s", "empty"]}) == [3, 5]
    assert all(r["used"] == procedural.strategy_of(r["text"]) for r in found["s", "empty"])
    spec = importlib.util.spec_from_file_location("ablation", ROOT / "benchmarks" / "ablation.py")
    ablation = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(ablation)
    again = evaluate.unpack_records(json.loads(json.dumps(ablation.pack_records(found))))
    keys = ("student", "system", "seed", "task", "number", "right", "format_ok", "reason", "used", "tokens")
    short = lambda rs: sorted([r[k] for k in keys] for r in rs)
    assert {k: short(v) for k, v in again.items()} == {k: short(v) for k, v in found.items()}
    assert evaluate.score(again["s", "cautious"]) == evaluate.score(found["s", "cautious"])
    with pytest.raises(ValueError, match="no whole answers file in no folder"):
        evaluate.of_runs([])
    with pytest.raises(ValueError, match="run-3 is a second run of seed 3: each has to be of another"):
        evaluate.of_runs([folders[0], folders[0]])
    with pytest.raises(ValueError, match="answers is no run's folder: no stage in it has a config.json"):
        evaluate.of_runs([folders[0] / "answers"])


# -------------------------------------------------------------------------------- strategies chosen by the student

class Talker:
    """A student that answers what a function of message and question says: what is tested is the choosing, not a model."""

    def __init__(self, says):
        self.says, self.origin = says, {"digest": "talker"}

    def prompt(self, question, system):
        return system, question

    def answers(self, prompts, *_):
        from orcalab.generate import Answer
        return enumerate(Answer(t, len(t), "stop", ()) for t in (self.says(*p) for p in prompts))


def test_strategies_are_chosen_by_how_a_student_does(tmp_path, recipe):
    sums, facts = families.family_of("gsm8k"), families.family_of("arc_easy")
    other = sums.others[0]
    questions = {sums.name: [{"question": f"{n} + 1?", "answer": str(n + 1)} for n in range(8)], facts.name: [{"question": f"is {n} even?", "answer": "yes"} for n in range(8)]}

    def says(system, question):
        if "even" in question:
            return "Final answer: yes"
        n = int(question.split()[0])
        good = system == families.instruction(sums, other) or n == 0  # under the other strategy all are right, under its own one in eight
        return f"Final answer: {n + 1 if good else 99}"
    found = evaluate.choose_strategies(Talker(says), "talker", questions, tmp_path, recipe)
    assert found[sums.name]["chosen"] == other and found[sums.name]["own"] == sums.strategy
    assert {s: t["right"] for s, t in found[sums.name]["tried"].items()} == {s: 8 if s == other else 1 for s in (sums.strategy, *sums.others)}
    assert found[facts.name]["chosen"] == facts.strategy and {t["right"] for t in found[facts.name]["tried"].values()} == {8}  # as good: its own is kept
    assert json.loads((tmp_path / "strategies.json").read_text()) == found
    assert found[sums.name]["tried"][other]["p"] == evaluate.mcnemar(7, 0) < 0.1
    few = {f: q[:4] for f, q in questions.items()}
    assert evaluate.choose_strategies(Talker(says), "talker", few, tmp_path / "few", recipe)[sums.name]["chosen"] == sums.strategy  # three more of four may be luck
    silent = Talker(lambda *_: pytest.fail("what was answered is not asked again"))
    assert evaluate.choose_strategies(silent, "talker", questions, tmp_path, recipe) == found


def test_an_answer_without_a_scorer_has_to_state_the_gold_one():
    entry = {"question": "2 + 2", "answer": "4"}
    assert evaluate.right("", "4", entry) and evaluate.right("", "4 apples", entry) and not evaluate.right("", "14", entry) and not evaluate.right("", "perhaps", entry)
