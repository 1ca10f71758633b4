"""__main__.py: verbs, settings and mistakes, which end in one line and exit status 2."""

import json
import os
import re
import subprocess
import sys
from dataclasses import fields

import pytest
from conftest import ROOT

import orcalab
from orcalab import __main__ as cli, chatml, config, endpoint, exam, execute, families, model, procedural, recipes, report, sweep

KEPT = {"name", "stages", "tasks", "mixes", "doc", "start"}  # fields that a recipe sets and nobody else


def test_help_lists_every_verb_and_every_setting(capsys):
    for words in ([], ["--help"], ["-h"], ["help"], ["--lr", "1", "-h"]):
        assert cli.main(words) == 0
        said = capsys.readouterr().out
        assert said == cli.usage() + "\n"
    for verb in cli.VERBS:
        assert f"\n  {verb} " in said
    for f in {f for c in (config.Config, config.Recipe, endpoint.Teacher, exam.Exam, sweep.Sweep) for f in fields(c)}:
        assert (f"\n  --{f.name} " in said) == (f.name not in KEPT - {"tasks"})  # of a recipe no flag sets them; benchmarks have it, too
    assert "--recipe    name of the recipe, laptop if none is given: laptop or ablation or smoke" in said and config.help_of(config.Config)["seq_len"] in said


@pytest.mark.parametrize("verb", cli.VERBS)
def test_help_on_a_verb_lists_what_it_takes_and_nothing_else(verb, capsys):
    assert cli.main([verb, "--lr", "1", "-h"]) == 0
    said = capsys.readouterr().out
    assert said == cli.usage(verb) + "\n" and re.findall(r"^  (\w+) ", said.split("--recipe")[0], re.M) == [verb] and set(said.splitlines()) <= {*cli.usage().splitlines(), f"usage: orcalab {verb} [--name value ...]"}
    listed = set(re.findall(r"^  --(\w+) ", said, re.M))
    for name in listed:
        assert cli.arguments([f"--{name}", "1"], verb) == {name: "1"}
    if verb == "run":
        have = [execute.knobs(p) for p in sorted((ROOT / "notebooks").glob("*_stage*.ipynb"))]
        assert len(re.findall(r"^  --\w+ ", said, re.M)) == len(listed)  # each once
        assert listed == set(cli.COMMON) == set.intersection(*map(set, have))
    else:
        own = {"teach": cli.WHOM, "chat": cli.TALK, "evaluate": cli.EXAM | cli.JUDGING, "sweep": cli.SWEEP}.get(verb, set()) | {f.name for f in fields(config.Recipe)} - KEPT
        assert own <= listed and ({f.name for f in fields(config.Config)} - KEPT <= listed) == (verb not in ("chat", "export"))
    if verb not in ("run", "sweep", "evaluate"):
        assert "stage" in listed


def test_importing_the_package_and_asking_for_help_take_no_time():
    """Seconds of a core, as other tests run beside this one; the best of five processes."""
    def cost(code):
        def once():
            before = os.times()
            subprocess.run([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.DEVNULL, check=True)
            after = os.times()
            return sum(after[2:4]) - sum(before[2:4])
        return min(once() for _ in range(5))
    nothing = cost("pass")
    assert cost("import orcalab") - nothing < 0.3
    assert cost("from orcalab import chatml, config, execute, families, packing, panels, parser, progress, recipes, safety, strategies, tokens") - nothing < 0.3
    assert cost("from orcalab.__main__ import main\nmain(['--help'])") < 0.5


def test_version(capsys):
    assert cli.main(["--version"]) == 0 and capsys.readouterr().out == f"{orcalab.__version__}\n"
    from importlib.metadata import version
    assert version("orcalab") == orcalab.__version__


@pytest.mark.parametrize("words, message", [
    (["trian"], "no verb named 'trian'; did you mean 'train'?"),
    (["train", "--recipe", "smoek"], "no recipe named 'smoek'; did you mean 'smoke'?"),
    (["train", "--seqlen", "8"], "no parameter named 'seqlen'; did you mean 'seq_len'?"),
    (["train", "--lr"], "expected --name value, got '--lr'"),
    (["train", "lr", "1"], "expected --name value, got 'lr 1'"),
    (["train", "--recipe", "smoke", "--lr", "fast"], "lr must be float, got 'fast'"),
    (["train", "--recipe", "smoke", "--steps", "inf"], "steps must be"),
    (["train", "--recipe", "smoke", "--stage", "stage2"], "no stage named 'stage2'; did you mean 'stage2_chatgpt'?"),
    (["prepare", "--recipe", "smoke", "--base", "tiny-radnom"], "no base model named 'tiny-radnom'; did you mean 'tiny-random'?"),
    (["prepare", "--recipe", "smoke", "--rows", "no/such.jsonl"], "no file or folder no/such.jsonl"),
    (["evaluate", "--recipe", "smoke", "--stage", "stage1_flan"], "no parameter named 'stage'"),
])
def test_a_mistake_is_one_line_and_status_2(words, message, capsys, tmp_path):
    if "smoke" in words:
        words = [*words, "--out", str(tmp_path)]
    assert cli.main(words) == 2
    said = capsys.readouterr()
    assert said.err.startswith(f"orcalab: {message}") and said.err.count("\n") == 1 and not said.out


def test_a_stage_that_starts_from_an_untrained_one(capsys, tmp_path):
    assert cli.main(["train", "--recipe", "smoke", "--out", str(tmp_path), "--stage", "stage2_chatgpt"]) == 2
    assert "stage2_chatgpt starts from stage1_flan, which is not trained yet: no " in capsys.readouterr().err
    assert not (tmp_path / "stage2_chatgpt").exists()


def test_a_bad_row_stops_before_anything_is_trained(capsys, tmp_path):
    good = json.dumps({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]})
    (tmp_path / "rows.jsonl").write_text(good + "\n" + good[:-9] + "\n")
    assert cli.main(["train", "--recipe", "smoke", "--out", str(tmp_path / "out"), "--rows", str(tmp_path / "rows.jsonl")]) == 2
    assert "rows.jsonl:2: not JSON at character" in capsys.readouterr().err and not list((tmp_path / "out").glob("stage*"))


def test_rows_from_a_file_train_a_stage(capsys, tmp_path):
    lines = [{"question": f"{n}+1", "response": str(n + 1), "system_prompt": "Add."} for n in range(300)]
    (tmp_path / "rows<i>.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    given = ["--recipe", "smoke", "--out", str(tmp_path / "out"), "--rows", str(tmp_path / "rows<i>.jsonl"), "--system", "keep", "--stage", "stage1_flan"]
    assert cli.main(["train", *given]) == 0
    said = capsys.readouterr().out
    tokenizer = model.load_tokenizer("tiny-random")
    ids = [chatml.encode([{"role": r, "content": x[k]} for r, k in (("system", "system_prompt"), ("user", "question"), ("assistant", "response"))], tokenizer) for x in lines]
    tokens, targets = sum(len(i) for i, _ in ids), sum(sum(m) for _, m in ids)
    assert f"\nstage1_flan: 300 rows proved, {tokens} tokens, {targets} targets; 3 steps, 3 packs, " in f"\n{said}"  # the block in which three steps are full
    assert re.fullmatch(r"\n\d+<\|im_end\|>", config.read_json(tmp_path / "out" / "stage1_flan" / "preflight.json")["targets_of_first_row"])
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "rows&lt;i&gt;.jsonl" in page and "rows<i>.jsonl" not in page  # what a user names is text, not markup


def test_the_command_ends_without_a_traceback():
    job = subprocess.run([sys.executable, "-m", "orcalab", "trian"], capture_output=True, text=True, cwd=ROOT)
    assert (job.returncode, job.stdout) == (2, "") and job.stderr == "orcalab: no verb named 'trian'; did you mean 'train'?\n"


def test_help_may_be_cut_short_by_its_reader():
    job = subprocess.run(f"{sys.executable} -m orcalab --help | head -1", shell=True, capture_output=True, text=True, cwd=ROOT)
    assert job.stdout.startswith("usage: orcalab VERB") and job.stderr == ""


def test_knobs_are_the_names_of_the_tagged_cell(tmp_path):
    cells = [{"cell_type": "code", "metadata": {}, "source": ["a = 1\n"]},
             {"cell_type": "code", "metadata": {"tags": ["parameters"]},
              "source": ["# knobs\n", "recipe = \"laptop\"  # name of the recipe\n", "\n", "lr = None  # peak\n", "# x = 1\n"]}]
    path = tmp_path / "00_tour.ipynb"
    path.write_text(json.dumps({"cells": cells}))
    assert execute.knobs(path) == ["recipe", "lr"]
    for c in cells:
        c["source"] = "".join(c["source"])  # a notebook may hold a cell as one string, too
    path.write_text(json.dumps({"cells": cells}))
    assert execute.knobs(path) == ["recipe", "lr"]


def test_run_refuses_a_knob_that_no_notebook_has(capsys, tmp_path):
    if not (ROOT / "notebooks" / "00_tour.ipynb").exists():
        pytest.skip("the notebooks are not written yet")
    assert cli.main(["run", "--recipe", "smoke", "--out", str(tmp_path), "--clip", "1"]) == 2
    assert "run takes base, lr, out, recipe, seed, steps, which every stage's notebook has, and not clip;" in capsys.readouterr().err


def test_a_finding_before_anything_is_evaluated(recipe):
    page, told = report.write_report(recipe)
    assert told == "no student was evaluated yet"
    text = page.read_text(encoding="utf-8")
    assert "a program stands in for GPT-4" in text


def test_glance_reads_progress_and_forgives_half_a_file(tmp_path):
    path = tmp_path / "x.progress"
    assert execute.glance(path) == ""
    path.write_text('{"what": "tr')
    assert execute.glance(path) == ""
    path.write_text(json.dumps({"what": "train", "done": 3, "total": 9, "left": 75.2, "note": "loss 2.1"}))
    assert execute.glance(path) == "train: 3/9, 1:15 left, loss 2.1"


# --------------------------------------------------------------------------------------------- progress

def test_progress_speaks_in_plain_lines_when_nobody_watches(capsys, monkeypatch, tmp_path):
    from orcalab.progress import Progress
    monkeypatch.setenv("ORCALAB_PROGRESS", str(tmp_path / "now"))
    with Progress(4, "count") as bar:
        bar.resume(1)
        for _ in range(3):
            bar.advance(1, "note")
    first, last = capsys.readouterr().out.splitlines()
    assert first.startswith("count: 2/4, 0:00 left, note") and last == "count: 4/4, took 0:00, note"
    state = config.read_json(tmp_path / "now")
    assert (state["what"], state["done"], state["total"], state["left"]) == ("count", 4, 4, 0)
    with Progress(2, "") as bar:
        bar.advance()
    assert capsys.readouterr().out == ""


def test_choose_tries_strategies_and_says_what_comes_next(tmp_path, capsys):
    assert cli.main(["choose", "--recipe", "smoke", "--out", str(tmp_path), "--max_new_tokens", "2"]) == 0
    said, found = capsys.readouterr().out, config.read_json(tmp_path / "choose" / "stage3_gpt4" / "strategies.json")
    assert set(found) == {families.family_of(t.name).name for t in recipes.TASKS}
    assert all(c["chosen"] == c["own"] == next(iter(c["tried"])) and sum(t["right"] for t in c["tried"].values()) == 0 for c in found.values())  # a random model
    assert "stage2_chatgpt, where stage3_gpt4 starts, is not trained in" in said and "no answer was right under any strategy, so this decides nothing" in said
    assert f"--chosen {tmp_path / 'choose' / 'stage3_gpt4' / 'strategies.json'} --first 20 --out {tmp_path} " in said and "(student: tiny-random)" in said
    held = {e["question"] for q in procedural.held_out(recipes.TASKS, recipes.get("smoke").questions).values() for e in q}
    asked = {json.loads(line)["question"] for p in (tmp_path / "choose").rglob("*.jsonl") for line in p.read_text().splitlines()[1:]}
    assert asked and not asked & held  # none that students are scored on


def test_a_misspelt_message_is_said_before_anybody_is_asked(tmp_path, capsys):
    assert cli.main(["evaluate", "--recipe", "smoke", "--out", str(tmp_path / "out"), "--messages", "cautious, emty"]) == 2
    assert "no strategy named 'emty'; did you mean 'empty'?" in capsys.readouterr().err and not (tmp_path / "out").exists()
    assert cli.main(["evaluate", "--recipe", "smoke", "--out", str(tmp_path / "out")]) == 0
    assert f"no student is trained in {tmp_path / 'out'}, so the base model alone is asked" in capsys.readouterr().out


# ------------------------------------------------------------------------------------------------- plan

def test_a_plan_is_what_then_runs(tmp_path, capsys):
    given = ["--recipe", "smoke", "--stage", "stage1_flan", "--out", str(tmp_path), "--device", "cpu"]
    assert cli.main(["plan", *given]) == 0
    said = capsys.readouterr().out
    assert not (tmp_path / "stage1_flan").exists() and "is trained" not in said  # nothing was trained
    steps, tokens, targets = (int(x.replace(",", "")) for x in re.search(r"([\d,]+) steps of .*: ([\d,]+) tokens, ([\d,]+) targets", said).groups())
    assert cli.main(["train", *given]) == 0
    done = config.read_json(tmp_path / "stage1_flan" / "results.json")
    assert (done["steps"], done["tokens"], done["targets"]) == (steps, tokens, targets)
    capsys.readouterr()
    assert cli.main(["plan", *given]) == 0
    assert re.search(rf"stage1_flan is trained: {done['peak_gib']:.2f} GiB at its peak, {done['planned_gib']:.2f} were planned; 0\.00 hours", capsys.readouterr().out)


def test_a_plan_needs_neither_weights_nor_corpora_nor_a_gpu(tmp_path, capsys):
    assert cli.main(["plan", "--recipe", "a100_13b", "--on", "A100-80", "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert said.count("13.02 billion weights, on A100-80") == 3 and said.count("of 78.7: fits") == 3
    assert "estimated: 3,200,000 rows of 758 tokens (Orca 1: 2.7 in a pack of 2,048), half of them targets" in said
    assert "exact, once the rows are prepared: orcalab prepare --recipe a100_13b" in said
    assert cli.main(["plan", "--recipe", "orca2_7b", "--on", "A100-80", "--out", str(tmp_path)]) == 0
    assert "stage1_flan needs 130.3 GiB at its peak, and A100-80 has 78.7; with recompute 1" in capsys.readouterr().out  # fp32 masters are for several cards
    assert cli.main(["plan", "--recipe", "a100", "--on", "A1000", "--out", str(tmp_path)]) == 2
    assert "no device named 'A1000'; did you mean 'A100-80'" in capsys.readouterr().err
