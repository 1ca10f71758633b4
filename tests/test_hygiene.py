"""What hygiene finds and what it leaves alone: refusals, wrong answers, rows that come again, questions of evaluation sets."""

import json
import pickle
import random
import re
from collections import Counter

import pytest
from conftest import SHARED

from orcalab import sources
from orcalab.config import RowError
from orcalab.hygiene import Overlap, Seen, agrees, digest_of, questions, refuses, report, sketches, words_of


@pytest.fixture(scope="module")
def sets():
    """The real evaluation sets: ten tasks of BBH, three of AGIEval."""
    for name in ("bbh", "agieval"):
        if not (SHARED / name).is_dir():
            pytest.skip(f"the evaluation sets are not on this machine ({SHARED / name})")
    return questions(f"{SHARED / 'bbh'}, {SHARED / 'agieval'}")


# ------------------------------------------------------------------------------------------------ answers

@pytest.mark.parametrize("said", [
    "I'm sorry, but I cannot fulfill this request.", "I’m sorry, but I can’t assist with that.", "Sorry, but I can't do that.", "I'm sorry, I can't help with that.",
    "As an AI language model, I don't have personal opinions or beliefs.", "As an AI, I do not have access to the news of today.",
    "As an artificial intelligence, I am unable to see images.", "I am an AI and cannot have feelings.", "Hello! I’m just an AI, I don’t have feelings.",
    "I cannot provide medical advice.", "I can't help with that.", "I'm unable to browse the internet.", "I am not able to write that story.",
    "Unfortunately, I am not able to help with that.", "I won't be able to provide that.", "I will not engage in this.", "\n\n I cannot assist you with that.",
    "I apologize, but I am unable to answer this question without more context.", "I apologise, but the question seems to be incomplete.",
    "I'm really sorry, but there is no passage given.", "My apologies, but this is not a question.", "I regret to say that I cannot answer this.",
    "Thank you for asking. I'm sorry, but I can't create that.", "I'm very sorry to hear that you're feeling this way, but I'm unable to provide the help that you need."])
def test_a_refusal_is_found(said):
    assert refuses(said) and refuses(said.upper()) and refuses(said.replace("'", "’"))


@pytest.mark.parametrize("said", [
    "", "12", "The model is sorry.", "I'm sorry for your loss.", "Sorry I'm late!", "Dear Sir, I apologize, but the order is late.", "He apologized, but it was too late.",
    'She said, "I cannot help you," and left.', 'The bot replied: "I\'m sorry, but I cannot do that."', "Translation: I am unable to support my family.",
    "I can't help it if I'm lucky.", "I can’t help falling in love with you.", "I cannot believe that this is the answer.", "I am an engineer and cannot swim.",
    "No. The passage says that the king cannot provide food.", "Yes, because I will not answer is a sentence of English.",
    "As an AI company, the firm sells chips.", "As an AI assistant, I'd be happy to help! The answer is 12.", "An AI language model is a program that cannot see.",
    "The answer is 12. " * 20 + "I'm sorry, but I cannot answer more."])
def test_words_of_a_refusal_alone_are_none(said):
    assert not refuses(said)


def test_no_answer_that_people_wrote_is_a_refusal(flan):
    assert [r.id for r in sources.read(str(flan), None, check=False) if refuses(r.answer) or refuses(r.explanation)] == []


@pytest.mark.parametrize("said, gold, verdict", [
    ("3 x 4 = 12.\nFinal answer: 12", "12", True), ("#### 12", "12", True), ("5 < 6\n#### 13", "12", False), ("**Final answer:** 6", "6", True),
    ("Final answer:\n\n**6**", "6", True), ("The correct option is (B).", "B", True), ("The answer would be Paris.", "Paris", True),  # ways to state it
    ("The answer is 5. No. The answer is 6.", "6", True), ("The answer is 5. No. The answer is 6.", "5", False),  # the last one counts
    ("I thought about it, and 6 it is", "6", None), ("", "6", None), ("Final answer:", "6", None), ("The answer isn't known here", "6", None),  # none stated
    ("The answer is 6", "", None), ("6", " . ", None),  # no gold
    ("The answer is 1,200.", "1200", True), ("1200", "1,200", True), ("Answer: $1,200.00", "1200", True), ("1,2", "12", False), ("The answer is 1,200,000kg", "1200000", True),
    ("12.5", "12", False), ("The answer is 12.5.", "12", False), ("12.0", "12", True), ("The answer is .5", "0.5", True), ("The answer is −4", "-4", True),
    ("The answer is 4", "-4", False), ("The answer is 112", "12", False),
    ("The answer is 12 apples", "12", True), ("The answer is 3 + 9 = 12", "12", True), ("The answer is 3 + 9 = 13", "12", False), ("The answer is 12. So 13 is wrong.", "12", True),
    ("The answer is 5, 12 or 30", "12", None), ("The answer is twelve", "12", None), ("The answer is 24/2", "12", None), ("The answer is half", "1/2", None),
    ("So it is $\\boxed{12}$.", "12", True), ("So it is $\\boxed{13}$.", "12", False), ("\\boxed{\\frac{1}{2}}.", "\\frac{1}{2}", True), ("\\boxed{\\frac12}", "\\frac{1}{2}", None),
    ("The answer is (B) five.", "B", True), ("The answer is (B).", "(B) five", True), ("(B)five", "(B)", True), ("b", "B", True), ("The answer is B because it is", "(B)", True),
    ("The answer is C) six", "B", False), ("A.", "B", False), ("The answer is a man", "(A)", None), ("The answer is five", "B", None), ("The answer is (B)", "five", None),
    ("The answer is five", "(B) five", True), ("The answer is (B) five", "five", True), ("The answer is (B) five", "six", False), ("The answer is (B) 5", "5", True),
    ("Yes.", "yes", True), ("Answer: Yes, because it rains.", "yes", True), ("No", "yes", False), ("yes", "no", False), ("not", "no", False),
    ("Answer: nowhere", "no", False), ("Answer: co-operation", "co", False),
    ("The answer is “London”.", "london", True), ("The answer is London.", "Paris", False), ("Paris", "Paris.", True), ("The answer is the city of Paris", "Paris", None)])
def test_a_stated_result_is_held_against_the_gold_one(said, gold, verdict):
    assert agrees(said, gold) is verdict


def test_real_answers_agree_with_themselves_and_not_with_each_other(flan):
    real = list(sources.read(str(flan), None, check=False))
    assert all(agrees(f"{r.explanation}\nFinal answer: {r.answer}", r.answer) and agrees(r.answer, r.answer) for r in real)
    others = Counter(agrees(f"Final answer: {b.answer}", a.answer) for a, b in zip(real, real[1:]) if a.answer != b.answer)
    assert others[False] > 0.999 * others.total()
    wrong = [r.id for r in real if agrees(r.explanation, r.answer) is False]  # the first four do say another letter than the gold one
    assert sorted(wrong) == ["aqua-1468", "aqua-479", "aqua-652", "aqua-876", "ecqa-5634"]


# --------------------------------------------------------------------------------------------- duplicates

def test_a_digest_is_the_same_everywhere_and_tells_texts_apart():
    assert digest_of("a", "b") == 11797832347080049151 and 0 <= digest_of("") < 2**64
    assert len({digest_of(*t) for t in [("",), ("", ""), ("a", "b"), ("b", "a"), ("ab",), ("ab", ""), ("a b",), ("é",)]}) == 8


@pytest.mark.parametrize("text", ["", "?!", "It's 3,5 × 4_000 – naïve ÉTÉ,\tΣίσυφος 中文 ½ x²\x1cend", "".join(map(chr, range(0xD800))), "".join(map(chr, range(128)))])
def test_words_are_runs_of_letters_and_digits(text):
    assert words_of(text) == re.findall(r"\w+", text.lower())


TEXT = "There are forty seven numbers in this set and twenty eight in that one, and twelve of them are in both sets; how many are there in either of the two?"


def kept(*blocks):
    seen = Seen()
    return [new for texts in blocks for new in seen.new(sketches(texts))]


def test_the_first_of_those_that_are_alike_is_kept():
    nearly = TEXT.replace("either of the two", "either of these two")
    assert kept([TEXT, "Who wrote it, and when?", TEXT, nearly, TEXT.upper(), "Who wrote this, and where?", "  who WROTE it -- and when"]) == [True, True, False, False, False, True, False]
    assert kept([nearly, TEXT]) == [True, False]
    assert kept(["yes", "no", "Yes.", "yes no", "yes no"]) == [True, True, False, True, False]  # fewer than three words
    assert kept(["?!", "→", "?!", ""]) == [True, True, False, True] and kept([]) == []  # no words at all


def test_rows_in_several_blocks_are_kept_as_in_one(flan):
    texts = ["\n".join(m["content"] for m in r.messages) for r in sources.read(str(flan / "aqua_train.tsv"), None, check=False)]
    once = kept(texts)
    assert kept(texts[:1000], texts[1000:1001], [], texts[1001:]) == once == kept(texts) and 150 < once.count(False) < 250
    assert [s.digest() for s in sketches(texts[:50])] == [sketches([t])[0].digest() for t in texts[:50]]
    assert [s.digest() for s in pickle.loads(pickle.dumps(sketches(texts[:50])))] == [s.digest() for s in sketches(texts[:50])]  # between processes


def triples(text):
    words = words_of(text)
    return {tuple(words[i : i + 3]) for i in range(len(words) - 2)}


def test_edited_rows_are_found_and_real_ones_kept(flan):
    rng, found, missed, wrong = random.Random(0), 0, 0, 0
    real = ["\n".join(m["content"] for m in r.messages) for r in sources.read(str(flan / "gsm8k_train.tsv"), None, check=False)]
    for text in real[:1500]:
        edited = text.split(" ")
        for _ in range(rng.randint(1, 4)):
            edited[rng.randrange(len(edited))] = rng.choice(["seven", "apples", "why", "and"])
        a, b = triples(text), triples(" ".join(edited))
        alike, dropped = len(a & b) / len(a | b), kept([text, " ".join(edited)]) == [True, False]
        found, missed, wrong = found + (alike > 0.87 and dropped), missed + (alike > 0.87 and not dropped), wrong + (alike < 0.7 and dropped)
    assert found > 200 and missed <= 0.02 * found and wrong == 0  # the estimate is good to about 0.03
    assert kept(real).count(False) <= 3


# ------------------------------------------------------------------------------------------ contamination

def naive(sets, texts):
    """Say it again in tuples of words: for each text {(name, number)} of the questions that have a run of their own in common with it."""
    words = lambda t: tuple(re.findall(r"\w+", t.lower()))
    cut = lambda w, size: {w[i : i + size] for i in range(len(w) - size + 1)}
    asked = {(name, n): words(q) for name, some in sets.items() for n, q in enumerate(some)}
    runs = {w: cut(w, min(13, len(w))) for w in asked.values() if len(w) >= 5}
    often = Counter(r for some in runs.values() for r in some)
    own = [(who, r) for who, w in asked.items() for r in runs.get(w, ()) if often[r] == 1]
    said = [set().union(*(cut(words(t), size) for size in range(5, 14))) for t in texts]
    return [{who for who, r in own if r in some} for some in said]


@pytest.mark.parametrize("vocabulary", [2, 6, 400])
def test_overlap_is_that_of_sets_of_words(vocabulary):
    rng = random.Random(vocabulary)
    word = lambda: rng.choice([f"{w}{n}" for n in range(vocabulary // 2) for w in ("a", "Ö")])
    text = lambda n: rng.choice([" ", ", ", "\n"]).join(word() for _ in range(n))
    sets = {"one": [text(rng.randint(0, 30)) for _ in range(60)], "two": [text(rng.randint(3, 16)) for _ in range(60)]}
    sets["two"] += rng.sample(sets["one"], 5) + [f"{q} {text(3)}" for q in rng.sample(sets["one"], 5)]
    texts = ["", text(1)]
    for _ in range(300):
        planted = rng.choice(sets[rng.choice(["one", "two"])]).upper().split()
        at = rng.randint(0, len(planted))
        texts.append(f"{text(rng.randint(0, 20))} {'; '.join(planted[at : at + rng.randint(1, 20)])}. {text(rng.randint(0, 20))}")
    overlap, wanted = Overlap(sets), naive(sets, texts)
    assert sum(map(bool, wanted)) > 30 and not all(wanted)
    assert overlap.of(texts) == wanted
    assert [x for i in range(0, len(texts), 7) for x in overlap.of(texts[i : i + 7])] == wanted  # however they are split over calls
    assert pickle.loads(pickle.dumps(overlap)).of(texts) == wanted == [overlap.of([t])[0] for t in texts] and overlap.of([]) == []


LONG = "if a train leaves the station at noon and drives for three hours how far does it come"  # 18 words


def test_thirteen_words_in_a_row_are_an_overlap_and_twelve_are_not():
    overlap, words = Overlap({"trains": ["Is it so?", LONG]}), LONG.split()
    for i in range(6):
        assert overlap.of([" ".join(words[i : i + 13])]) == [{("trains", 1)}]
        assert overlap.of([" ".join(["x", *words[i : i + 12], "x", *words[i + 12 :]])]) == [set()]
    assert overlap.of([f"Hm: {LONG.upper()}?!", LONG.replace(" ", " -- "), "\n".join(words), LONG.replace("noon", "nine")]) == [{("trains", 1)}] * 3 + [set()]


def test_no_run_goes_over_from_one_text_to_the_next():
    overlap, words = Overlap({"trains": [LONG], "short": ["who wrote this old book"]}), LONG.split()
    for cut in range(1, 18):
        halves = [" ".join(words[:cut]), " ".join(words[cut:])]
        assert overlap.of(halves) == [{("trains", 0)} if cut >= 13 else set(), {("trains", 0)} if cut <= 5 else set()]
    assert overlap.of(["they asked who wrote", "this old book", "", "who wrote this old book"]) == [set(), set(), set(), {("short", 0)}]
    assert overlap.of([LONG, "else", LONG + " who wrote this old book"]) == [{("trains", 0)}, set(), {("trains", 0), ("short", 0)}]


def test_a_run_that_stands_in_several_questions_identifies_none():
    head = "please read the following text with care and then answer the question below in one word"
    overlap = Overlap({"a": [f"{head} what is the capital of the old country", f"{head} who wrote it"], "b": [head]})
    assert overlap.of([head, f"{head} please", f"so {head}"]) == [set()] * 3
    assert overlap.of([f"{head} what is the capital", f"{head} who wrote"]) == [{("a", 0)}, {("a", 1)}] and overlap.identified == 2


def test_the_same_question_twice_is_one_question():
    overlap = Overlap({"a": [LONG, "another question of just eight words is this"], "b": [LONG.upper() + "?"]})
    assert overlap.of([LONG]) == [{("a", 0), ("b", 0)}] and overlap.identified == 3


def test_short_questions_are_one_run_or_left_out_and_counted():
    words = LONG.split()
    overlap = Overlap({"s": [" ".join(words[:n]) for n in range(1, 13)], "empty": [""]})
    assert overlap.short == 5 and overlap.identified == 8  # one to four words, and none
    for n in range(5, 13):
        assert overlap.of([" ".join(["x", *words[:n], "x"])]) == [{("s", k - 1) for k in range(5, n + 1)}]
    assert overlap.of([" ".join(words[:4]), " ".join(words[1:12])]) == [set()] * 2
    none = Overlap({"s": ["Why?"]})
    assert (none.short, none.identified, none.of([LONG, "Why?"])) == (1, 0, [set()] * 2) and Overlap({}).of([LONG]) == [set()]


# ---------------------------------------------------------------------------------------- evaluation sets

def test_real_evaluation_sets_are_read(sets):
    assert len(sets) == 13 and {"date_understanding", "word_sorting", "aqua-rat", "lsat-ar", "sat-math"} <= set(sets)
    assert all(len(q) > 100 and all(q) for q in sets.values()) and sum(map(len, sets.values())) == 3141
    assert "10 minutes for the angle of elevation" in sets["aqua-rat"][0] and "(A)5(√3 + 1)" in sets["aqua-rat"][0]  # the question and its options
    assert sets["lsat-ar"][0].startswith("Of the eight students") and "Which one of the following" in sets["lsat-ar"][0]  # the passage first


def test_a_real_question_in_a_row_is_found(sets):
    overlap, plain = Overlap(sets), "What is the capital of France, and on which river does it lie? It is Paris, on the Seine."
    assert overlap.short == 1 and overlap.identified > 3000
    leaks = {name: f"{plain} {some[7].lower()}\n{plain}" for name, some in sets.items() if name != "boolean_expressions"}
    for name, found in zip(leaks, overlap.of(list(leaks.values()))):
        assert (name, 7) in found
    assert overlap.of([plain]) == [set()]


def test_few_real_rows_overlap_with_evaluation_sets(flan, sets):
    real = list(sources.read(str(flan), None, check=False))
    found = Overlap(sets).of(["\n".join(m["content"] for m in r.messages) for r in real])
    assert {r.id: who for r, who in zip(real, found) if who} == {
        **{f"aqua-{n}": {("aqua-rat", 165)} for n in (479, 652, 876, 1468)}, "aqua-1300": {("aqua-rat", 67)}, "aqua-2439": {("aqua-rat", 198)}}


def test_evaluation_sets_in_other_files(tmp_path):
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    (tmp_path / "a" / "x.json").write_text(json.dumps({"examples": [{"input": "One?", "target": "1"}, {"input": "Two?"}]}))
    line = json.dumps({"context": "A story\u2028of two lines.", "prompt": "Who?", "options": ["(A) I", "(B) you"], "passage": None, "answer": "A"}, ensure_ascii=False)
    (tmp_path / "b" / "x.jsonl").write_bytes(f"\ufeff{line}\r\n\n{line}".encode())
    told = "A story\u2028of two lines.\nWho?\n(A) I\n(B) you"
    assert questions(f"{tmp_path / 'a'},{tmp_path / 'b' / 'x.jsonl'}") == {"x": ["One?", "Two?"], "b/x": [told, told]}  # none is lost where two files have one name
    assert questions(f"{tmp_path / 'a'},{tmp_path / 'a'},{tmp_path / 'a'}") == {"x": ["One?", "Two?"], "a/x": ["One?", "Two?"] * 2}


NOT_OURS = "not an evaluation set that we can read"


@pytest.mark.parametrize("name, text, said", [
    ("x.json", b'{"examples": [', f"x.json: {NOT_OURS} (JSONDecodeError: Expecting value: line 1 column 15 (char 14)): BBH's JSON, or JSONL with a question"),
    ("x.json", b'{"rows": []}', f"x.json: {NOT_OURS} (KeyError: 'examples')"), ("x.json", b'[1]', f"x.json: {NOT_OURS} (TypeError: "),
    ("x.json", b'{"examples": [1]}', f"x.json: {NOT_OURS} (AttributeError: "), ("x.jsonl", b'{"question": "\xe9?"}', f"x.jsonl: {NOT_OURS} (UnicodeDecodeError: "),
    ("x.jsonl", b'{"question": "a?"}\n{"question": "b', "x.jsonl:2: not JSON at character 14: "), ("x.jsonl", b'\n[1]', "x.jsonl:2: a line must hold an object, got '[1]'"),
    ("x.jsonl", b'{"asked": "a?"}\n{"question": ""}', "x.jsonl: no passage, context, question, input or prompt in it"), ("x.jsonl", b"", "x.jsonl: no passage, "),
    ("x.json", b'{"examples": []}', "x.json: no passage, ")])
def test_what_is_no_evaluation_set_is_said(tmp_path, name, text, said):
    (tmp_path / name).write_bytes(text)
    with pytest.raises(RowError, match=re.escape(said)):
        questions(str(tmp_path))


def test_files_of_other_kinds_are_not_evaluation_sets(tmp_path):
    (tmp_path / "x.tsv").write_text("a")
    with pytest.raises(ValueError, match="holds no .json or .jsonl file"):
        questions(str(tmp_path))


def test_the_report_counts_questions_and_rows_by_task():
    hits = Counter({("a", 0, "t"): 2, ("a", 0, "u"): 1, ("a", 0, "v"): 1, ("a", 3, "t"): 5, ("b", 0, "t"): 1})
    assert report(hits, {"a": 10, "b": 2, "c": 7}) == {"a": {"questions": 10, "overlap": 2, "rows": {"t": 7, "u": 1, "v": 1}}, "b": {"questions": 2, "overlap": 1, "rows": {"t": 1}},
                                                       "c": {"questions": 7, "overlap": 0, "rows": {}}}
    many = report(Counter({("a", n, f"task{n}"): n for n in range(1, 15)}), {"a": 20})["a"]
    assert many["overlap"] == 14 and list(many["rows"].items()) == [(f"task{n}", n) for n in range(14, 4, -1)]  # the ten with most
