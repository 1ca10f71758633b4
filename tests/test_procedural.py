"""procedural.py: every worked answer is right, step by step; what is asked later was never taught."""

import re
from datetime import date, timedelta
from fractions import Fraction
from itertools import islice
from random import Random

import pytest

from orcalab import corpus, data, evaluate, procedural, recipes, strategies
from orcalab.config import Config, Recipe, Task

TASKS = recipes.TASKS
EVERY = list({t.name: t for name in recipes.RECIPES for t in recipes.get(name).tasks}.values())  # those of other recipes, too
EXPLAINED = [t for t in EVERY if t.strategy != "direct-answer"]


@pytest.fixture(scope="module")
def taught():
    """300 rows of each task, with the entries they were made from."""
    out = {}
    for task in EVERY:
        pairs = islice(procedural.entries(task, 1_000_000), 300)
        out[task.name] = [(e, procedural.row(task, i, e, 1_000_000)) for i, e in pairs]
    return out


@pytest.mark.parametrize("task", EVERY, ids=lambda t: t.name)
def test_every_worked_answer_ends_in_the_gold_answer_and_scores_right(task, taught):
    rng = Random(0)
    for entry, row in taught[task.name]:
        said = data.dress(row, Config(answers="explained", system="none"), rng).messages[-1]["content"]
        answer, well_formed = evaluate.parse(said)
        assert answer == entry["answer"] and well_formed and evaluate.right(task.name, answer, entry)
        assert bool(row.explanation) == (task.strategy != "direct-answer")
        assert row.messages[-1]["content"] == row.answer == entry["answer"] and row.strategy == task.strategy


def statements(text):
    """Find every `a op b = c` in a worked answer, also those with more than one operation."""
    text = re.sub(r"(\d+) [a-z]+ x (\d+) legs", r"\1 x \2", text)
    text = re.sub(r"\d+\*[a-z] = |\b[a-z] = ", "", text)  # 5*r = 38 - 3 = 35, r = 35 / 5 = 7
    return re.findall(r"(?<![\d.])(-?\d+(?: [-+x/*] -?\d+)+) = (-?\d+)(?![\d/])", text)


@pytest.mark.parametrize("task", EXPLAINED, ids=lambda t: t.name)
def test_every_arithmetic_statement_is_true(task, taught):
    found = 0
    for _, row in taught[task.name]:
        for left, right in statements(row.explanation):
            numbers = re.sub(r"(\d+)", r"Fraction(\1)", left.replace("x", "*"))
            assert eval(numbers, {"Fraction": Fraction}) == int(right), row.explanation
            found += 1
    assert found >= {"leg_counting": 900, "chain_sum": 900, "simple_equations": 300}.get(task.name, 0)


def test_a_running_sum_visits_every_term_and_ends_in_the_answer(taught):
    for entry, row in taught["chain_sum"]:
        words = entry["metadata"]["expression"].split()
        terms = [int(words[0])] + [int(op + n) for op, n in zip(words[1::2], words[2::2])]
        results = [int(right) for _, right in statements(row.explanation)]
        assert results == [sum(terms[:k]) for k in range(2, len(terms) + 1)] and results[-1] == int(row.answer)


def test_an_equation_is_solved_by_what_is_written(taught):
    for entry, row in taught["simple_equations"]:
        x, equation = entry["metadata"]["variable"], entry["metadata"]["equation"]
        last = row.explanation.rstrip(".").split(" = ")[-1]
        assert last == row.answer
        left, right = equation.split(" = ")
        assert eval(left, {x: int(last)}) == int(right)
        for part in row.explanation.split(". "):  # each side of every "=" has the same value at the solution
            assert len({eval(side.rstrip("."), {x: Fraction(last)}) for side in part.split(" = ")}) == 1


def test_a_calendar_is_counted_out(taught):
    for entry, row in taught["calendar_arithmetic"]:
        days, start = entry["metadata"]["offset_days"], date.fromisoformat(entry["metadata"]["start_date"])
        named = re.findall(r"\b(\d+) ([A-Z]\w+day)", row.explanation)
        assert named == [(str(i), f"{start + timedelta(days=i if days > 0 else -i):%A}") for i in range(1, abs(days) + 1)]
        assert row.answer == named[-1][1]


def test_a_quote_stands_in_the_text_and_holds_the_answer(taught):
    for entry, row in taught["needle_haystack"]:
        quote = row.explanation.removeprefix("The text says: ").removesuffix(".")
        assert quote in entry["question"] and quote.startswith(entry["answer"] + " ")
        assert quote.endswith(entry["metadata"]["question"].removeprefix("Who ").split("?")[0])


def test_a_task_that_nobody_wrote_an_explanation_for():
    task = Task("leg_countin", "step-by-step", {}, False, "")
    with pytest.raises(ValueError, match="no procedural explanation named 'leg_countin'; did you mean 'leg_counting'"):
        procedural.explain(task, {})


# ------------------------------------------------------------------------------------- what is kept apart

def numbers(rows):
    return {r.id for r in rows}


def test_streams_and_seeds_share_no_question():
    draws = {(seed, stream): numbers(islice(procedural.rows(TASKS, seed, stream), 60)) for seed in (0, 1, 2) for stream in (0, 1, 2, 3, 9)}
    assert len(set().union(*draws.values())) == sum(map(len, draws.values())) == 15 * 60
    rows = list(islice(procedural.rows(TASKS, 0, 1), 12))
    assert [r.task for r in rows] == [t.name for t in TASKS] * 2  # tasks in turn
    assert rows == list(islice(procedural.rows(TASKS, 0, 1), 12))


def test_the_largest_seed_stays_below_the_held_out_ones():
    for seed, stream in ((199, 9), (200, 0), (0, 10)):
        with pytest.raises(ValueError, match=f"seed {seed}, stream {stream}: training seeds would reach"):
            next(procedural.rows(TASKS, seed, stream))
    last = next(procedural.rows(TASKS, 199, 8))
    assert int(last.id.rsplit("-", 1)[1]) + procedural.TRAIN_STRIDE <= procedural.HELD_OUT_SEED


def test_held_out_questions_differ_from_each_other_and_are_always_the_same():
    asked = procedural.held_out(TASKS, 50)
    assert {t: len({e["question"] for e in q}) for t, q in asked.items()} == {t.name: 50 for t in TASKS}
    again = procedural.held_out(TASKS, 10)
    assert all(again[t] == asked[t][:10] for t in asked)
    small = Task("calendar_arithmetic", "recall-then-generate", {"tasks": ["is_leap_year"], "year": 2020, "leap_year_range": 1}, False, "")
    with pytest.raises(ValueError, match=r"task 'calendar_arithmetic' has only \d different questions, 30 are asked"):
        procedural.held_out([small], 30)


def test_no_held_out_question_is_taught_not_even_by_its_text():
    # one-digit sums of two terms: a training stream meets held-out texts again and again
    few = Task("chain_sum", "step-by-step", {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}, False, "")
    rec = Recipe(tasks=(few,), questions=40, stages=(Config(name="s"),))
    asked = {e["question"].strip() for e in procedural.held_out(rec.tasks, 40)["chain_sum"]}
    free = [r.messages[0]["content"] for r in islice(procedural.rows(rec.tasks, 0, 0), 300)]
    kept = [r.messages[0]["content"] for r in islice(corpus.rows_of(rec, rec.stages[0])[0], 300)]
    assert sum(q in asked for q in free) > 10 and not asked & set(kept)


def test_rows_can_come_from_files_instead(flan):
    rec = recipes.get("smoke", rows=str(flan / "qasc_train.tsv"))
    rows, origin = corpus.rows_of(rec, rec.stages[0])
    name, (file, digest) = origin[-1][0][0]
    assert len(rows) == 1084 and (name, file) == ("", "qasc_train.tsv") and len(digest) == 16


# ------------------------------------------------------------------------------------------------- the ablation

def test_the_four_ways_differ_in_one_thing_each():
    rec = recipes.get("ablation")
    bare, kept, erased, generic = rec.stages[1:]
    differ = lambda a, b: {k for k, v in a.settings.items() if b.settings[k] != v} - {"name"}
    assert (differ(bare, erased), differ(kept, erased), differ(generic, erased)) == ({"answers"}, {"system"}, {"system"})
    assert {s.start for s in rec.stages[1:]} == {"stage1_flan"} and len({s.steps * s.tokens_per_step for s in rec.stages[1:]}) == 1
    assert rec.students == {"base": ["cautious"], "stage1_flan": ["cautious"], **{s.name: ["cautious", "empty", "right", "wrong"] for s in rec.stages[1:]}}
    assert recipes.get("laptop").students == {n: ["cautious"] for n in ("base", "stage1_flan", "stage2_chatgpt", "stage3_gpt4", "answer_only")}


def test_the_four_ways_teach_the_same_rows(tmp_path, tokenizer):
    rec = recipes.get("ablation", base="tiny-random", out=str(tmp_path), seq_len=2048, rows="procedural:60", steps=24)
    made = {s.name: corpus.prepare(rec, s, tokenizer) for s in rec.stages[1:]}
    rows = {n: [(r.id, r.messages[-2]["content"], r.answer) for r in p.rows] for n, p in made.items()}
    assert len(rows["bare_answers"]) == 60 and all(r == rows["bare_answers"] for r in rows.values())
    said = {n: [r.messages[-1]["content"] for r in p.rows] for n, p in made.items()}
    assert said["explained_kept"] == said["explained_erased"] == said["explained_generic"] != said["bare_answers"] == [a for _, _, a in rows["bare_answers"]]
    system = {n: {(r.strategy, r.messages[0]["content"]) for r in p.rows} for n, p in made.items()}
    assert system["explained_kept"] == {(t.strategy, strategies.STRATEGIES[t.strategy]) for t in TASKS}
    assert {m for _, m in system["explained_erased"] | system["bare_answers"]} == {strategies.CAUTIOUS}
    assert {m for _, m in system["explained_generic"]} <= {strategies.ORCA1[i] for i in (6, 11, 16)}
    for p in made.values():  # every row at least once, and as many packs
        assert p.card["planned"] == 60 and len(p.plan) == 24 and p.card["fill"] > 0.8


def test_so_many_procedural_rows_and_no_more():
    rec = recipes.get("smoke", rows="procedural:7")
    assert len(list(corpus.rows_of(rec, rec.stages[0])[0])) == 7
    assert corpus.rows_of(rec, rec.stages[0])[1] != corpus.rows_of(recipes.get("smoke", rows="procedural:8"), rec.stages[0].__class__(**{**vars(rec.stages[0]), "rows": "procedural:8"}))[1]
    for wrong in ("procedural:", "procedural:0", "procedural:x", "procedural:-1"):
        if wrong != "procedural:":
            with pytest.raises(ValueError, match="how many procedural rows"):
                corpus.rows_of(rec, rec.stage("stage1_flan", rows=wrong))


@pytest.mark.parametrize("task", EVERY, ids=lambda t: t.name)
def test_the_strategy_is_read_off_the_form_of_an_answer(task, taught):
    rng, cfg = Random(0), Config(answers="explained", system="none")
    assert {procedural.strategy_of(data.dress(r, cfg, rng).messages[-1]["content"]) for _, r in taught[task.name]} == {task.strategy}
    assert {procedural.strategy_of(r.answer) for _, r in taught[task.name]} == {"direct-answer"}
