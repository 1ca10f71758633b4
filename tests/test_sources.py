"""sources.py: every public data set by name, laid out as on the hub; files with columns of ours; what is damaged or missing."""

import csv
import io
import json
import os
import pickle
from itertools import chain
from operator import getitem

import pyarrow as pa
import pytest
from conftest import talk
from pyarrow import parquet

from orcalab import sources, workers
from orcalab.config import RowError
from orcalab.rows import Row


@pytest.fixture(autouse=True)
def caches(tmp_path_factory, monkeypatch):
    """Caches of the libraries in a folder of the test; the working folder stays as it was."""
    import datasets
    from huggingface_hub import constants
    side, before = tmp_path_factory.mktemp("caches"), sorted(os.listdir())
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(side / "datasets"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(side / "hub"))
    yield side
    assert sorted(os.listdir()) == before


def write(path, items):
    """Write items into a file, in the way that its ending says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        parquet.write_table(pa.Table.from_pylist(items), path)
    elif path.suffix == ".csv":
        out = io.StringIO()
        table = csv.DictWriter(out, list(items[0]))
        table.writeheader(), table.writerows(items)
        path.write_bytes(out.getvalue().encode())
    elif path.suffix == ".tsv":
        path.write_text("".join("\t".join(i) + "\n" for i in items), encoding="utf-8")
    else:
        path.write_text(json.dumps(items, indent=1) if path.suffix == ".json" else "".join(json.dumps(i) + "\n" for i in items), encoding="utf-8")
    return path


def rows(spec, data=""):
    return list(chain.from_iterable(sources.pools(str(spec), str(data) if data else "")))


def row(*said, system=None, **more):
    return Row(messages=talk(*zip(("user", "assistant") * len(said), said), system=system), **more)


def submix(name, *, kind="zs_opt", task="glue/wnli:2.0.0"):
    item = {"inputs": "Is it so? OPTIONS: yes, no", "targets": "yes", "task_source": "Flan2021", "task_name": task, "template_type": kind}
    return ("data/train-00000-of-00001-0a66.parquet", [item, {**item, "targets": None, "template_type": "fsnoopt"}],
            [row("Is it so? OPTIONS: yes, no", "yes", id=f"{name}-1", source=name, task=task, teacher="human", answer="yes", kind=kind),
             row("Is it so? OPTIONS: yes, no", "", id=f"{name}-2", source=name, task=task, teacher="human", kind="fs_noopt")])


def openorca(name, file, teacher):
    items = [{"id": f"{word}.{i}", "system_prompt": "Explain." if i else "", "question": "2+2", "response": "It is 4."} for i, word in enumerate(("niv", "flan", "t0", "cot", "new"))]
    return (file, items, [row("2+2", "It is 4.", system="Explain." if i else None, id=item["id"], source=name, task=task, teacher=teacher)
                          for i, (item, task) in enumerate(zip(items, ("niv2", "flan2021", "t0", "cot", "unknown")))])


STEPS, BARE = ({"strategy": s, "teacher": "human"} for s in ("step-by-step", "direct-answer"))
TURNS = [{"from": "system", "value": "Explain.", "weight": None}, {"from": "human", "value": "2+2", "weight": 0.0}, {"from": "gpt", "value": "4", "weight": 1.0}]
LAID_OUT = {  # name: (file as on the hub, its items, the rows)
    "flan2021": submix("flan2021"), "t0": submix("t0", kind="fs_opt"), "niv2": submix("niv2", task="task029_winogrande_full_object"), "cot": submix("cot", task="cot_gsm8k"),
    "dialog": submix("dialog", kind="zs_noopt", task="wiki_dialog"),
    "flan_cot": ("flan/v2/cot_data/qasc_train.tsv", [("What\\nis hot?", "fire", "Fire burns.\\nSo it is.")],
                 [row("What\nis hot?", "fire", id="qasc-1", source="flan_cot", task="qasc", strategy="recall-then-generate", teacher="human", answer="fire",
                      explanation="Fire burns.\nSo it is.")]),
    "openorca_gpt4": openorca("openorca_gpt4", "1M-GPT4-Augmented.parquet", "GPT-4"),
    "openorca_gpt35": openorca("openorca_gpt35", "3_5M-GPT3_5-Augmented.parquet", "GPT-3.5"),
    "slimorca": ("oo-labeled_correct.gpt4.sharegpt.jsonl", [{"conversations": TURNS}, {"conversations": TURNS[1:]}],
                 [row("2+2", "4", system="Explain.", id="slimorca-1", source="slimorca", task="slimorca", teacher="GPT-4"),
                  row("2+2", "4", id="slimorca-2", source="slimorca", task="slimorca", teacher="GPT-4")]),
    "dolphin": ("flan1m-alpaca-uncensored.jsonl", [{"instruction": "Explain.", "input": "2+2", "output": "4"}, {"instruction": "", "input": "1+1", "output": None}],
                [row("2+2", "4", system="Explain.", id="dolphin-1", source="dolphin", task="dolphin", teacher="GPT-4"),
                 row("1+1", "", id="dolphin-2", source="dolphin", task="dolphin", teacher="GPT-4")]),
    "orca_chat": ("orca-chat-gpt4.json", [{"conversation": [{"input": "2+2", "output": "4"}, {"input": "1+1", "output": "2"}], "instruction": "Explain.", "source": "ehartford/dolphin"},
                                          {"conversation": [{"input": "2+2", "output": "4"}], "instruction": "", "source": "ehartford/dolphin"}],
                  [row("2+2", "4", "1+1", "2", system="Explain.", id="orca_chat-1", source="orca_chat", task="orca_chat", teacher="GPT-4"),
                   row("2+2", "4", id="orca_chat-2", source="orca_chat", task="orca_chat", teacher="GPT-4")]),
    "gsm8k": ("main/train-00000-of-00001.parquet", [{"question": "How many?", "answer": "He sold 48/2 = <<48/2=24>>24 clips.\nAnd more.\n#### 1,024"}, {"question": "How many?", "answer": None}],
              [row("How many?", "1024", id="gsm8k-1", source="gsm8k", task="gsm8k", answer="1024", explanation="He sold 48/2 = 24 clips.\nAnd more.", **STEPS),
               row("How many?", "", id="gsm8k-2", source="gsm8k", task="gsm8k", **BARE)]),
    "aqua": ("raw/train-00000-of-00001.parquet", [{"question": "How much?", "options": ["A)125", "B)150"], "rationale": "It is 125.\nAnswer is A.", "correct": "A"}],
             [row("How much?\nOptions:\nA)125\nB)150", "A", id="aqua-1", source="aqua", task="aqua", answer="A", explanation="It is 125.\nAnswer is A.", **STEPS)]),
    "math": ("algebra/train-00000-of-00001.parquet", [{"problem": "x?", "level": "Level 5", "type": "Algebra", "solution": said} for said in
                                                      (r"Not \boxed{2} but \boxed{\frac{1}{2}}, so } it is.", "It } is plain.", r"\boxed{3")],
             [row("x?", gold, id=f"math-{n}", source="math", task="math_Algebra", answer=gold, explanation=said, **STEPS) for n, (gold, said) in
              enumerate(((r"\frac{1}{2}", r"Not \boxed{2} but \boxed{\frac{1}{2}}, so } it is."), ("", "It } is plain."), ("", r"\boxed{3")), 1)]),
    "math_dataset": ("arithmetic__mixed/train-00000-of-00001.parquet", [{"question": "b'What is 1 + 1?\\n'", "answer": "b'2\\n'"}, {"question": 'b"What is b\'s?\\n"', "answer": "3"}],
                     [row("What is 1 + 1?", "2", id="math_dataset-1", source="math_dataset", task="math_dataset", answer="2", strategy="direct-answer", teacher="program"),
                      row("What is b's?", "3", id="math_dataset-2", source="math_dataset", task="math_dataset", answer="3", strategy="direct-answer", teacher="program")]),
    "numglue": ("data/train-00000-of-00001.parquet", [{"question": "How many?", "answer": "3.5", "type": "Type_1"}],
                [row("How many?", "3.5", id="numglue-1", source="numglue", task="numglue", answer="3.5", **BARE)]),
    "lila": ("iid/lila-train.parquet", [{"input": "2+2?", "output_program": "print(2+2)", "output_answer": "4", "split": "train", "dataset": "addsub.json"}],
             [row("2+2?", "4", id="lila-1", source="lila", task="lila_addsub", answer="4", **BARE)]),
    "doctor_patient": ("MTS-Dialog-TrainingSet (SDHP).csv", [{"ID": "0", "section_text": 'Symptoms: "acne", N/A', "dialogue": "Doctor: How?\nPatient: Fine."},
                                                             {"ID": "1", "section_text": "None", "dialogue": "Doctor: Any?"}],
                       [row(f"{asked}\n\n{sources.NOTE}", said, id=f"doctor_patient-{n}", source="doctor_patient", task="doctor_patient", strategy="extract-generate", teacher="unknown")
                        for n, (asked, said) in enumerate((("Doctor: How?\nPatient: Fine.", 'Symptoms: "acne", N/A'), ("Doctor: Any?", "None")), 1)]),
    "redpajama": ("arxiv_sample.jsonl", [{"text": "On\u2028orcas.", "meta": {"id": 1}}, {"text": None, "meta": "x"}],
                  [Row([], text="On\u2028orcas.", id="redpajama-1", source="redpajama", task="redpajama", teacher="none"),
                   Row([], text="", id="redpajama-2", source="redpajama", task="redpajama", teacher="none")]),
    "fanfics": ("part-00000-d5505128.snappy.parquetpart.0.parquet", [{"TEXT": "Once.\n\nTwice."}],
                [Row([], text="Once.\n\nTwice.", id="fanfics-1", source="fanfics", task="fanfics", teacher="none")]),
}
BESIDE = {"flan2021": ["data/test-00000.parquet"], "flan_cot": ["flan/v2/cot_data/qasc_test.tsv"], "openorca_gpt4": ["3_5M-GPT3_5-Augmented.parquet"], "openorca_gpt35": ["1M-GPT4-Augmented.parquet"],
          "dolphin": ["flan5m-alpaca-uncensored.jsonl", "flan1m-alpaca-uncensored-deduped.jsonl"], "orca_chat": ["orca-chat-gpt4-8k.json"],
          "gsm8k": ["main/test-00000.parquet", "socratic/train-00000.parquet", "dataset_infos.json"], "aqua": ["raw/validation-00000.parquet", "raw/test-00000.parquet", "tokenized/train-00000.parquet"],
          "math": ["algebra/test-00000.parquet"], "math_dataset": ["arithmetic__mixed/test-00000.parquet", "algebra__linear_1d/train-00000.parquet"],
          "numglue": ["data/TEST-00000.parquet", "NumGLUE_dev.json", "dataset_infos.json"], "lila": ["iid/lila-test.parquet", "iid/validation/0000.parquet", "ood/train/0000.parquet"],
          "doctor_patient": ["MTS-Dialog-Validation Set (SDHP).csv"]}


def lay_out(folder, name):
    """Write a source's files as they lie on the hub, and beside them others that are not to be read; return its rows."""
    file, items, expected = LAID_OUT[name]
    write(folder / file, items)
    for other in (*BESIDE.get(name, ()), "README.md", "LICENSE.txt"):
        (folder / other).parent.mkdir(parents=True, exist_ok=True)
        (folder / other).write_text("not for us")
    return expected


# -------------------------------------------------------------------------------------------- by name

def test_every_source_has_its_test():
    assert set(LAID_OUT) == set(sources.SOURCES)


@pytest.mark.parametrize("name", sources.SOURCES)
def test_a_source_laid_out_as_on_the_hub(name, tmp_path, capfd):
    expected = lay_out(tmp_path / name, name)
    assert rows(f"{name}:{tmp_path / name}") == expected == rows(name, tmp_path)
    (pool,) = sources.pools(name, str(tmp_path))
    assert pickle.loads(pickle.dumps(pool)) == expected and pool[-1] == expected[-1]
    assert list(sources.stream(name, str(tmp_path))) == expected == list(sources.stream(f"{name}:{tmp_path / name}"))
    assert [r.where for r in pool][-1] == f"{tmp_path / name / LAID_OUT[name][0]}:{len(expected)}"
    assert capfd.readouterr() == ("", "")


def test_all_seven_folders_of_math_are_read(tmp_path):
    for kind in ("algebra", "precalculus"):
        write(tmp_path / kind / "train-00000-of-00001.parquet", [{"problem": "x?", "level": "1", "type": kind, "solution": r"\boxed{3}"}])
    assert [r.task for r in rows(f"math:{tmp_path}")] == ["math_algebra", "math_precalculus"]


def test_lila_as_the_hub_converts_it(tmp_path):
    write(tmp_path / "iid" / "train" / "0000.parquet", LAID_OUT["lila"][1])
    assert rows(f"lila:{tmp_path}") == LAID_OUT["lila"][2]


def test_a_single_file_of_a_source(tmp_path):
    expected = LAID_OUT["dolphin"][2]
    assert rows(f"dolphin:{write(tmp_path / 'other.jsonl', LAID_OUT['dolphin'][1])}") == expected


def test_the_table_names_every_source_with_licence_and_teacher():
    lines, head = sources.table()
    assert head == ["name", "where it lies", "rows", "teacher", "licence", "note"] and [line[0] for line in lines] == list(sources.SOURCES)
    assert all(teacher and licence for *_, teacher, licence, _ in lines)
    assert {line[3] for line in lines} == {"human", "GPT-4", "GPT-3.5", "program", "unknown", "none"}
    known = {name: line for name, *line in lines}
    assert known["slimorca"] == ["Open-Orca/SlimOrca", "517,982", "GPT-4", "MIT", "OpenOrca's, less those that contradict FLAN"] and known["dialog"][1] == ""
    assert {n: s.revision for n, s in sources.SOURCES.items() if s.revision != "main"} == {
        "orca_chat": "eb77efaee0e0eccc9b00bedabf21f510dbfc4b6c", "math_dataset": "refs/pr/5", "lila": "refs/convert/parquet"}
    assert (sources.licence("aqua"), sources.licence("fanfics"), sources.licence("mine")) == ("Apache-2.0", "unknown", "the rows' own")


# -------------------------------------------------------------------------------------------- from the hub

def cached(side, name):
    """Lay a source out as the hub's own library keeps it, with its list of all files there; return (its file, its rows)."""
    source = sources.SOURCES[name]
    commit = source.revision if len(source.revision) == 40 else "a" * 40
    folder = side / "hub" / f"datasets--{source.hub.replace('/', '--')}"
    listing = {LAID_OUT[name][0]: {"size": 1, "blob_id": "0"}, "not fetched": {"size": 1, "blob_id": "0"}}
    write(folder / "refs" / source.revision, []).write_text(commit)
    write(folder / "trees" / f"{commit}.json", []).write_text(json.dumps({"format_version": 1, "files": listing}))
    return folder / "snapshots" / commit / LAID_OUT[name][0], lay_out(folder / "snapshots" / commit, name)


@pytest.mark.parametrize("name", [n for n in sources.SOURCES if n != "flan_cot"])
def test_a_source_in_the_hub_s_own_cache_needs_no_network(name, caches, tmp_path):
    file, expected = cached(caches, name)
    assert rows(name) == expected
    lay_out(tmp_path / name, name)
    assert sources.origin(name) == sources.origin(name, str(tmp_path))  # the hub and a folder that holds the same are the same
    assert sources.origin(name, fetch=False) == [[name, sources.SOURCES[name].hub, sources.SOURCES[name].revision]]
    file.unlink()
    with pytest.raises(ValueError, match=rf"^{name!r} could not be had from the hub (?!.* holds no )"):
        rows(name)


def test_a_data_set_of_the_hub_that_has_no_such_file(caches):
    file, _ = cached(caches, "dolphin")
    (caches / "hub" / "datasets--cognitivecomputations--dolphin" / "trees" / f"{'a' * 40}.json").unlink()
    file.rename(file.with_name("flan1m.jsonl"))
    with pytest.raises(ValueError, match=r"^'dolphin' could not be had from the hub \(cognitivecomputations/dolphin\): .* holds no .* named \*\*/flan1m-alpaca-uncensored.jsonl"):
        rows("dolphin")


def test_a_data_set_of_the_hub_with_columns_of_ours(caches):
    folder = caches / "hub" / "datasets--some--talks"
    write(folder / "refs" / "main", []).write_text("b" * 40)
    write(folder / "snapshots" / ("b" * 40) / "data" / "train_sft-0.parquet", [{"messages": talk(("user", "2+2"), ("assistant", "4"))}])
    write(folder / "snapshots" / ("b" * 40) / "data" / "test_sft-0.parquet", [{"messages": []}])
    assert rows("hub:some/talks") == [row("2+2", "4", id="some/talks-1", source="some/talks", task="some/talks")]


@pytest.mark.parametrize("name", ["gsm8k", "slimorca", "lila", "redpajama"])
def test_streams_from_the_hub_are_read_as_they_come(name, caches, tmp_path, monkeypatch):
    """The hub's file system stands behind fsspec, as the disk does: a URL of the disk takes its place."""
    source = sources.SOURCES[name]
    monkeypatch.setattr(sources, "HUB", f"file://{tmp_path}")
    expected = lay_out(tmp_path / f"{source.hub}@{source.revision}", name)
    if (file := tmp_path / f"{source.hub}@{source.revision}" / LAID_OUT[name][0]).suffix == ".jsonl":
        file.write_text(file.read_text() + "\n\n")  # is no row
    assert list(sources.stream(name)) == expected
    assert not list(caches.iterdir())  # nothing is kept
    first = next(stream := sources.stream(name))
    assert first == expected[0] and first.where == f"{tmp_path}/{source.hub}@{source.revision}/{LAID_OUT[name][0]}:1"
    stream.close()


def test_a_stream_of_files_that_cannot_be_streamed_fetches_them(caches, tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "HUB", f"file://{tmp_path}")
    assert cached(caches, "doctor_patient")[1] == list(sources.stream("doctor_patient"))


@pytest.mark.parametrize("read", [rows, lambda spec: list(sources.stream(spec)), sources.origin])
def test_without_a_network(read):
    with pytest.raises(ValueError, match=r"^'openorca_gpt4' could not be had from the hub \(Open-Orca/OpenOrca\): .*(outgoing traffic has been|offline mode is enabled).*\. To go on "
                                         "without the hub, put its files into a folder, laid out as there, and write openorca_gpt4:FOLDER$"):
        read("openorca_gpt4")


def test_what_is_not_on_the_hub():
    with pytest.raises(ValueError, match=r"^'flan_cot' could not be had from the hub \(github.com/google-research/FLAN, flan/v2/cot_data\): .*, and write flan_cot:FOLDER$"):
        rows("flan_cot")
    with pytest.raises(ValueError, match=r"^'some/talks' could not be had from the hub \(some/talks\): .*\. To go on without the hub, put its files into a folder, laid out as there, and write FOLDER$"):
        rows("hub:some/talks")


# -------------------------------------------------------------------------------------------- by path

OURS = [({"messages": talk(("user", "2+2"), ("assistant", "4"), system="Add.")}, {"messages": talk(("user", "2+2"), ("assistant", "4"), system="Add.")}),
        ({"system_prompt": "Add.", "question": "2+2", "response": "4", "task": "sums", "answer": "4"},
         {"messages": talk(("user", "2+2"), ("assistant", "4"), system="Add."), "task": "sums", "answer": "4"}),
        ({"system_prompt": None, "question": "2+2", "response": None, "id": None}, {"messages": talk(("user", "2+2"), ("assistant", ""))}),
        ({"text": "Orcas\n swim.", "teacher": "me"}, {"messages": [], "text": "Orcas\n swim.", "teacher": "me"}),
        ({"text": None, "task": "poems"}, {"messages": [], "text": "", "task": "poems"})]


@pytest.mark.parametrize("suffix", ["jsonl", "parquet", "json", "csv"])
@pytest.mark.parametrize("item, fields", OURS)
def test_files_with_columns_of_ours(item, fields, suffix, tmp_path):
    if suffix == "csv" and "messages" in item:
        return
    path = write(tmp_path / f"mine.{suffix}", [item])
    expected = Row(**{"id": "mine-1", "source": "mine", "task": "mine", **fields})
    assert rows(path) == [expected] == list(sources.stream(str(path))) == rows(tmp_path)


def test_text_in_csv_and_json_stays_as_it_is(tmp_path):
    items = [{"question": q, "response": r, "answer": r} for q, r in (("4", "NA"), ("007", "None"), ("x,\n\"y\"", "2020-01-01"), ("nan", ""), (" a ", "1.50"))]
    for suffix in ("csv", "json", "jsonl"):
        assert [[r.messages[0]["content"], r.answer] for r in rows(write(tmp_path / f"a.{suffix}", items))] == [[i["question"], i["answer"]] for i in items]
    path = tmp_path / "b.csv"
    path.write_bytes("\ufeffquestion,response\r\n2+2,\"4\r\nfour\"\r\n".encode())
    assert rows(path)[0].messages == talk(("user", "2+2"), ("assistant", "4\r\nfour"))


def test_a_large_csv_file_with_line_ends_inside_its_texts(tmp_path):
    poem = "Orcas swim,\n" * 1000 + "all of them."
    (tmp_path / "a.csv").write_text("text,id\n" + "".join(f'"{poem}",{n}\n' for n in range(2000)), encoding="utf-8")  # 24 MB
    (pool,) = sources.pools(str(tmp_path / "a.csv"))
    assert len(pool) == 2000 and all((r.text, r.id) == (poem, str(n)) for n, r in enumerate(pool))


def test_a_text_file_is_one_text(tmp_path):
    (tmp_path / "b.txt").write_bytes("Orcas\r\n\r\nswim.\n".encode())
    (tmp_path / "a.txt").write_text("Ä", encoding="utf-8")
    expected = [Row([], text="Ä", id="a-1", source="a", task="a"), Row([], text="Orcas\n\nswim.\n", id="b-1", source="b", task="b")]
    assert rows(tmp_path) == expected and rows(tmp_path / "b.txt") == expected[1:]
    write(tmp_path / "c.jsonl", [{"text": "data"}])
    assert [r.text for r in rows(tmp_path)] == ["data"]  # beside data, text files are about it: licences and the like


def test_several_names_and_paths_joined_by_commas(tmp_path):
    gsm8k = lay_out(tmp_path / "gsm8k", "gsm8k")
    mine, text = write(tmp_path / "mine.jsonl", [OURS[0][0]]), tmp_path / "a.txt"
    text.write_text("Orcas.")
    expected = [*gsm8k, Row(id="mine-1", source="mine", task="mine", **OURS[0][1]), Row([], text="Orcas.", id="a-1", source="a", task="a")]
    assert rows(f"gsm8k, {mine},{text}", tmp_path) == expected == rows(f"gsm8k:{tmp_path / 'gsm8k'},{mine},{text}")


def test_a_folder_of_several_kinds_and_files(tmp_path):
    for name in ("b.parquet", "a.parquet", "d.jsonl", "sub/c.jsonl", "e.csv"):
        write(tmp_path / name, [{"question": name, "response": str(n)} for n in range(3)])
    assert [r.messages[0]["content"] + r.messages[1]["content"] for r in rows(tmp_path)] == [
        f"{name}{n}" for name in ("d.jsonl", "sub/c.jsonl", "a.parquet", "b.parquet", "e.csv") for n in range(3)]


def test_rows_of_a_table_are_read_in_any_order(tmp_path):
    write(tmp_path / "a.parquet", [{"question": str(n), "response": "x", "id": n} for n in range(2500)])
    (pool,) = sources.pools(str(tmp_path / "a.parquet"))
    assert isinstance(pool, sources.Table) and len(pool) == 2500
    for at in (2499, 0, 1000, 999, -1, 1001, 17):
        assert pool[at].id == pool[at].messages[0]["content"] == str(at % 2500)
    assert [r.id for r in pool[998:1003]] == ["998", "999", "1000", "1001", "1002"]
    with pytest.raises(IndexError, match="there are 2500 items, number 2500 is not among them"):
        pool[2500]


def test_rows_can_be_read_in_other_processes(tmp_path):
    write(tmp_path / "a.parquet", [{"question": str(n), "response": "x"} for n in range(4)])
    write(tmp_path / "b.jsonl", [{"input": str(n), "instruction": "", "output": "x"} for n in range(4)])
    for pool in sources.pools(f"{tmp_path / 'a.parquet'},dolphin:{tmp_path / 'b.jsonl'}"):
        with workers.shared(pool, 2) as each:
            assert list(each(getitem, [3, 0, 2, 1])) == [pool[n] for n in (3, 0, 2, 1)]


def test_progress_bars_are_as_they_were(tmp_path):
    import datasets
    path = write(tmp_path / "a.parquet", [{"text": "x"}])
    rows(path)
    assert datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        os.utime(path, (1, 1))
        rows(path)
        assert not datasets.is_progress_bar_enabled()
    finally:
        datasets.enable_progress_bars()


def test_the_origin_changes_with_content_and_not_with_time(tmp_path):
    lay_out(tmp_path / "gsm8k", "gsm8k")
    file, spec = tmp_path / "gsm8k" / LAID_OUT["gsm8k"][0], f"gsm8k:{tmp_path / 'gsm8k'}"
    before = sources.origin(spec)
    assert before == sources.origin("gsm8k", str(tmp_path)) and [len(x) for x in before] == [2]
    os.utime(file, (1, 1))
    (tmp_path / "gsm8k" / "main" / "test-00000.parquet").write_text("other")  # not read
    assert sources.origin(spec) == before != sources.origin(str(file))
    write(file, [{"question": "How few?", "answer": "#### 1"}])
    assert sources.origin(spec) != before


def test_a_file_that_was_written_anew_is_read_anew(tmp_path):
    path = tmp_path / "a.parquet"
    for n in range(2):
        write(path, [{"text": str(n)}])
        os.utime(path, (n, n))
        assert [r.text for r in rows(path)] == [str(n)]


# -------------------------------------------------------------------------------------------- bad input

def test_names_that_are_none(tmp_path):
    with pytest.raises(ValueError, match="^no source, mixture, file or folder named 'slimorka'; did you mean 'slimorca'"):
        rows("slimorka")
    with pytest.raises(ValueError, match=r"no file or folder .*/minne.jsonl; did you mean 'mine.jsonl'"):
        rows(write(tmp_path / "mine.jsonl", [OURS[0][0]]).with_name("minne.jsonl"))
    with pytest.raises(ValueError, match=rf"^the source 'slimorca' is not in {tmp_path}: there is no folder {tmp_path}/slimorca. Put its files there as they lie on the hub "
                                         r"\(Open-Orca/SlimOrca\), or leave `data` empty to take it from there$"):
        rows("slimorca", tmp_path)


def test_folders_without_files_that_can_be_read(tmp_path):
    (tmp_path / "gsm8k").mkdir()
    (tmp_path / "gsm8k" / "README.md").write_text("x")
    with pytest.raises(ValueError, match=r"gsm8k holds no .jsonl or .tsv or .parquet or .json or .csv or .txt file"):
        rows(tmp_path / "gsm8k")
    write(tmp_path / "gsm8k" / "train.parquet", LAID_OUT["gsm8k"][1])  # not where it lies on the hub
    with pytest.raises(ValueError, match=r"gsm8k holds no .* file named \*\*/main/\*\.\*$"):
        rows("gsm8k", tmp_path)


@pytest.mark.parametrize("suffix, message", [("parquet", "cannot be read as parquet .is it cut off.."), ("json", "cannot be read as json .is it cut off.."),
                                             ("jsonl", ":2: not JSON at character .* .is the line cut off..")])
def test_half_a_file(tmp_path, suffix, message):
    path = write(tmp_path / f"a.{suffix}", [{"question": "2+2", "response": str(n)} for n in range(3)])
    whole = path.read_bytes()
    path.write_bytes(whole[: whole.index(b'"1') + 1] if suffix != "parquet" else whole[: len(whole) // 2])
    with pytest.raises(RowError, match=f"a.{suffix}:? ?{message}"):
        rows(path)


def test_a_parquet_file_that_is_damaged_inside(tmp_path, capfd):
    parquet.write_table(pa.table({"text": ["x" * 1000] * 1000}), tmp_path / "a.parquet", compression="none", use_dictionary=False)
    damaged = bytearray((tmp_path / "a.parquet").read_bytes())
    damaged[4:200] = b"\xff" * 196
    (tmp_path / "a.parquet").write_bytes(damaged)
    with pytest.raises(RowError, match=r"a.parquet: cannot be read as parquet \(is it cut off\?\): Couldn't deserialize"):
        rows(tmp_path / "a.parquet")


@pytest.mark.parametrize("suffix", ["parquet", "jsonl", "json", "csv"])
def test_a_column_by_another_name(tmp_path, suffix, caches):
    where = rf"a.{suffix}:1" if suffix == "jsonl" else f"a.{suffix}"
    path = write(tmp_path / f"a.{suffix}", [{"inputs": "x", "target": "y", "task_name": "z", "template_type": "zs_opt"}])
    with pytest.raises(RowError, match=f"{where}: no column 'targets', which the source 'flan2021' has; did you mean 'target'"):
        rows(f"flan2021:{path}")
    assert suffix == "json" or not list(caches.iterdir())  # before a large file is copied
    write(path, [{"question": "x", "respons": "y"}])
    with pytest.raises(RowError, match=rf"{where}: missing \['response'\]; 'respons': did you mean 'response'"):
        rows(path)
    write(path, [{"zz": "x", "said": "y"}])
    with pytest.raises(RowError, match=rf"{where}: missing \['messages'\]; known: messages, text, system_prompt, question"):
        rows(path)


@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
@pytest.mark.parametrize("name, like", [("flan2021", "flan2021 or t0 or niv2 or cot or dialog"), ("dolphin", "dolphin"), ("gsm8k", "gsm8k or math_dataset or numglue")])
def test_a_file_with_columns_of_a_known_source(tmp_path, name, like, suffix):
    path = write(tmp_path / f"a.{suffix}", LAID_OUT[name][1])
    with pytest.raises(RowError, match=rf"a.{suffix}(:1)?: needs 'messages', or 'question' and 'response', or 'text'.*; its columns are those of the source {like}: write {name}:PATH"):
        rows(path)
    assert rows(f"{name}:{path}") == LAID_OUT[name][2]


def test_parquet_files_of_two_schemas(tmp_path):
    write(tmp_path / "a.parquet", [{"question": "x", "response": "y"}])
    write(tmp_path / "b.parquet", [{"question": "x", "response": "y", "task": "z"}])
    with pytest.raises(RowError, match="b.parquet: its schema is not that of a.parquet: 'task' is string here and missing there; give files of one schema, or name the others apart"):
        rows(tmp_path)
    write(tmp_path / "b.parquet", [{"response": "y"}, {"text": "z"}])
    with pytest.raises(RowError, match=r"b.parquet: missing \['question'\]"):
        rows(tmp_path)
    write(tmp_path / "0.parquet", [{"question": "x", "response": "y", "id": "z"}])
    with pytest.raises(RowError, match="a.parquet: its schema is not that of 0.parquet: 'id' is missing here and string there"):
        rows(tmp_path)
    (tmp_path / "0.parquet").unlink()
    write(tmp_path / "b.parquet", [{"question": "x", "response": 4}])
    with pytest.raises(RowError, match="b.parquet: its schema is not that of a.parquet: 'response' is int64 here and string there"):
        rows(tmp_path)
    with pytest.raises(RowError, match=r"b.parquet:1: messages\[1\]\['content'\] must be text, got int"):
        rows(tmp_path / "b.parquet")


def test_lines_that_are_broken(tmp_path):
    path = write(tmp_path / "a.jsonl", LAID_OUT["dolphin"][1])
    path.write_text(path.read_text() + '{"instruction": "x", \n')
    for spec in (path, f"dolphin:{path}"):
        pool = sources.pools(str(spec))[0]
        with pytest.raises(RowError, match=r"a.jsonl:3: not JSON at character 22: Expecting property name"):
            pool[2]
    path.write_text("[1]\n")
    with pytest.raises(RowError, match=r"a.jsonl:1: a line must hold an object, got '\[1\]'"):
        rows(f"dolphin:{path}")
    with pytest.raises(RowError, match=r"qasc_train.tsv:1: expected question, answer, explanation between tabs, got 2 fields"):
        rows(f"flan_cot:{write(tmp_path / 'qasc_train.tsv', [('a', 'b')])}")
    path = tmp_path / "a.csv"
    path.write_text("question,response\n1,2,3\n")
    with pytest.raises(RowError, match=r"a.csv: cannot be read as csv \(is it cut off\?\): .*Expected 2 columns, got 3"):
        rows(path)


@pytest.mark.parametrize("suffix, content", [("jsonl", b""), ("tsv", b"\n"), ("json", b""), ("json", b"[]"), ("csv", b""), ("csv", b"question,response\n"), ("txt", b"")])
def test_empty_files(tmp_path, suffix, content):
    (tmp_path / f"a.{suffix}").write_bytes(content)
    with pytest.raises(RowError, match=f"a.{suffix}: the file is empty$"):
        rows(tmp_path / f"a.{suffix}")


def test_a_parquet_file_without_rows(tmp_path):
    parquet.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "a.parquet")
    with pytest.raises(RowError, match="a.parquet: the file is empty$"):
        rows(tmp_path / "a.parquet")


@pytest.mark.parametrize("suffix", ["txt", "csv"])
def test_what_is_not_utf_8(tmp_path, suffix):
    (tmp_path / f"a.{suffix}").write_bytes(b"text\ncaf\xe9\n")
    with pytest.raises(RowError, match=f"a.{suffix}: cannot be read as .*('utf-8' codec can't decode byte 0xe9|invalid UTF8 data)"):
        rows(tmp_path / f"a.{suffix}")


def test_texts_that_were_taken_for_dates(tmp_path):
    with pytest.raises(RowError, match="a.json: 'answer' was taken for dates; write the file as JSONL, where text stays as it is"):
        rows(write(tmp_path / "a.json", [{"question": "When?", "response": "Then.", "answer": "2020-01-01"}]))


@pytest.mark.parametrize("name, item, message", [
    ("slimorca", {"conversations": [{"from": "human", "value": "x"}, {"from": "gpt"}]}, r"not laid out as the source 'slimorca' has it \(KeyError: 'value'\)"),
    ("slimorca", {"conversations": [{"value": "x"}]}, r"not laid out as the source 'slimorca' has it \(KeyError: 'from'\)"),
    ("slimorca", {"conversations": ["x"]}, r"not laid out as the source 'slimorca' has it \(TypeError: "),
    ("slimorca", {"conversations": 4}, r"not laid out as the source 'slimorca' has it \(TypeError: "),
    ("slimorca", {"conversations": None}, "messages must be a list of at least one turn"),
    ("slimorca", {"conversations": [{"from": "robot", "value": "x"}]}, r"no role \(messages\[0\]\) named 'robot'"),
    ("slimorca", {"conversations": TURNS[:2]}, "messages ends with a user turn: there is no answer to learn"),
    ("slimorca", {"conversations": [{"from": "human", "value": "x"}, {"from": "gpt", "value": None}]}, r"messages\[1\]\['content'\] must be text, got NoneType"),
    ("orca_chat", {"conversation": [{"input": "x"}], "instruction": ""}, r"not laid out as the source 'orca_chat' has it \(KeyError: 'output'\)"),
    ("orca_chat", {"conversation": "x", "instruction": ""}, r"not laid out as the source 'orca_chat' has it \(TypeError: "),
    ("orca_chat", {"conversation": [], "instruction": "Explain."}, "messages ends with a system turn"),
    ("gsm8k", {"question": "x", "answer": 4}, r"not laid out as the source 'gsm8k' has it \(TypeError: "),
    ("numglue", {"question": "x", "answer": 4.0}, r"not laid out as the source 'numglue' has it \(AttributeError: "),
    ("math_dataset", {"question": r"b'\x'", "answer": "4"}, r"not laid out as the source 'math_dataset' has it \(SyntaxError: "),
    ("dolphin", {"instruction": "", "input": "x", "output": 4}, r"messages\[1\]\['content'\] must be text, got int"),
    ("redpajama", {"text": 4}, r"messages\[0\]\['content'\] must be text, got int"),
])
def test_an_odd_item_is_named_by_file_and_line(tmp_path, name, item, message):
    good = {"math_dataset": {"question": "x", "answer": "4"}, "numglue": {"question": "x", "answer": "4"}}.get(name, LAID_OUT[name][1][0])
    (pool,) = sources.pools(f"{name}:{write(tmp_path / 'a.jsonl', [good, item])}")
    assert isinstance(pool[0], Row)
    with pytest.raises(RowError, match=f"a.jsonl:2: {message}"):
        pool[1]


def test_an_odd_item_of_a_table_is_named_by_its_number(tmp_path):
    path = write(tmp_path / "a.json", [LAID_OUT["orca_chat"][1][0], {"conversation": [{"input": "x"}], "instruction": "", "source": ""}])
    (pool,) = sources.pools(f"orca_chat:{path}")
    with pytest.raises(RowError, match=r"a.json:2: not laid out as the source 'orca_chat' has it \(KeyError: 'output'\)"):
        pool[1]
