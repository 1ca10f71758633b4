"""data.py: every reader and every error; rows dressed for a stage; prepared folders that can be trusted."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from random import Random
from tempfile import TemporaryDirectory

import pytest
from conftest import ROOT, talk

from orcalab import chatml, corpus, data, model as models, packing, recipes, sources, strategies
from orcalab.config import Config, RowError
from orcalab.data import Row

FIRST = {"messages": talk(("user", "2+2"), ("assistant", "4"))}


REPORT = ("rows", "tokens", "targets", "too_long", "tokens_lost", "cut", "as_they_stand")


def build(rows, cfg, tokenizer):
    """(rows, examples, report) of a prepared folder that is then gone."""
    with TemporaryDirectory() as folder:
        made = data.prepare(rows, cfg, tokenizer, folder, "test")
        return list(made.rows), [(i.tolist(), m.tolist()) for i, m in made.examples], {k: n for k, n in made.card["report"].items() if n or k in REPORT}


def jsonl(path, *items):
    path.write_text("".join((i if isinstance(i, str) else json.dumps(i)) + "\n" for i in items), encoding="utf-8")
    return path


# ------------------------------------------------------------------------------------------------ read

def test_jsonl_in_both_shapes(tmp_path):
    old = {"system_prompt": "Add.", "question": "2+2", "response": "4", "id": 7, "task": "sums", "answer": "4", "other": 1}
    path = jsonl(tmp_path / "a.jsonl", FIRST, "", old, {**old, "system_prompt": ""})
    one, two, three = data.read(path, None)
    assert one == Row(messages=FIRST["messages"], id="a-1", source="a", task="a")
    assert two == Row(messages=talk(("user", "2+2"), ("assistant", "4"), system="Add."), id="7", source="a", task="sums", answer="4")
    assert three.messages == FIRST["messages"] and two.where == f"{path}:3"


def test_a_byte_order_mark_and_windows_lines_are_read(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(FIRST).encode() + b"\r\n" + json.dumps(FIRST).encode() + b"\r\n")
    assert [r.messages for r in data.read(path, None)] == [FIRST["messages"]] * 2


def test_characters_that_some_programs_take_for_a_line_end_do_not_cut_a_row(tmp_path):
    odd = {"messages": talk(("user", "a\u2028b\x85c\x0bd"), ("assistant", "x"))}
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(odd, ensure_ascii=False) + "\n", encoding="utf-8")
    assert data.read(path, None)[0].messages == odd["messages"]


@pytest.mark.parametrize("line, message", [
    ('{"messages": [{"role": "user", "con', r"a.jsonl:2: not JSON at character .*\(is the line cut off\?\)"),
    ('{"messages": }, "task": "x"}', "a.jsonl:2: not JSON at character 14: Expecting value$"),
    ('["a"]', r"a.jsonl:2: a line must hold an object, got '\[\"a\"\]'"),
    ({"mesages": []}, r"a.jsonl:2: missing \['messages'\]; 'mesages': did you mean 'messages'"),
    ({"question": "2+2", "respons": "4"}, r"a.jsonl:2: missing \['response'\]; 'respons': did you mean 'response'"),
    ({"response": "4"}, r"a.jsonl:2: missing \['question'\]$"),
    ({"messages": talk(("user", "2+2"))}, "a.jsonl:2: messages ends with a user turn: there is no answer to learn"),
    ({"messages": talk(("user", "2+2"), ("asistant", "4"))}, r"a.jsonl:2: no role \(messages\[1\]\) named 'asistant'"),
    ({"messages": []}, "a.jsonl:2: messages must be a list of at least one turn"),
    ({"question": "2+2", "response": 4}, r"a.jsonl:2: messages\[1\]\['content'\] must be text, got int"),
    ({"question": "2+2", "response": "4", "system_promt": "Add."}, "a.jsonl:2: .*did you mean 'system_prompt'"),
    ({"question": "2+2", "response": "4", "system": "Add."}, "a.jsonl:2: 'system': did you mean 'system_prompt'"),
    ({"conversations": []}, "a.jsonl:2: needs 'messages', .*; its columns are those of the source slimorca: write slimorca:PATH"),
    ({**FIRST, "system_prompt": "Add."}, r"a.jsonl:2: 'messages' and \['system_prompt'\]: a row has the one or the other"),
])
def test_a_bad_line_names_file_line_and_field(tmp_path, line, message):
    with pytest.raises(RowError, match=message):
        data.read(jsonl(tmp_path / "a.jsonl", FIRST, line))


def test_a_lone_surrogate_is_an_error_with_file_and_line(tmp_path, tokenizer):
    path = jsonl(tmp_path / "a.jsonl", '{"messages": [{"role": "user", "content": "\\ud800"}, {"role": "assistant", "content": "4"}]}')
    with pytest.raises(RowError, match="a.jsonl:1"):
        build(data.read(path), Config(), tokenizer)


def test_what_is_not_a_text_file(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(json.dumps(FIRST).encode() + b'\n{"messages": "caf\xe9"}\n')
    with pytest.raises(RowError, match=r"a.jsonl:2: not UTF-8 at byte 17 \(0xe9\); save the file as UTF-8"):
        data.read(tmp_path / "a.jsonl")
    for content in (b"", b" \n\n", b"\xef\xbb\xbf\n"):
        (tmp_path / "b.jsonl").write_bytes(content)
        with pytest.raises(RowError, match="b.jsonl: the file is empty"):
            data.read(tmp_path / "b.jsonl")


def test_files_that_are_not_there_or_not_readable(tmp_path):
    jsonl(tmp_path / "cautious.jsonl", FIRST)
    (tmp_path / "notes.md").write_text("x")
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match="no file or folder .*cautous.jsonl; did you mean 'cautious.jsonl'"):
        sources.found(tmp_path / "cautous.jsonl")
    with pytest.raises(ValueError, match="no file or folder .*nowhere/a.jsonl$"):
        sources.found(tmp_path / "nowhere" / "a.jsonl")
    with pytest.raises(ValueError, match="none holds no .jsonl or .tsv or .parquet or .json or .csv or .txt file"):
        sources.found(tmp_path / "none")
    with pytest.raises(ValueError, match=r"no reader \(.*notes.md\) named '.md'"):
        sources.found(tmp_path / "notes.md")
    both = f"{tmp_path / 'cautious.jsonl'}, {tmp_path},"
    assert [p.name for p in sources.found(both)] == ["cautious.jsonl", "cautious.jsonl"]


def test_tsv_rows_and_errors(tmp_path):
    path = tmp_path / "gsm8k_train.tsv"
    path.write_text("How many?\\n(a) 1\t2\tOne and one.\n", encoding="utf-8")
    (row,) = data.read(path, None)
    assert row == Row(messages=talk(("user", "How many?\n(a) 1"), ("assistant", "2")), id="gsm8k-1", source="flan_cot", task="gsm8k",
                      strategy="step-by-step", teacher="human", answer="2", explanation="One and one.")
    path.write_text("q\ta\te\nq\ta\n", encoding="utf-8")
    with pytest.raises(RowError, match=r"tsv:2: expected question, answer, explanation between tabs, got 2 fields, empty: \['explanation'\]"):
        data.read(path)
    path.write_text("q\t\te\n", encoding="utf-8")
    with pytest.raises(RowError, match=r"tsv:1: .* got 3 fields, empty: \['answer'\]"):
        data.read(path)


def test_the_real_flan_cot_files_are_read_whole(flan):
    rows = data.read(flan)
    count = lambda name: sum(r.task == name for r in rows)
    assert len(rows) == 33_443
    assert {n: count(n) for n in ("aqua", "creak", "ecqa", "gsm8k", "qasc", "sensemaking", "strategyqa")} == \
        {"aqua": 2728, "creak": 6915, "ecqa": 7112, "gsm8k": 7473, "qasc": 1084, "sensemaking": 6070, "strategyqa": 2061}
    raw = (flan / "gsm8k_train.tsv").read_text(encoding="utf-8").split("\n")[0].split("\t")
    first = next(r for r in rows if r.id == "gsm8k-1")
    assert [first.messages[0]["content"], first.answer, first.explanation] == raw
    assert all(r.strategy in strategies.STRATEGIES for r in rows)
    assert len({r.task for r in rows[:40]}) >= 4  # files are mixed, and the same way each time
    assert rows[0] == data.read(flan)[0] != data.read(flan, seed=1)[0]


# ----------------------------------------------------------------------------------------------- dress

ROW = Row(messages=talk(("user", "3 dogs?"), ("assistant", "12")), task="legs", strategy="step-by-step", answer="12", explanation="3 x 4 = 12.")


@pytest.mark.parametrize("settings, system, said", [
    ({"answers": "gold", "system": "empty"}, "", "12"),
    ({"answers": "gold", "system": "none"}, None, "12"),
    ({"answers": "explained", "system": "strategy"}, strategies.STRATEGIES["step-by-step"], "3 x 4 = 12.\nFinal answer: 12"),
    ({"answers": "explained", "system": "cautious"}, strategies.CAUTIOUS, "3 x 4 = 12.\nFinal answer: 12"),
    ({"answers": "gold", "system": "cautious"}, strategies.CAUTIOUS, "12"),
    ({"answers": "gold", "system": "keep"}, None, "12"),
])
def test_dress_for_every_stage(settings, system, said):
    new = data.dress(ROW, Config(**settings), Random(0))
    assert new.messages == talk(("user", "3 dogs?"), ("assistant", said), system=system)
    assert new.original_system == (strategies.STRATEGIES["step-by-step"] if settings["system"] == "cautious" else "")


def test_dress_with_orca1_draws_from_the_messages_for_cot():
    rng = Random(0)
    drawn = [data.dress(ROW, Config(system="orca1"), rng).messages[0]["content"] for _ in range(60)]
    assert set(drawn) == {strategies.ORCA1[i] for i in (6, 11, 16)}


def test_a_direct_answer_is_not_explained_and_a_rows_own_words_are_kept():
    explained = Config(answers="explained", system="keep")
    direct = data.dress(replace(ROW, strategy="direct-answer"), explained, Random(0))
    assert direct.messages[-1]["content"] == "12"
    own = Row(messages=talk(("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"), system="s"))
    assert data.dress(own, explained, Random(0)) == own


def test_a_gold_answer_beside_a_teachers_own_explanation_does_not_replace_it():
    row = Row(messages=talk(("user", "3 dogs?"), ("assistant", "Each has 4, so 3 x 4 = 12.")), answer="12")
    assert data.dress(row, Config(answers="explained", system="keep"), Random(0)).messages == row.messages
    assert data.dress(row, Config(answers="gold", system="keep"), Random(0)).messages[-1]["content"] == "12"


def test_an_unknown_strategy_names_the_row():
    with pytest.raises(ValueError, match=r"no strategy \(a.jsonl:3\) named 'step-by-stp'; did you mean 'step-by-step'"):
        data.dress(replace(ROW, strategy="step-by-stp", where="a.jsonl:3"), Config(system="cautious"), Random(0))


def test_few_shot_shows_three_to_five_earlier_rows_of_the_same_task():
    rows = [replace(ROW, messages=talk(("user", f"{t} {n}?"), ("assistant", str(n))), task=t, answer=str(n)) for n in range(100) for t in "ab"]
    dressed = list(data.dressed(rows, Config(few_shot=0.5, system="none")))
    shown = 0
    for new, row in zip(dressed, rows):
        *shots, question = new.messages[0]["content"].split("\n\n")
        assert question == row.messages[0]["content"] and new.messages[-1]["content"] == row.answer
        assert len(shots) in (0, 3, 4, 5) and len(set(shots)) == len(shots)
        for shot in shots:
            asked, answer = shot.split("\n")
            assert asked == f"{row.task} {answer}?" and int(answer) < int(row.answer)
        shown += bool(shots)
    assert 70 < shown < 125  # half of the 190 that have five rows before them
    assert dressed == list(data.dressed(rows, Config(few_shot=0.5, system="none")))
    assert all("\n\n" not in r.messages[0]["content"] for r in data.dressed(rows, Config(few_shot=0.0, system="none")))


# --------------------------------------------------------------------------------------------- prepare

def long_row(n, where="a.jsonl:1"):
    return Row(messages=talk(("user", "0123456789" * n), ("assistant", "ok")), where=where)


def test_too_long_is_dropped_and_counted(tokenizer):
    cfg = Config(seq_len=64, too_long="drop", system="keep")
    kept, examples, report = build([long_row(2), long_row(9)], cfg, tokenizer)
    assert [r.messages for r in kept] == [long_row(2).messages]
    assert len(examples[0][0]) == report["tokens"] == len(chatml.encode(long_row(2).messages, tokenizer)[0])
    assert report == {"rows": 1, "tokens": 42, "targets": 4, "too_long": 1, "tokens_lost": 112, "cut": 0, "as_they_stand": 1}


def test_too_long_is_cut_at_the_beginning_of_the_question_and_no_further(tokenizer):
    kept, examples, report = build([long_row(9)], Config(seq_len=64, too_long="cut_prompt", system="keep"), tokenizer)
    assert len(examples[0][0]) == 64  # not one token more is lost than has to be: a token is a byte here
    assert kept[0].messages == talk(("user", ("0123456789" * 9)[48:]), ("assistant", "ok"))
    assert report == {"rows": 1, "tokens": 64, "targets": 4, "too_long": 0, "tokens_lost": 48, "cut": 1, "as_they_stand": 1}


def test_an_answer_that_alone_is_too_long_is_dropped_and_never_cut(tokenizer):
    row = Row(messages=talk(("user", "a"), ("assistant", "x" * 99)))
    opening = Row(messages=talk(("assistant", "x" * 99)))  # nobody asked: nothing to cut
    for bad in (row, opening):
        kept, _, report = build([bad, long_row(1)], Config(seq_len=64, too_long="cut_prompt", system="keep"), tokenizer)
        assert len(kept) == 1 and (report["too_long"], report["cut"]) == (1, 0)


def test_too_long_as_an_error_names_the_row(tokenizer):
    with pytest.raises(RowError, match="a.jsonl:1: 112 tokens; seq_len is 64; choose too_long 'drop' or 'cut_prompt', or a larger seq_len"):
        build([long_row(9)], Config(seq_len=64, too_long="error", system="keep"), tokenizer)
    with pytest.raises(ValueError, match="no row is left to train on: 1 were longer than seq_len 64"):
        build([long_row(9)], Config(seq_len=64, system="keep"), tokenizer)


@pytest.mark.timeout(10)
def test_few_shot_shows_no_row_without_a_gold_answer():
    plain = [replace(ROW, messages=talk(("user", f"p{n}?"), ("assistant", "x")), task="t", answer="") for n in range(30)]
    odd = [replace(ROW, messages=talk(("assistant", "hello")), task="t", answer="1") for n in range(30)]
    good = [replace(ROW, messages=talk(("user", f"g{n}?"), ("assistant", str(n))), task="t", answer=str(n)) for n in range(30)]
    mixed = [r for three in zip(plain, odd, good) for r in three]
    texts = [r.messages[0]["content"] for r in data.dressed(mixed, Config(few_shot=1.0, system="none"))]
    assert any("\n\n" in t for t in texts) and not any(f"p{n}?\n" in t for n in range(30) for t in texts) and not any("hello\n" in t for t in texts)


def test_rows_whose_answer_no_stage_can_choose_are_counted(tokenizer):
    rows = [replace(ROW, answer="4"), replace(ROW, answer=""), replace(ROW, answer="")]
    assert build(rows, Config(seq_len=512), tokenizer)[2]["as_they_stand"] == 2


def test_rows_of_a_file_come_in_another_order_in_each_stream(tmp_path, recipe):
    (tmp_path / "r.jsonl").write_text("".join(json.dumps({"question": str(n), "response": "x"}) + "\n" for n in range(50)))
    order = {s: [r.id for r in corpus.rows_of(recipe, Config(rows=str(tmp_path / "r.jsonl"), stream=s))[0]] for s in (1, 2, 3)}
    assert len({tuple(v) for v in order.values()}) == 3 and len({frozenset(v) for v in order.values()}) == 1


def test_another_message_makes_another_folder(recipe, tokenizer, monkeypatch):
    cfg = recipe.stage("stage3_gpt4")
    first = corpus.prepare(recipe, cfg, tokenizer).folder
    assert corpus.prepare(recipe, cfg, tokenizer).folder == first
    monkeypatch.setattr(data, "STRATEGIES", {**data.STRATEGIES, "step-by-step": "Go slowly."})
    assert corpus.prepare(recipe, cfg, tokenizer).folder != first


def test_endless_rows_that_never_fit_end_in_an_error(tokenizer, tmp_path):
    rec = recipes.get("smoke", seq_len=16, out=str(tmp_path))
    with pytest.raises(ValueError, match="no row is left to train on"):
        corpus.prepare(rec, rec.stage("stage3_gpt4"), tokenizer)


def test_endless_rows_are_read_until_the_steps_are_filled(recipe, tokenizer):
    prepared = corpus.prepare(recipe, recipe.stage("stage3_gpt4"), tokenizer)
    cfg, report = recipe.stage("stage3_gpt4"), prepared.card["report"]
    assert report["tokens"] >= cfg.steps * cfg.tokens_per_step * 1.02 > report["tokens"] - max(len(e[0]) for e in prepared.examples)
    assert len(prepared.plan) == prepared.card["packs"] == cfg.steps * cfg.packs_per_step


def test_a_prepared_folder_holds_what_was_built(recipe, tokenizer):
    cfg = recipe.stage("stage2_chatgpt")
    prepared = corpus.prepare(recipe, cfg, tokenizer)
    kept, examples, report = build(corpus.rows_of(recipe, cfg)[0], cfg, tokenizer)
    assert prepared.rows == kept and prepared.card["report"].items() >= report.items()
    assert [(i.tolist(), m.tolist()) for i, m in prepared.examples] == examples == [chatml.encode(r.messages, tokenizer) for r in kept]
    lengths = [len(i) for i, _ in examples]
    assert prepared.plan == packing.plan(lengths, cfg.seq_len, cfg.steps, cfg.packing, cfg.seed)
    packed = prepared.packs(1, 3)
    assert (packed.ids == packing.pack(examples, prepared.plan[1:3], cfg.seq_len, tokenizer.pad_token_id).ids).all()
    assert prepared.card["fill"] == pytest.approx(prepared.packs().fill)
    assert sum(prepared.card["by"]["task"].values()) == sum(map(len, prepared.plan))


def test_a_prepared_folder_is_reused_and_named_by_what_made_it(tmp_path, tokenizer):
    import copy
    path = jsonl(tmp_path / "a.jsonl", *[FIRST] * 9)
    cfg = Config(name="s", rows=str(path), seq_len=64, steps=2, out=str(tmp_path))

    def made(cfg=cfg, tokenizer=tokenizer):
        return data.prepare(data.read(cfg.rows), cfg, tokenizer, tmp_path / "prepared", sources.origin(cfg.rows)).folder

    first = made()
    stamp = (first / "data-00000.arrow").stat().st_mtime_ns
    assert made() == first and (first / "data-00000.arrow").stat().st_mtime_ns == stamp
    assert made(replace(cfg, lr=0.1, out="elsewhere", save_every=7)) == first  # what does not change rows or plan
    other = copy.deepcopy(tokenizer)
    other.add_special_tokens({"bos_token": "<s>"})
    changed = {"settings": made(replace(cfg, seq_len=65)), "answers": made(replace(cfg, answers="explained")),
               "seed": made(replace(cfg, seed=1)), "tokenizer": made(tokenizer=other)}
    jsonl(path, *[FIRST] * 8, {"messages": talk(("user", "2+3"), ("assistant", "5"))})
    changed["rows"] = made()
    assert len({first, *changed.values()}) == 6


def test_a_half_written_folder_is_not_taken_for_a_prepared_one(tmp_path, recipe, tokenizer):
    cfg = recipe.stage("stage1_flan")
    whole = corpus.prepare(recipe, cfg, tokenizer)
    rows = list(whole.rows)
    side = whole.folder.with_name(whole.folder.name + ".part")
    whole.folder.rename(side)
    (side / "card.json").unlink()
    (side / "data-00000.arrow").write_bytes(b"cut off")
    again = corpus.prepare(recipe, cfg, tokenizer)
    assert again.folder == whole.folder and again.rows == rows and not side.exists()
    shutil.rmtree(again.folder)
    again.folder.mkdir()
    with pytest.raises(ValueError, match="is not a prepared folder: it has no card.json"):
        data.open_prepared(again.folder)


def test_the_fingerprint_sees_a_change_of_the_pad(tokenizer):
    import copy
    other = copy.deepcopy(tokenizer)
    assert chatml.fingerprint(other) == chatml.fingerprint(tokenizer)
    other.pad_token = "a"
    assert chatml.fingerprint(other) != chatml.fingerprint(tokenizer)


# ------------------------------------------------------------------------------------------- many rows

@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """A JSONL file of 9,000 rows of four tasks, some blank lines among them."""
    rng, path = Random(0), tmp_path_factory.mktemp("many") / "many.jsonl"
    item = lambda n: {"question": f"{n} + {rng.randint(0, 9)}? {'x' * rng.randint(0, 60)}", "response": str(n), "answer": str(n), "task": f"t{n % 4}", "strategy": "step-by-step"}
    jsonl(path, *[x for n in range(9000) for x in (item(n), *([""] if n % 1000 == 3 else []))])
    return path


def contents(folder):
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


def test_several_processes_write_what_one_writes(many, tmp_path, tokenizer):
    cfg = Config(name="s", system="orca1", few_shot=0.3, seq_len=512, steps=6000, too_long="cut_prompt", processes=1)
    made = {n: data.prepare(data.read(many, 7), replace(cfg, processes=n), tokenizer, tmp_path / str(n), "many") for n in (1, 2)}
    one, two = made.values()
    assert contents(one.folder) == contents(two.folder)
    assert one.folder.name == two.folder.name and one.card["report"]["rows"] == 9000
    rows = data.read(many, 7)
    assert [r.id for r in one.rows] == [r.id for r in rows] and sorted(r.id for r in rows) != [r.id for r in rows]
    for i in (0, 1999, 2000, 8999):  # on both sides of a block's edge
        assert tuple(x.tolist() for x in one.examples[i]) == chatml.encode(one.rows[i].messages, tokenizer)
    shown = [r.messages[1]["content"].count("\n\n") for r in one.rows]
    assert set(shown) <= {0, 3, 4, 5} and 0.2 < sum(n > 0 for n in shown) / 9000 < 0.4


def test_enough_rows_are_encoded_and_all_are_checked(many, tmp_path, tokenizer):
    cfg = Config(name="s", system="keep", seq_len=512, steps=20)
    few = data.prepare(data.read(many), cfg, tokenizer, tmp_path, "few")
    assert few.card["report"]["rows"] == data.BLOCK and len(few.plan) == 20
    text = many.read_text().splitlines()
    order = data.read(many)
    last = int(order[len(order) - 1].where.rsplit(":", 1)[1])  # the line that comes last is never needed, and read all the same
    bad = tmp_path / "bad.jsonl"
    for n in (1, 2):
        bad.write_text("\n".join([*text[: last - 1], '{"question": "2+2"}', *text[last:]]) + "\n")
        with pytest.raises(RowError, match=rf"bad.jsonl:{last}: missing \['response'\]"):
            data.prepare(data.read(bad, check=False), replace(cfg, processes=n), tokenizer, tmp_path / str(n), "bad")


def test_the_first_row_that_cannot_be_proved_stops_the_work_and_is_shown(tmp_path, tokenizer, monkeypatch):
    path = jsonl(tmp_path / "a.jsonl", *[{"question": str(n), "response": f"answer {n}"} for n in range(50)])
    parts = chatml.Encoder.parts

    def shifted(self, messages, *args, **kwargs):  # a builder whose mask is off by one turn, for one row
        out = parts(self, messages, *args, **kwargs)
        return [(p, 1 - learn if p else learn) for p, learn in out] if messages[-1]["content"] == "answer 33" else out
    monkeypatch.setattr(chatml.Encoder, "parts", shifted)
    with pytest.raises(RowError, match=r"a.jsonl:34: the targets decode to '.*33.*', the assistant said '\\nanswer 33<\|im_end\|>'"):
        data.prepare(data.read(path), Config(system="keep", steps=99), tokenizer, tmp_path, "a")
    assert not [p for p in tmp_path.iterdir() if p.is_dir() and p.suffix != ".part"]


def test_a_word_that_the_tokenizer_cannot_say_names_the_line(tmp_path):
    llama = models.load_tokenizer("llama-standin")
    path = jsonl(tmp_path / "a.jsonl", FIRST, {"question": "a▁b", "response": "c"})
    with pytest.raises(RowError, match=r"a.jsonl:2: U\+2581 \('▁'\) cannot be said with this tokenizer: .* would come back as"):
        data.prepare(data.read(path), Config(system="keep"), llama, tmp_path, "a")


def test_only_the_last_answer_is_learned_if_that_is_asked_for(tmp_path, tokenizer):
    path = jsonl(tmp_path / "a.jsonl", {"messages": talk(("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"))})
    made = data.prepare(data.read(path), Config(system="keep", learn="last"), tokenizer, tmp_path, "a")
    assert tokenizer.decode(chatml.learned(*(x.tolist() for x in made.examples[0]))) == "\nd<|im_end|>"
    assert data.prepare(data.read(path), Config(system="keep"), tokenizer, tmp_path, "a").folder != made.folder


def test_a_damaged_prepared_folder_is_said_to_be_one(tmp_path, tokenizer):
    made = data.prepare(data.read(jsonl(tmp_path / "a.jsonl", FIRST)), Config(system="keep"), tokenizer, tmp_path, "a")
    with open(made.folder / "data-00000.arrow", "r+b") as f:
        f.truncate(300)
    with pytest.raises(ValueError, match="is damaged: data-00000.arrow cannot be read .*; delete it"):
        data.open_prepared(made.folder)
    (made.folder / "data-00000.arrow").unlink()
    with pytest.raises(ValueError, match="is damaged: its card lists 1 rows, 0 are there; delete it"):
        data.open_prepared(made.folder)


def test_rows_of_files_are_a_sequence_read_when_asked(many):
    rows = data.read(many, None)
    assert len(rows) == 9000 and rows[3].where.endswith(":4") and rows[4].where.endswith(":6")  # a blank line between
    assert rows[-1] == rows[8999] and [r.answer for r in rows[5:8]] == ["5", "6", "7"]
    with pytest.raises(IndexError, match="there are 9000 items, number 9000 is not among them"):
        rows[9000]


@pytest.mark.timeout(120)
@pytest.mark.parametrize("script", ["killed", "no guard"])
def test_a_process_that_ends_early_is_said_and_not_waited_for(many, tmp_path, script):
    guard = "if __name__ == '__main__':\n    " if script == "killed" else ""
    kill = "import os; rows.Lines.get = lambda self, i: os._exit(9)" if script == "killed" else "pass"
    (tmp_path / "s.py").write_text(f"""from orcalab import data, model, rows
from orcalab.config import Config
{kill}
{guard}data.prepare(data.read({str(many)!r}, check=False), Config(processes=2, system='keep', steps=9999), model.load_tokenizer('tiny-random'), {str(tmp_path)!r}, 'x')
""")
    job = subprocess.run([sys.executable, tmp_path / "s.py"], capture_output=True, text=True, cwd=tmp_path, timeout=100,
                         env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert job.returncode == 1 and "OSError: a process that prepares rows ended before its time" in job.stderr and not [p for p in tmp_path.glob("stage*") if p.suffix != ".part"]


def test_half_a_character_outside_the_words_names_the_line(tmp_path, tokenizer):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(FIRST) + "\n" + json.dumps({**FIRST, "task": "\ud800"}) + "\n")
    with pytest.raises(RowError, match="a.jsonl:2: 'task' holds half a character"):
        data.prepare(data.read(path), Config(system="keep"), tokenizer, tmp_path, "a")
