"""mixture.py: Algorithm 1, proportions, solved examples, conversations, fractions; and what a prepared folder makes of them."""

import json
from collections import Counter
from dataclasses import replace
from random import Random

import numpy as np
import pytest
from conftest import talk

from orcalab import corpus, data, mixture, model, packing, recipes, strategies
from orcalab.config import Config, Mix, Part
from orcalab.mixture import Mixture
from orcalab.sampling import Scan, algorithm1, conversations, of_each, select, set_aside, shots_of


def rng(seed=0):
    return np.random.default_rng(seed)


def scan_of(n, tasks=1, system=0, single=True, pieces=1):
    """What `scan` would know of n good rows, their tasks in turn."""
    whole = lambda value, kind: np.full(n, value, kind)
    return Scan(whole(0, np.uint8), np.arange(n, dtype=np.int32) % tasks, np.arange(n, dtype=np.int32) % tasks, np.asarray(whole(system, np.uint64)), np.arange(n, dtype=np.uint64), whole(100, np.int32),
                whole(single, bool), whole(single, bool), whole(pieces, np.int32), np.zeros((0, 2), np.uint32), [f"t{i}" for i in range(tasks)])


def jsonl(path, items):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(i, ensure_ascii=False) + "\n" for i in items), encoding="utf-8")
    return path


# ----------------------------------------------------------------------------------------------- choosing

def naive_algorithm1(task, n, seed):
    """Orca 1's Algorithm 1, word for word: a task uniformly, then one of its queries without replacement; an empty task leaves."""
    chance, pools = Random(seed), {}
    for row, t in enumerate(task):
        pools.setdefault(t, []).append(row)
    out = []
    while len(out) < n:
        t = chance.choice(sorted(pools))
        out.append(pools[t].pop(chance.randrange(len(pools[t]))))
        if not pools[t]:
            del pools[t]
    return out


def test_algorithm_1_gives_each_task_what_drawing_one_by_one_gives():
    task = np.repeat(np.arange(6), [5, 40, 40, 400, 400, 2000])  # two kinds of task run dry on the way
    counts = lambda rows: np.bincount(task[rows], minlength=6)
    ours = np.array([counts(algorithm1(task, 600, rng(s))) for s in range(300)])
    naive = np.array([counts(naive_algorithm1(task.tolist(), 600, s)) for s in range(300)])
    assert (ours.sum(1) == 600).all() and ours[:, 0].tolist() == [5] * 300  # the smallest is used up
    error = np.sqrt((ours.var(0) + naive.var(0)) / 300)
    assert (abs(ours.mean(0) - naive.mean(0)) <= 4 * error + 1e-9).all()
    assert np.allclose(ours.std(0), naive.std(0), rtol=0.25, atol=0.01)


def test_algorithm_1_takes_no_row_twice_and_everything_if_asked():
    task = rng(1).integers(0, 50, 3000)
    for n in (0, 1, 700, 3000):
        rows = algorithm1(task, n, rng(2))
        assert len(rows) == n == len(set(rows.tolist()))
    assert algorithm1(task, 700, rng(3)).tolist() == algorithm1(task, 700, rng(3)).tolist() != algorithm1(task, 700, rng(4)).tolist()


def test_a_cap_holds_for_every_task_and_small_ones_stay_whole():
    task = np.repeat([0, 1, 2], [1000, 300, 20])
    rows = of_each(task, 300, rng())
    assert np.bincount(task[rows]).tolist() == [300, 300, 20] and len(set(rows.tolist())) == 620
    assert set(of_each(task, 300, rng(1)).tolist()) != set(rows.tolist())


def test_solved_examples_are_three_to_five_others_of_the_same_group():
    group = rng().integers(0, 30, 2000)
    group[:3], group[3:7] = 100, 101  # three rows of one kind, and four
    shown = shots_of(group, rng(1))
    sizes = Counter()
    for row, (own, *others) in enumerate(shown.tolist()):
        others = [o for o in others if o >= 0]
        assert own == row and row not in others and len(set(others)) == len(others)
        assert all(group[o] == group[row] for o in others)
        sizes[len(others)] += 1
    assert [len([o for o in r if o >= 0]) for r in shown[:7].tolist()] == [1] * 3 + [4] * 4
    assert set(sizes) == {0, 3, 4, 5} and all(600 < sizes[k] < 720 for k in (4, 5))
    assert (shots_of(group, rng(2))[7:] != shown[7:]).any(1).mean() > 0.99


def test_conversations_fill_a_budget_of_characters_under_one_system_message():
    system, size = np.array([1, 2, 1, 1, 2, 1, 3], np.uint64), np.array([40, 50, 40, 30, 60, 99, 500])
    assert conversations(system, size, 100) == [[0, 2], [1], [3], [4], [5], [6]]
    assert conversations(system, size, 110) == [[0, 2, 3], [1, 4], [5], [6]]
    many = rng().integers(0, 4, 3000).astype(np.uint64), rng(1).integers(10, 3000, 3000)
    made = conversations(*many, 8000)
    assert sorted(i for c in made for i in c) == list(range(3000)) and all(len({int(many[0][i]) for i in c}) == 1 for c in made)
    assert max(sum(many[1][i] for i in c) for c in made) <= 8000 and len(made) < 3000 * 1505 / 8000 * 1.3 + 4


# ---------------------------------------------------------------------------------------------- proportions

def test_openassistants_counts_come_out_of_the_sampler():
    """Sizes from recipe.md: orca-chat 236,053, fanfics 59,700 chunks, RedPajama 941,310 chunks; their card says 188,842, 47,760 and 188,262."""
    sizes, parts = (236_053, 59_700, 941_310), recipes.ORCA_8K.parts
    theirs, ours = ([select(replace(p, surplus=s), scan_of(n), Config(epochs=1, steps=0))[1] for p, n in zip(parts, sizes)] for s in ("lost", "train"))
    assert [x["taken"] for x in theirs] == [188_842, 47_760, 188_262] and [x["aside"] for x in theirs] == [5000, 1000, 1000]
    assert sum(x["taken"] for x in theirs) // 128 == 3319  # their number of steps
    assert [x["taken"] for x in ours] == [231_053, 58_700, int(0.25 * 940_310)]  # what they threw away is trained on here


def test_a_million_rows_come_in_the_proportions_that_were_asked_for():
    sizes = {p.name: p.size for p in recipes.ORCA2_PARTS}
    assert sizes == {"zero_shot": 602_000, "few_shot": 55_000, "math": 160_000, "synthetic": 2_000}
    cfg = Config(scale=0.5)
    made = [select(p, scan_of(n, tasks), cfg) for p, n, tasks in zip(recipes.ORCA2_PARTS, (600_000, 200_000, 195_000, 5_000), (400, 40, 9, 1))]
    assert [said["taken"] for _, said in made] == [301_000, 27_500, 80_000, 1_000]
    mixed = Mixture(recipes.ORCA2_NEW, cfg)
    mixed._arrange([c for c, _ in made])
    share = np.bincount(mixed.part[:100_000]) / 100_000  # any stretch of the order has them too, within what chance does
    asked = np.array([602, 55, 160, 2]) / 819
    assert (abs(share - asked) < 5 * np.sqrt(asked * (1 - asked) / 100_000)).all()
    math = select(recipes.ORCA2_PARTS[2], scan_of(195_000, 9), cfg)[0].draws[0] % 9  # by tasks: each nearly as often
    assert abs(np.bincount(math) / 80_000 - 1 / 9).max() < 5 * np.sqrt(1 / 9 / 80_000)


def test_a_fraction_is_drawn_afresh_each_epoch():
    chosen, said = select(Part("x", "x", fraction=0.25), scan_of(1000), Config(epochs=3, steps=0))
    assert said["taken"] == 250 and [len(d) for d in chosen.draws] == [250] * 3 and len(set(map(tuple, chosen.draws))) == 3
    assert 450 < len(set(np.concatenate(chosen.draws).tolist())) < 650  # 1 - 0.75^3 of a thousand: 578
    assert set_aside(100, Part("x", "x")) == (100, 0)


# -------------------------------------------------------------------------------------------- whole mixtures

@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    """A folder of small sources laid out as on the hub."""
    root, chance = tmp_path_factory.mktemp("corpora"), Random(0)
    flan = lambda name, n, tasks, kinds: [{"inputs": f"{name} task {i % tasks} number {i}?", "targets": f"{i}", "task_source": name, "task_name": f"{name}_{i % tasks}",
                                           "template_type": chance.choice(kinds)} for i in range(n)]
    jsonl(root / "cot" / "train.jsonl", flan("cot", 300, 5, ["zs_opt", "fs_opt"]))
    jsonl(root / "niv2" / "train.jsonl", flan("niv2", 2000, 3, ["zs_opt", "fs_opt"]))
    jsonl(root / "flan2021" / "train.jsonl", flan("flan2021", 800, 9, ["zs_opt", "zs_noopt", "fs_opt", "fs_noopt"]))
    jsonl(root / "t0" / "train.jsonl", flan("t0", 800, 7, ["zs_opt", "zs_noopt"]))
    orca = lambda n, name: [{"id": f"{c}.{i}", "system_prompt": strategies.ORCA1[i % 3 + 1], "question": f"{name} question {i}?", "response": f"{name} answer {i}"}
                            for i in range(n) for c in [chance.choice(["cot", "flan", "niv", "t0"])]]
    jsonl(root / "openorca_gpt4" / "1M-GPT4-Augmented.jsonl", orca(400, "GPT-4"))
    jsonl(root / "openorca_gpt35" / "3_5M-GPT3_5-Augmented.jsonl", orca(600, "ChatGPT"))
    jsonl(root / "slimorca" / "slim.jsonl", [{"conversations": [{"from": "system", "value": "Be kind."}, {"from": "human", "value": f"slim {i}?"}, {"from": "gpt", "value": f"so {i}"}]}
                                             for i in range(1300)])
    (root / "flan_cot").mkdir()
    (root / "flan_cot" / "qasc_train.tsv").write_text("".join(f"What is {i}?\t{i}\tIt is {i}.\n" for i in range(200)))
    jsonl(root / "gsm8k" / "main" / "train.jsonl", [{"question": f"{i} and 1?", "answer": f"{i} + 1 = <<{i}+1={i + 1}>>{i + 1}\n#### {i + 1}"} for i in range(60)])
    jsonl(root / "aqua" / "raw" / "train.jsonl", [{"question": f"Which is {i}?", "options": [f"A){i}", "B)0"], "rationale": "By looking.", "correct": "A"} for i in range(60)])
    jsonl(root / "math" / "algebra" / "train.jsonl", [{"problem": f"Find {i}.", "level": "Level 1", "type": "Algebra", "solution": f"It is \\boxed{{{i}}}."} for i in range(60)])
    jsonl(root / "math_dataset" / "arithmetic__mixed" / "train.jsonl", [{"question": f"What is {i} + 2?", "answer": str(i + 2)} for i in range(60)])
    jsonl(root / "numglue" / "train.jsonl", [{"question": f"{i} apples and 3?", "answer": str(i + 3), "type": "1"} for i in range(60)])
    jsonl(root / "lila" / "iid" / "train" / "0000.jsonl", [{"input": f"{i} - 1?", "output_program": "", "output_answer": str(i - 1), "dataset": "addsub.json"} for i in range(60)])
    jsonl(root / "doctor_patient" / "Train.jsonl", [{"dialogue": f"Doctor: Well? Patient: It hurts {i} times.", "section_text": f"Symptoms: pain {i}"} for i in range(20)])
    jsonl(root / "orca_chat" / "orca-chat-gpt4.json", [{"conversation": [{"input": f"a{i}", "output": "b"}, {"input": "c", "output": f"d{i}"}], "instruction": "Be brief."} for i in range(100)])
    jsonl(root / "fanfics" / "fan.jsonl", [{"TEXT": f"Once upon a time {i} " + "there was a fox. " * (9000 if i == 3 else 2)} for i in range(40)])
    jsonl(root / "redpajama" / "c4_sample.jsonl", [{"text": f"A page about {i}. " * 5, "meta": "{}"} for i in range(200)])
    return root


def stage(corpora, rows, tmp_path, **changes):
    return Config(**{"name": "s", "rows": rows, "data": str(corpora), "out": str(tmp_path), "seq_len": 2048, "steps": 0, "epochs": 1, "system": "keep", "drop": "duplicates", **changes})


def prepared(corpora, rows, tmp_path, tokenizer, **changes):
    cfg = stage(corpora, rows, tmp_path, **changes)
    return corpus.prepare(recipes.get("smoke"), cfg, tokenizer)


def test_orca_1s_queries_follow_the_paper(corpora, tmp_path, tokenizer, monkeypatch):
    mix = replace(recipes.ORCA1_QUERIES, parts=tuple(replace(p, size=p.size // 10_000, cap=p.cap and 100) for p in recipes.ORCA1_QUERIES.parts))
    monkeypatch.setattr(recipes, "MIXES", (mix, replace(mix, name="orca1_queries_gpt4", subset=100)))
    made = prepared(corpora, "orca1_queries", tmp_path, tokenizer)
    rows, chosen = list(made.rows), made.card["chosen"]
    by = {s: [r for r in rows if r.source == s] for s in ("cot", "niv2", "flan2021", "t0")}
    assert all(r.kind.startswith("zs") for r in rows)  # zero-shot queries alone
    assert len(by["cot"]) == chosen["cot"]["available"] == 300 - chosen["cot"]["not asked for"]  # all of them
    assert Counter(r.task for r in by["niv2"]) == {f"niv2_{i}": 100 for i in range(3)} and chosen["niv2"]["over the cap"] > 500
    assert (len(by["flan2021"]), len(by["t0"])) == (250, 200)
    tasks = np.array(list(Counter(r.task for r in by["t0"]).values()))
    assert len(tasks) == 7 and abs(tasks - 200 / 7).max() < 5 * np.sqrt(200 / 7)
    ids = {s: {next(k for k, v in strategies.ORCA1.items() if v == r.messages[0]["content"]) for r in rs} for s, rs in by.items()}
    assert ids["cot"] == {6, 11, 16} and ids["niv2"] == {1, 2, 5, 7, 9, 12, 13, 14, 15} and ids["t0"] == {1, 2, 3, 5, 7}
    choice = lambda want: {next(k for k, v in strategies.ORCA1.items() if v == r.messages[0]["content"]) for r in by["flan2021"] if (r.kind == "zs_opt") == want}
    assert choice(True) == {3, 4, 7, 8, 10} and choice(False) == {3, 4, 7}
    few = prepared(corpora, "orca1_queries_gpt4", tmp_path, tokenizer, stream=7)  # another stage: the same queries, fewer
    assert len(few.rows) == 100 and {r.id for r in few.rows} < {r.id for r in rows}


def test_orca_2s_mixture_is_erased_but_for_orca_1s_rows(corpora, tmp_path, tokenizer):
    made = prepared(corpora, "orca2", tmp_path, tokenizer, scale=0.002, answers="explained", drop="duplicates, refusals")
    chosen, rows = made.card["chosen"], list(made.rows)
    assert {p: c["taken"] for p, c in chosen.items()} == {"gpt4": 1, "zero_shot": 1204, "few_shot": 110, "math": 320, "synthetic": 4} == made.card["rows_by"]["part"]
    (own,) = [r for r in rows if r.source == "openorca_gpt4" and "\n\n" not in r.messages[-2]["content"]]
    rows.remove(own)
    assert own.original_system == "" and strategies.name_of(own.messages[0]["content"] if own.messages[0]["role"] == "system" else "") in ("empty", "orca1-2", "orca1-3")
    assert all(r.messages[0] == {"role": "system", "content": strategies.CAUTIOUS} for r in rows) and len(rows) == 1638
    few = [r for r in rows if r.source == "openorca_gpt4"]
    assert len(few) == 110
    for r in few:
        *shots, question = r.messages[1]["content"].split("\n\n")
        assert 3 <= len(shots) <= 5 and all(s.startswith("GPT-4 question") and "\nGPT-4 answer" in s for s in shots) and "answer" not in question
    assert {r.original_system for r in rows if r.source == "slimorca"} == {"Be kind."}
    assert {r.original_system for r in rows if r.source == "flan_cot"} == {strategies.STRATEGIES["recall-then-generate"]}
    assert data.audit(made, tokenizer) == {"erased": made.card["report"]["erased"], "texts": len({r.original_system for r in rows if r.original_system}), "leaks": 0}
    math = {s: {r.strategy for r in rows if r.source == s} for s in ("gsm8k", "aqua", "math", "math_dataset", "numglue", "lila")}
    assert list(math.values()) == [{"step-by-step"}] * 3 + [{"direct-answer"}] * 3  # where no steps are written, none are asked for
    kept = prepared(corpora, "orca2", tmp_path / "all", tokenizer, scale=0.002, drop="nothing", stream=3)
    assert [r.id for r in kept.rows] != [r.id for r in rows]  # another stream, another order


def test_orca_1s_own_rows_keep_their_messages(corpora, tmp_path, tokenizer):
    made = prepared(corpora, "orca1", tmp_path, tokenizer, epochs=3)
    assert {r.messages[0]["content"] if r.messages[0]["role"] == "system" else "" for r in made.rows} == {strategies.ORCA1[i] for i in (1, 2, 3)}
    assert len(made.rows) == 600 and np.bincount(made.plan.members).min() >= 3 and made.card["epochs"] == pytest.approx(3, abs=0.05)
    assert made.steps == len(made.plan) and made.card["by"]["teacher"] == {"GPT-3.5": len(made.plan.members)}


def test_plain_text_is_learned_whole_beside_conversations(corpora, tmp_path):
    llama = model.load_tokenizer("llama-standin", "openassistant")
    made = prepared(corpora, "orca_8k", tmp_path, llama, template="openassistant", epochs=2, seq_len=8192, too_long="cut_prompt", answers="explained")
    texts = [(r, e) for r, e in zip(made.rows, made.examples) if r.text]
    assert made.card["chosen"]["orca_chat"]["aside"] == 20 and made.card["chosen"]["redpajama"] | {"taken": 40, "available": 160} == made.card["chosen"]["redpajama"]
    for row, (ids, mask) in texts:
        assert ids[0] == llama.bos_token_id and mask.tolist() == [False] + [True] * (len(ids) - 1)
        assert ids.tolist() == llama(row.text).input_ids  # as transformers reads a text
    long = [r for r, _ in texts if r.id.startswith("fanfics-4.")]
    assert len({r.id for r in long}) == len(long) and max(len(r.text) for r in long) < 65_535  # pieces of at most so many characters, cut to the pack
    talks = [r for r in made.rows if r.messages]
    assert len(talks) == 80 and all([m["role"] for m in r.messages] == ["system", "user", "assistant", "user", "assistant"] for r in talks)
    pajama = [n for n, r in enumerate(made.rows) if r.source == "redpajama"]
    first, second = (set(d.tolist()) & set(pajama) for d in np.split(made.plan.members, [len(made.plan.members) // 2]))
    assert len(first - second) > 20 and 60 < len(pajama) <= 80  # a quarter of 160, drawn twice
    aside = [json.loads(x) for x in (made.folder / "validation.jsonl").read_text().splitlines()]
    assert len(aside) == 20 + 9 + 40 and max(len(x.get("text", "")) for x in aside) <= 65_535 and not {x["id"] for x in aside if x["source"] == "orca_chat"} & {r.id for r in talks}


def test_rows_under_one_message_become_long_conversations(tmp_path, tokenizer):
    base = " ".join(f"word{i}" for i in range(80)) + " {} {}"
    path = jsonl(tmp_path / "r.jsonl", [{"system_prompt": f"S{i % 2}", "question": f"Question number {i} about {i * 7}?", "response": f"Answer {i}. " * (1 + i % 9)} for i in range(300)]
                 + [{"system_prompt": "S0", "question": base.format("home", "two"), "response": "yes it is so"}, {"system_prompt": "S0", "question": base.format("home", "two") + " or", "response": "yes it is so"}])
    for similar in (False, True):
        mix = Mix("m", (Part("talks", str(path), merge=1500, similar=similar),))
        cfg = stage(tmp_path, "m", tmp_path, seq_len=8192)
        rows = Mixture(mix, cfg)
        assert rows.choose()["talks"]["near"] == 1 and rows.choose()["talks"]["joined"] == 301
        for r in rows:
            assert [m["role"] for m in r.messages][:3] == ["system", "user", "assistant"] and sum(len(m["content"]) for m in r.messages[1:]) <= 1500
        asked = [m["content"] for r in rows for m in r.messages if m["role"] == "user"]
        assert len(asked) == len(set(asked)) == 301 and len(rows) < 60
        made = data.prepare(rows, cfg, tokenizer, tmp_path / str(similar), rows.origin)
        assert made.card["report"]["rows"] == len(rows)


# --------------------------------------------------------------------------------------------------- dropped

def test_what_is_dropped_is_counted(tmp_path, tokenizer):
    good = [{"question": f"What is {i}?", "response": f"It is {i}."} for i in range(30)]
    bad = [good[0], good[0], {"question": "Why?", "response": "  "}, {"question": "", "response": "Because."}, {"question": "What?", "response": None},
           {"question": "Who?", "response": "I'm sorry, but I cannot help with that."}, {"question": "How many?", "response": "Final answer: 3", "answer": "4"},
           {"question": "A sign?", "response": "It is ▁ here."}]
    path = jsonl(tmp_path / "r.jsonl", good + bad)
    llama = model.load_tokenizer("llama-standin")
    make = lambda drop: prepared(tmp_path, str(path), tmp_path / drop, llama, drop=drop)
    made = make("duplicates, refusals, wrong, unsayable")
    assert made.card["chosen"]["rows"] == {"empty": 3, "refusals": 1, "wrong": 1, "duplicates": 2, "rows": 38, "available": 31, "asked": 31, "aside": 0, "taken": 31}
    assert made.card["report"]["unsayable"] == 1 and made.card["report"]["rows"] == 30
    assert "| rows | 38 | 3 | 1 | 1 | 2 | 31 | 31 | 31 | 0 |" in (made.folder / "README.md").read_text()
    assert make("unsayable").card["report"]["rows"] == 34  # an empty answer can not be learned, whatever is asked
    with pytest.raises(data.RowError, match="r.jsonl:38: U.2581 .* cannot be said .*; to leave such rows out, add 'unsayable' to `drop`"):
        make("duplicates")


def test_a_mixture_that_no_source_can_fill_is_an_error_before_the_work(corpora, tmp_path, tokenizer):
    with pytest.raises(ValueError, match=r"part 'zero_shot' of 'orca2' asks for 6,020 rows; of the 1,500 of its sources \(flan_cot, slimorca\) 1,500 are left: a scale of at most "
                                         r"0.00225 would do, or more sources"):
        prepared(corpora, "orca2", tmp_path, tokenizer, scale=0.01)
    assert len(prepared(corpora, "orca2", tmp_path, tokenizer, scale=0.00225, drop="nothing").rows) > 1800  # and it does
    with pytest.raises(ValueError, match=r"part 'gpt4' of 'orca2' asks for 0 rows"):
        prepared(corpora, "orca2", tmp_path, tokenizer, scale=0.001)
    with pytest.raises(ValueError, match="no task of part 'p' named 'qasd'; did you mean 'qasc'"):
        Mixture(Mix("m", (Part("p", f"flan_cot:{corpora / 'flan_cot'}", tasks="qasd"),)), stage(corpora, "m", tmp_path)).choose()
    with pytest.raises(ValueError, match="part 'p' draws 25% of its rows afresh each epoch: say how many epochs, and steps 0"):
        Mixture(Mix("m", (Part("p", "slimorca", fraction=0.25),)), stage(corpora, "m", tmp_path, steps=9)).choose()
    with pytest.raises(ValueError, match="the mixture 'm' has two parts of one name: p, p"):
        Mix("m", (Part("p", "a"), Part("p", "b")))
    with pytest.raises(ValueError, match=r"asks for 0 rows; .* 0 are left \(3 empty\)$"):
        prepared(corpora, str(jsonl(tmp_path / "e.jsonl", [{"question": f"{i}", "response": ""} for i in range(3)])), tmp_path, tokenizer)
    with pytest.raises(ValueError, match="no mixture, source, file or folder named 'openorka_gpt4'; did you mean 'openorca_gpt4'"):
        prepared(corpora, "openorka_gpt4", tmp_path, tokenizer)
    with pytest.raises(ValueError, match="rows 'stream:slimorca' come as a stream, whose end is not known: say how many steps, or take 'slimorca' whole"):
        prepared(corpora, "stream:slimorca", tmp_path, tokenizer)
    big = replace(recipes.ORCA1, subset=10**6)
    with pytest.raises(ValueError, match="the mixture 'orca1' asks for a subset of 1,000,000 rows, it has 600"):
        Mixture(big, stage(corpora, "orca1", tmp_path)).choose()


def test_a_stream_is_read_until_the_steps_are_filled(corpora, tmp_path, tokenizer):
    made = prepared(corpora, "stream:slimorca", tmp_path, tokenizer, steps=3, epochs=0)
    assert [r.id for r in made.rows] == [f"slimorca-{i + 1}" for i in range(len(made.rows))] and 30 < len(made.rows) < 200 and len(made.plan) == 3
    path = jsonl(tmp_path / "r.jsonl", [{"question": f"{i}?", "response": " " if i % 2 else "Yes."} for i in range(50)])
    made = prepared(corpora, f"stream:{path}", tmp_path, tokenizer, steps=3, epochs=0)
    assert (made.card["report"]["rows"], made.card["report"]["empty"]) == (25, 25)


@pytest.mark.long
def test_a_million_identical_rows_are_one(tmp_path, tokenizer):
    (tmp_path / "r.jsonl").write_text('{"question": "Again?", "response": "Yes."}\n' * 10**6)
    made = prepared(tmp_path, str(tmp_path / "r.jsonl"), tmp_path, tokenizer)
    assert made.card["report"]["rows"] == 1 and made.card["chosen"]["rows"]["duplicates"] == 999_999


def test_overlap_with_evaluation_sets_is_reported_and_can_be_dropped(tmp_path, tokenizer):
    asked = "If a train leaves the station at noon and drives for three hours at sixty miles an hour, how far does it come before it stops?"
    (tmp_path / "sets").mkdir()
    (tmp_path / "sets" / "trains.json").write_text(json.dumps({"examples": [{"input": asked, "target": "180"}, {"input": "Something else altogether that nobody has ever asked so far in this place, and why would they?", "target": "x"}]}))
    path = jsonl(tmp_path / "r.jsonl", [{"question": f"Question {i}?", "response": "Yes.", "task": "plain"} for i in range(20)]
                 + [{"question": "Listen. " + asked.upper(), "response": "180", "task": "leak"}])
    rec = recipes.get("smoke", against=str(tmp_path / "sets"))
    for drop, rows in (("nothing", 21), ("overlap", 20)):
        made = corpus.prepare(rec, stage(tmp_path, str(path), tmp_path, drop=drop), tokenizer)
        assert made.card["contamination"] == {"trains": {"questions": 2, "overlap": 1, "rows": {"leak": 1}}} and made.card["report"]["rows"] == rows
        assert "| trains | 2 | 1 | leak (1) |" in (made.folder / "README.md").read_text()


# ---------------------------------------------------------------------------------------------------- prepare

def test_an_interrupted_prepare_goes_on_and_makes_the_same_bytes(tmp_path, tokenizer, monkeypatch):
    path = jsonl(tmp_path / "r.jsonl", [{"question": f"What is {i}?", "response": f"It is {i}.", "task": f"t{i % 5}"} for i in range(9000)])
    whole = prepared(tmp_path, str(path), tmp_path / "whole", tokenizer, processes=1)
    made, write = [], data.write_shard

    def dies(file, *args):
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(file)
        write(file, *args)
    monkeypatch.setattr(data, "write_shard", dies)
    with pytest.raises(KeyboardInterrupt):
        prepared(tmp_path, str(path), tmp_path / "two", tokenizer, processes=1)
    stamps = [f.stat().st_mtime_ns for f in made]
    (side,) = (tmp_path / "two" / "prepared").glob("*.part")
    monkeypatch.setattr(data, "write_shard", write)
    monkeypatch.setattr(mixture, "scan", lambda *a: pytest.fail("what was chosen is chosen again"))
    again = prepared(tmp_path, str(path), tmp_path / "two", tokenizer, processes=1)
    assert [(again.folder / f.name).stat().st_mtime_ns for f in made] == stamps and not side.exists()
    files = lambda p: {f.name: f.read_bytes() for f in p.folder.iterdir()}
    assert files(again) == files(whole) and len(files(whole)) == 5 + 6  # shards; plan, packs, card, README, two pictures
    assert len(packing.plan(np.array([len(m) for _, m in again.examples]), 2048)) == len(again.plan)


def test_the_audit_sees_what_was_not_erased(corpora, tmp_path, tokenizer):
    import pyarrow as pa
    made = prepared(corpora, "flan_cot", tmp_path, tokenizer, system="cautious", answers="explained")
    assert data.audit(made, tokenizer) == {"erased": 200, "texts": 1, "leaks": 0}
    (path,) = made.folder.glob("data-*.arrow")
    table = pa.ipc.open_file(str(path)).read_all()
    said = "What is "
    forged = table.set_column(table.schema.get_field_index("original_system"), "original_system", pa.array([said] * len(table)))  # words that are in every question
    with pa.OSFile(str(path), "wb") as f, pa.ipc.new_file(f, forged.schema) as out:
        out.write_table(forged)
    assert data.audit(data.open_prepared(made.folder), tokenizer)["leaks"] == 200
    ids = table["input_ids"].to_pylist()
    ids[7][5] ^= 1
    with pa.OSFile(str(path), "wb") as f, pa.ipc.new_file(f, table.schema) as out:
        out.write_table(table.set_column(table.schema.get_field_index("input_ids"), table.schema.field("input_ids"), pa.array(ids, table.schema.field("input_ids").type)))
    with pytest.raises(ValueError, match="the ids of row qasc-.* are not those of its messages under the cautious message"):
        data.audit(data.open_prepared(made.folder), tokenizer)


def test_a_row_that_repeats_its_erased_message_is_dropped(tmp_path, tokenizer):
    path = jsonl(tmp_path / "r.jsonl", [{"system_prompt": "Think of foxes.", "question": f"{i}?", "response": "Think of foxes." if i == 3 else "Yes."} for i in range(9)])
    made = prepared(tmp_path, str(path), tmp_path, tokenizer, system="cautious")
    assert made.card["report"]["leaks"] == 1 and len(made.rows) == made.card["report"]["erased"] == 8


def test_other_programs_open_the_arrow_files(corpora, tmp_path, tokenizer):
    import datasets
    made = prepared(corpora, "flan_cot", tmp_path, tokenizer)
    table = datasets.load_dataset("arrow", data_files=[str(p) for p in made.folder.glob("data-*.arrow")], split="train", cache_dir=str(tmp_path / "cache"))
    assert table[5]["input_ids"] == made.examples[5][0].tolist() and table[5]["messages"] == made.rows[5].messages and len(table) == 200


def test_neighbours_of_a_stage_with_solved_examples_are_other_rows_of_their_task(tmp_path, tokenizer):
    path = jsonl(tmp_path / "r.jsonl", [{"question": f"{t} {i}?", "response": str(i), "answer": str(i), "task": t} for i in range(60) for t in "ab"])
    made = prepared(tmp_path, str(path), tmp_path, tokenizer, few_shot=0.5, answers="gold", system="none")
    shown = [r.messages[0]["content"].split("\n\n") for r in made.rows]
    assert 40 < sum(len(s) > 1 for s in shown) < 80 and {len(s) for s in shown} == {1, 4, 5, 6}
    assert all(len({line[0] for line in s}) == 1 and s[-1] not in {x.split("\n")[0] for x in s[:-1]} for s in shown)
    assert made.rows[0].messages == [*talk(("user", made.rows[0].messages[0]["content"]), ("assistant", made.rows[0].answer))]


def test_nothing_but_the_system_turn_differs_from_the_row_as_it_was_told(flan, tmp_path, tokenizer):
    """Real rows, erased and not: the same questions, answers and order, and the same ids behind the system turn."""
    told, erased = (prepared(tmp_path, str(flan), tmp_path, tokenizer, system=s, answers="explained", steps=20, epochs=0, seq_len=4096) for s in ("strategy", "cautious"))
    assert len(told.rows) == len(erased.rows) > 100
    for a, b, x, y in zip(told.rows, erased.rows, told.examples, erased.examples):
        assert a.messages[1:] == b.messages[1:] and a.messages[0]["content"] == b.original_system == strategies.STRATEGIES[b.strategy]
        extra = [len(e[0]) - sum(len(m["content"]) for m in r.messages[:1]) for e, r in ((x, a), (y, b))]  # a token a byte
        assert extra[0] == extra[1] and x[0][-extra[0] + 9:].tolist() == y[0][-extra[1] + 9:].tolist() and x[1].sum() == y[1].sum()


def test_texts_in_pieces_lose_none_of_them(tmp_path):
    path = jsonl(tmp_path / "t.jsonl", [{"text": "0123456789" * 3}])
    for changes in ({}, {"few_shot": 0.5}, {"merge": 5}):
        rows = Mixture(Mix("m", (Part("p", str(path), chunk=10, **changes),)), stage(tmp_path, "m", tmp_path))
        assert [r.text for r in sorted(rows, key=lambda r: r.id)] == ["0123456789"] * 3, changes


def test_strategies_are_drawn_alike_and_examples_are_of_the_task(tmp_path, tokenizer):
    items = [{"question": f"{t} {i}?", "response": str(i), "answer": str(i), "task": t, "strategy": s} for t, s, n in (("a", "direct-answer", 400), ("b", "direct-answer", 400), ("c", "step-by-step", 80)) for i in range(n)]
    mix = Mix("m", (Part("p", str(jsonl(tmp_path / "r.jsonl", items)), size=150, by="strategies", few_shot=1.0),))
    rows = Mixture(mix, stage(tmp_path, "m", tmp_path))
    assert abs(sum(r.task == "c" for r in rows) - 75) < 30
    for i in range(len(rows)):
        assert len({r.task for r in rows.item(i)[0]}) == 1


def test_conversations_of_worked_answers_are_dressed_turn_by_turn(tmp_path, tokenizer):
    items = [{"system_prompt": "Think of foxes.", "question": f"{i}?", "response": str(i), "answer": str(i), "explanation": f"It is {i}."} for i in range(20)]
    mix = Mix("m", (Part("p", str(jsonl(tmp_path / "r.jsonl", items)), merge=40, system="cautious"),))
    cfg = stage(tmp_path, "m", tmp_path, answers="explained", seq_len=4096)
    made = data.prepare(Mixture(mix, cfg), cfg, tokenizer, tmp_path, "m")
    assert {m["content"] for r in made.rows for m in r.messages if m["role"] == "assistant"} == {f"It is {i}.\nFinal answer: {i}" for i in range(20)}
    assert {r.original_system for r in made.rows} == {"Think of foxes."} and data.audit(made, tokenizer)["erased"] == len(made.rows) < 12


def test_rows_that_were_erased_before_stay_as_they_are(tmp_path, tokenizer):
    items = [{"system_prompt": strategies.CAUTIOUS, "original_system": "Think of foxes.", "question": f"{i}?", "response": "Yes."} for i in range(5)] + [
        {"system_prompt": "You are helpful", "question": "And so?", "response": "Yes."}]
    made = prepared(tmp_path, str(jsonl(tmp_path / "r.jsonl", items)), tmp_path, tokenizer, system="cautious")
    assert Counter(r.original_system for r in made.rows) == {"Think of foxes.": 5, "You are helpful": 1}
    assert data.audit(made, tokenizer) == {"erased": 6, "texts": 2, "leaks": 0}


def test_a_stream_goes_on_behind_rows_that_are_dropped(tmp_path, tokenizer):
    item = lambda i, said: {"question": f"{i}?", "response": said}
    path = jsonl(tmp_path / "r.jsonl", [item(i, "Yes.") for i in range(2000)] + [item(i, " ") for i in range(2500)] + [item(i, "No.") for i in range(600)])
    made = prepared(tmp_path, f"stream:{path}", tmp_path, tokenizer, steps=999, epochs=0)
    assert (made.card["report"]["rows"], made.card["report"]["empty"]) == (2600, 2500)
    jsonl(path, [item(i, "Maybe.") for i in range(9)])
    assert len(prepared(tmp_path, f"stream:{path}", tmp_path, tokenizer, steps=999, epochs=0).rows) == 9  # another content, another folder
    with pytest.raises(ValueError, match="come as a stream, from which refusals cannot be chosen: take '.*r.jsonl' whole"):
        prepared(tmp_path, f"stream:{path}", tmp_path, tokenizer, steps=9, drop="refusals")
    with pytest.raises(ValueError, match="drop names 'overlap', and no evaluation sets are given"):
        prepared(tmp_path, str(path), tmp_path, tokenizer, drop="overlap")


def test_the_same_rows_elsewhere_make_the_same_folder(tmp_path, tokenizer):
    items = [{"question": f"{i}?", "response": "Yes."} for i in range(50)]
    one, two = (prepared(tmp_path, str(jsonl(tmp_path / d / "r.jsonl", items)), tmp_path / d / "out", tokenizer) for d in "ab")
    assert one.folder.name == two.folder.name and one.plan == two.plan


def test_orca_1s_messages_go_by_the_sub_collection_of_an_openorca_row(corpora, tmp_path, tokenizer):
    made = prepared(corpora, "openorca_gpt4", tmp_path, tokenizer, system="orca1")
    ids = {t: {next(k for k, v in strategies.ORCA1.items() if v == r.messages[0]["content"]) for r in made.rows if r.task == t} for t in ("cot", "niv2", "t0", "flan2021")}
    assert ids == {t: set(strategies.ORCA1_IDS[t]) for t in ids}
