"""evaluate.py: parsed, scored with the full mark alone, and compared on the same questions."""

import json
import random
from dataclasses import replace
from itertools import product

import pytest
from conftest import script

from orcalab import evaluate, families, generate, parser, procedural, recipes, scores, strategies
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

    def ask(system="cautious", shard=(1, 1), folder="answers", **changes):  # nine questions: a part of six and one of three
        before = student.asked
        records = evaluate.ask(student, "base", system, questions, tmp_path / folder, replace(recipe, **{"eval_batch": 1, **changes}), shard=shard)
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


@pytest.mark.parametrize("lines, again", [(0, 9), (4, 9), (6, 3), (7, 3), (8, 3)])
@pytest.mark.parametrize("half", [b"", b'{"task": "leg_cou', b'{"text": "{x}', '{"text": "naï'.encode()[:-1]], ids=["whole", "half", "at a brace", "inside a character"])
def test_a_kill_costs_the_part_under_way_and_nothing_differs_after_it(asking, lines, again, half):
    records, _ = asking()
    whole = asking.path.read_bytes()
    asking.path.write_bytes(b"\n".join([*whole.split(b"\n")[: 1 + lines], half]))
    assert evaluate.read_answers(asking.path.parent) == {}  # what broke off is not scored
    assert asking() == (records, again) and asking.path.read_bytes() == whole
    assert evaluate.read_answers(asking.path.parent) == {("base", "cautious"): records}


def test_a_kill_at_any_byte_leaves_a_file_that_goes_on(asking):
    asking()
    whole, rng = asking.path.read_bytes(), random.Random(0)
    for cut in [0, 1, len(whole) - 1, *(rng.randrange(len(whole)) for _ in range(20))]:
        asking.path.write_bytes(whole[:cut])
        asking()
        assert asking.path.read_bytes() == whole
    asking.path.unlink()
    assert asking()[1] == 9 and asking.path.read_bytes() == whole


def test_shares_of_the_work_are_put_together_to_the_same_records(asking):
    records, _ = asking()
    some = [asking(shard=(n, 2), folder="shares") for n in (1, 2)]
    folder = asking.path.parent.with_name("shares")
    assert [len(r) for r, _ in some] == [6, 9] and [asked for _, asked in some] == [6, 3]
    assert {p.name for p in folder.glob("*.jsonl")} == {"base.cautious.1of2.jsonl", "base.cautious.2of2.jsonl"}
    assert evaluate.read_answers(folder) == {("base", "cautious"): records}
    assert asking(folder="shares") == (records, 0) and not (folder / "base.cautious.jsonl").exists()
    (folder / "base.cautious.1of2.jsonl").unlink()
    assert evaluate.read_answers(folder) == {}
    assert asking(folder="shares") == (records, 6) and evaluate.read_answers(folder) == {("base", "cautious"): records}  # the rest is asked where no share is named
    (folder / "base.cautious.1of2.jsonl").write_bytes(asking.path.read_bytes())
    with pytest.raises(ValueError, match="base.cautious.jsonl hold 18 answers to 9 questions: two commands asked the same at once; delete one of these files"):
        evaluate.stored(folder)


def test_stored_answers_are_read_by_todays_rules_in_shares_too(asking, student, recipe, tmp_path):
    asked = {"b/yes": [{"question": f"Is {n} even?", "answer": "Yes", "kind": "choice", "options": ["Yes", "No"], "labels": [], "number": n} for n in range(9)]}
    ask = lambda folder, shard=(1, 1): evaluate.ask(student, "s", "empty", asked, tmp_path / folder, replace(recipe, eval_batch=1), shard=shard)
    records = ask("whole")
    for n in (1, 2):
        ask("shares", (n, 2))
    for path in [tmp_path / "whole" / "s.empty.jsonl", *(tmp_path / "shares").glob("*.jsonl")]:  # as if other rules had read them
        head, *lines = map(json.loads, path.read_text().splitlines())
        assert set(head) == {"questions", "asked", "student", "together", "max_new_tokens", "message", "rules"}
        path.write_text("".join(json.dumps(x) + "\n" for x in [{**head, "rules": "older"}, *({**r, "text": "Yes, it is.", "right": False, "answer": None, "format_ok": False} for r in lines)]))
    for folder in ("whole", "shares"):
        (found,) = evaluate.read_answers(tmp_path / folder).values()
        assert [(r["answer"], r["format_ok"], r["right"], r["number"]) for r in found] == [("Yes", True, True, n) for n in range(9)]
        assert ask(folder) == found != records


def test_coming_back_to_former_settings_asks_nothing_again(asking):
    records, _ = asking()
    whole = asking.path.read_bytes()
    assert asking(max_new_tokens=5)[1] == 9 and asking() == (records, 0) and asking.path.read_bytes() == whole
    assert asking(max_new_tokens=5)[1] == 0 and len(list(asking.path.parent.glob("*.before"))) == 1


def test_other_batches_ask_nothing_again_and_go_on_in_the_parts_that_were_begun(asking):
    records, _ = asking()
    whole = asking.path.read_bytes()
    assert asking(eval_batch=2) == (records, 0) and asking.path.read_bytes() == whole
    asking.path.write_bytes(b"\n".join([*whole.split(b"\n")[:7], b""]))
    assert asking(eval_batch=4) == (records, 3) and asking.path.read_bytes() == whole


def test_a_share_without_work_says_so(asking, capsys):
    assert asking(shard=(3, 3)) == ([], 0)
    assert "share 3 of 3 has nothing to do: 9 questions are 2 parts of up to 6 that are answered together; a smaller eval_batch makes more of them" in capsys.readouterr().out


def test_another_template_or_type_is_another_student(recipe, tmp_path):
    question = {"t": [{"question": "2 + 2?", "answer": "4"}]}
    heads = []
    for how in (("cpu", "fp32"), ("cpu", "fp32", "openassistant"), ("cpu", "bf16")):
        lazy = evaluate.Lazy("tiny-random", *how)
        evaluate.ask(lazy, "s", "empty", question, tmp_path, recipe)
        heads.append(json.loads((tmp_path / "s.empty.jsonl").read_text().splitlines()[0])["student"])
        assert heads[-1] == evaluate.identity(lazy) == evaluate.identity(lazy.load())
    assert heads == [["seed 0", "chatml", "torch.float32"], ["seed 0", "openassistant", "torch.float32"], ["seed 0", "chatml", "torch.bfloat16"]]
    assert len(list(tmp_path.glob("*.before"))) == 2


def test_shares_of_other_questions_are_put_aside(asking):
    for n in (1, 2):
        asking(shard=(n, 2))
    records, asked = asking(max_new_tokens=5)
    assert asked == 9 and evaluate.read_answers(asking.path.parent) == {("base", "cautious"): records}
    assert len(list(asking.path.parent.glob("base.cautious.*of2.*.before"))) == 2


def test_how_long_answers_took_stands_beside_them(asking):
    asking()
    asking("empty")
    took = evaluate.seconds(asking.path.parent)
    log = [json.loads(line) for line in (asking.path.parent / "timing.log").read_text().splitlines()]
    assert [x[:3] for x in log] == [["base", "cautious", 6], ["base", "cautious", 3], ["base", "empty", 6], ["base", "empty", 3]]
    assert took == {("base", s): pytest.approx(sum(x[3] for x in log if x[1] == s) / 9) for s in ("cautious", "empty")} and evaluate.seconds(asking.path.parent / "none") == {}


def test_a_question_of_several_turns_is_a_conversation(student, recipe, tmp_path):
    open_ = {"question": "Who are you?", "answer": "", "kind": "open", "turns": ["Why?", "Since when?"]}
    plain = {"question": "Is 2 even?", "answer": "Yes", "kind": "choice", "options": ["Yes", "No"], "labels": [], "number": 7}
    long = {**plain, "question": "x" * 4 * student.context, "number": 8}
    records = evaluate.ask(student, "s", "cautious", {"mt": [open_], "b/yes": [plain, long]}, tmp_path, recipe)
    said = {(r["task"], r["number"]): r for r in records}
    chat = generate.Chat(student, "cautious", recipe.max_new_tokens)
    texts = [chat.say(words).text for words in ("Who are you?", "Why?", "Since when?")]
    assert said["mt", 0]["texts"] == texts and said["mt", 0]["text"] == texts[-1] and said["mt", 0]["turns"] == open_["turns"] and not said["mt", 0]["right"]
    r = said["b/yes", 7]
    assert (r["kind"], r["options"], r["gold"], "labels" in r, "texts" in r) == ("choice", ["Yes", "No"], "Yes", True, False)
    assert (r["answer"], r["format_ok"]) == parser.read(r["text"], plain)[:2] and r["right"] == parser.right(r["answer"], plain)
    r = said["b/yes", 8]
    assert (r["reason"], r["text"], r["tokens"], r["answer"], r["format_ok"], r["right"]) == ("too long", "", 0, None, False, False)


def test_other_settings_ask_again(asking):
    asking()
    before = asking.path.read_bytes()
    assert asking(max_new_tokens=5)[1] == 9
    assert asking(max_new_tokens=5)[1] == 0
    (kept,) = asking.path.parent.glob("*.before")
    assert kept.read_bytes() == before  # nothing that took minutes to answer is thrown away


def test_any_character_in_an_answer_comes_back(tmp_path):
    line = {"student": "s", "system": "empty", "task": "t", "number": 0, "text": "a\u2028b\x85c\u2029d\x0be"}
    (tmp_path / "s.empty.jsonl").write_text("{}\n" + json.dumps(line, ensure_ascii=False) + "\n", encoding="utf-8")
    assert evaluate.read_answers(tmp_path) == {("s", "empty"): [line]}


def test_a_lazy_student_is_known_by_the_same_digest(asking, recipe, tmp_path):
    records, _ = asking()
    lazy = evaluate.Lazy("tiny-random", "cpu", "fp32")
    assert evaluate.ask(lazy, "base", "cautious", asking.questions, tmp_path / "answers", recipe) == records
    assert isinstance(lazy.load(), Student)


# ------------------------------------------------------------------------------- several messages, several runs

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
    ablation = script("benchmarks/ablation.py")
    again = evaluate.unpack_records(json.loads(json.dumps(ablation.pack_records(found))))
    keys = ("student", "system", "seed", "task", "number", "right", "format_ok", "reason", "used", "tokens")
    short = lambda rs: sorted([r[k] for k in keys] for r in rs)
    assert {k: short(v) for k, v in again.items()} == {k: short(v) for k, v in found.items()}
    assert scores.score(again["s", "cautious"]) == scores.score(found["s", "cautious"])
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
    assert found[sums.name]["tried"][other]["p"] == scores.mcnemar(7, 0) < 0.1
    few = {f: q[:4] for f, q in questions.items()}
    assert evaluate.choose_strategies(Talker(says), "talker", few, tmp_path / "few", recipe)[sums.name]["chosen"] == sums.strategy  # three more of four may be luck
    silent = Talker(lambda *_: pytest.fail("what was answered is not asked again"))
    assert evaluate.choose_strategies(silent, "talker", questions, tmp_path, recipe) == found


def test_an_answer_without_a_scorer_has_to_state_the_gold_one():
    entry = {"question": "2 + 2", "answer": "4"}
    assert evaluate.right("", "4", entry) and evaluate.right("", "4 apples", entry) and not evaluate.right("", "14", entry) and not evaluate.right("", "perhaps", entry)
