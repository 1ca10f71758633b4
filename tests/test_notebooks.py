"""The notebooks run, in order, through the same command that a user types; what is done is not done again."""

import html
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import nbformat
import psutil
import pytest
from conftest import ROOT, script
from nbformat.sign import NotebookNotary
from serving import Proxy
from test_teacher import said as reply

from orcalab import config, evaluate, execute, recipes

NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))


def command(*words, cwd=ROOT):
    return subprocess.run([sys.executable, "-m", "orcalab", *words], capture_output=True, text=True, cwd=cwd,
                          env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)})


def alone(name, out, *parameters):
    """Execute one notebook by papermill itself, as somebody in batch would."""
    given = [w for n, v in (("recipe", "smoke"), ("out", out), *parameters) for w in ("-p", n, str(v))]
    return subprocess.run([sys.executable, "-m", "papermill", str(ROOT / "notebooks" / name), str(out / name), "--no-progress-bar", *given],
                          capture_output=True, text=True, cwd=ROOT / "notebooks", env={**os.environ, "OMP_NUM_THREADS": "1", "OPENAI_API_KEY": "of-mine"})


@pytest.fixture(scope="module")
def corridor(tmp_path_factory):
    """(folder, what was printed, seconds of a core) of `orcalab run --recipe smoke`, its `out` and `base` given relative to a user's own folder."""
    from orcalab import model
    here, begun = tmp_path_factory.mktemp("corridor"), os.times()
    model.save(here / "my_llama", *model.tiny_random())
    job = command("run", "--recipe", "smoke", "--out", "run", "--base", "my_llama", cwd=here)
    assert job.returncode == 0, job.stdout[-3000:] + job.stderr[-3000:]
    return here / "run", job.stdout, sum(os.times()[2:4]) - sum(begun[2:4])


def test_the_smoke_recipe_runs_every_notebook(corridor):
    out, printed, seconds = corridor
    assert [p.name for p in sorted((out / "notebooks").iterdir())] == [p.name for p in NOTEBOOKS]  # no log, no half-written file
    assert list(dict.fromkeys(re.findall(rf"^\[ *\d+/{len(NOTEBOOKS)}\] (\w+)", printed, re.M))) == [p.stem for p in NOTEBOOKS]  # one that takes long says so again
    assert seconds < 300  # under two minutes of two cores on a machine of its own (LOG.md); other tests beside it make the same work cost more


def test_the_executed_copies_hold_results_and_no_error(corridor):
    for path in sorted((corridor[0] / "notebooks").iterdir()):
        cells = [c for c in config.read_json(path)["cells"] if c["cell_type"] == "code"]
        kinds = {o["output_type"] for c in cells for o in c["outputs"]}
        assert "error" not in kinds and "stream" in kinds and all(c["execution_count"] for c in cells if c["source"])
        streams = "".join("".join(o["text"]) for c in cells for o in c["outputs"] if o["output_type"] == "stream" and o["name"] == "stderr")
        assert "Warning" not in streams, f"{path.name}: {streams[-500:]}"
        assert NotebookNotary().check_signature(nbformat.read(path, 4))  # trusted: JupyterLab draws its views as they were left


def test_a_run_is_drawn_once_in_an_executed_copy_however_many_steps_it_took(corridor):
    for name, calls in (("06_stage1_flan", 1), ("07_stage2_chatgpt", 1), ("08_stage3_gpt4", 1), ("13_small_gpu", 1)):
        cells = [c for c in config.read_json(corridor[0] / "notebooks" / f"{name}.ipynb")["cells"] if c["cell_type"] == "code"]
        figures = lambda c: sum("application/vnd.plotly.v1+json" in o.get("data", {}) for o in c["outputs"])
        assert [figures(c) for c in cells if "watching=show.Live(" in "".join(c["source"])] == [0] * calls
        assert [figures(c) for c in cells if "show.training(" in "".join(c["source"])] == [1] * calls


def test_the_small_gpu_notebook_leaves_an_adapter_and_the_model_it_makes(corridor):
    folder = corridor[0] / "small_gpu"
    assert (folder / "adapter" / "adapter_model.safetensors").exists() and config.read_json(folder / "config.json")["method"] == "qlora"
    assert config.read_json(folder / "results.json")["merged"]["relative"] < 0.1


def test_the_corridor_leaves_students_answers_and_a_report(corridor):
    out, printed, _ = corridor
    stages = ("stage1_flan", "stage2_chatgpt", "stage3_gpt4", "answer_only")
    for stage in stages:
        assert {"config.json", "metrics.jsonl", "model", "preflight.json", "results.json"} <= {p.name for p in (out / stage).iterdir()}
    assert {p.name.split(".")[0] for p in (out / "answers").glob("*.jsonl")} == {"base", *stages}
    page = (out / "report.html").read_text(encoding="utf-8")
    for heading in ("What each stage taught", "Which answers need explaining", "Which system message wins where", "Loss by stage", "Answers to read"):
        assert f">{heading}</h2>" in page
    read = page.split(">Answers to read</h2>")[1].split("<h2")[0]
    answer = evaluate.read_answers(out / "answers")["stage3_gpt4", "cautious"][0]
    assert read.count("gold: ") == 12 and html.escape(answer["question"].strip()) in read and html.escape(answer["text"].strip()) in read
    assert "a program stands in for GPT-4" in page and "plotly" in page and not re.search(r'<(script|link)[^>]+(src|href)="https?:', page)
    assert "explained and erased minus answers only" in printed and "run/report.html" in printed
    assert config.read_json(out / "stage1_flan" / "config.json")["origin"]["from"] == str(out.parent / "my_llama")


def test_the_readme_s_pictures_are_of_what_the_views_show(corridor):
    """Those of the README itself are of the recorded run; here the same functions on this one."""
    rec = recipes.get("smoke", out=str(corridor[0]), base=str(corridor[0].parent / "my_llama"))
    views = script("benchmarks/pictures.py").views(rec)
    assert re.findall(r"<b>(\w+)</b> [\d.]+ nats a target", views["loss_map"]) == ["base", *(s.name for s in rec.stages)]
    assert re.findall(r"<th[^>]*>([\w-]*)</th>", views["switchboard"]) == ["", "base", "stage3_gpt4", "answer_only", "cautious", "direct-answer", "step-by-step"]
    assert len(re.findall(r"\[\d+ tokens, (?:stop|length)\]</td>", views["switchboard"])) == 9


def test_a_second_run_skips_what_is_done_and_only_that(corridor):
    out = corridor[0]
    again = lambda *more: command("run", "--recipe", "smoke", "--out", "run", "--base", "my_llama", *more, cwd=out.parent)
    job = again()
    assert job.returncode == 0 and job.stdout.count("done before") == len(NOTEBOOKS)
    last = out / "notebooks" / NOTEBOOKS[-1].name
    executed = last.read_bytes()
    last.unlink()
    job = again()
    assert job.returncode == 0 and job.stdout.count("done before") == len(NOTEBOOKS) - 1
    last.write_bytes(executed)  # that of the first time, for other tests
    job = again("--seed", "7")
    assert (job.returncode, job.stdout) == (2, "")  # refused before the first notebook, not by the seventh
    assert re.search(r"stage1_flan holds a run with other inputs \(seed: 0 -> 7\)", job.stderr)


VARIES = {  # all that may differ between two runs of the same: by name, what it looks like in an executed copy
    "a folder": rf"{re.escape(tempfile.gettempdir())}/tmp\w+|<out>",
    "a widget's name": r'"model_id": "\w+"',
    "time": r"\d+:\d\d left|took \d+:\d\d|\d+\.\d\d s\b|in [\d.]+ (?:min|s\b)|\nseconds +[\d.]+ +[\d.]+|(?<=seconds</td>)<td[^<]*>[\d.]+|(?<=\d% ) +\d+\.\d\d +\d+\.\d\d\n|(?<= USD) +[\d.]+|20\d\d-\d\d-\d\dT[\d:+]+",
    "speed": r'[\d.,]+ (tokens|targets|calls)/s|MFU [\d.]+%|tokens a second: [\d,]+|"y": \[[^]]*\], "yaxis": "y5"',
    "memory": r'measured \d\.\d\d|\npeak GiB +\S+ +\S+|(?<="measured peak", "type": "scatter", "x": )\[[^]]*\]',
    "a port, and what is named after it": r"http://127\.0\.0\.1:\d+|&quot;[0-9a-f]{16}&quot;|pair\.cc:\d+\] [^)]*",
    "which of several calls is answered first": r"asked-here: 1/.* spent",
    "the size of files with times in them": r"[\d,]+ bytes cut to [\d,]+|files, [\d,]+ bytes",
}


def shown(out, name):
    """{cell: what it shows, words, tables and figures, without what may vary} of an executed copy."""
    cells = {}
    for n, cell in enumerate(config.read_json(out / "notebooks" / name)["cells"]):
        text = "".join("".join(o["text"]) if "text" in o else json.dumps(o["data"], sort_keys=True, ensure_ascii=False) for o in cell.get("outputs", ())).replace(str(out), "<out>")
        text = re.sub(r"fetch [^\n]*\n", "", text)  # what is fetched once is told the first time
        for what, pattern in VARIES.items():
            text = re.sub(pattern, f"<{what}>", text)
        cells[n, "".join(cell["source"]).replace(str(out), "<out>")] = text
    return cells


@pytest.mark.long
def test_twice_in_a_row_gives_the_same_numbers(corridor):
    """Two minutes: every notebook once more into another folder, and all that they show, cell by cell."""
    out = corridor[0]
    job = command("run", "--recipe", "smoke", "--out", "again", "--base", "my_llama", cwd=out.parent)
    assert job.returncode == 0, job.stderr[-3000:]
    differ, numbers = [], 0
    for path in NOTEBOOKS:
        once, twice = shown(out, path.name), shown(out.with_name("again"), path.name)
        assert once.keys() == twice.keys()
        differ += [(path.name, cell, once[cell], twice[cell]) for cell in once if once[cell] != twice[cell]]
        numbers += sum(len(re.findall(r"\d+\.\d+", text)) for text in once.values())
    assert differ == [] and numbers > 5000  # what is masked has not taken all that there is
    assert [p.relative_to(out).as_posix() for p in sorted(out.glob("*/model/model.safetensors"))] == ["answer_only/model/model.safetensors", "long/model/model.safetensors", "small_gpu/model/model.safetensors"] + [
        f"{s}/model/model.safetensors" for s in ("stage1_flan", "stage2_chatgpt", "stage3_gpt4")]
    for weights in out.glob("*/model/model.safetensors"):
        assert weights.read_bytes() == (out.with_name("again") / weights.relative_to(out)).read_bytes(), weights


def test_a_browser_draws_the_report_without_an_error(corridor):
    browser = shutil.which("chromium")
    if not browser:
        pytest.skip("no chromium on this machine")
    page, old = corridor[0] / "report.html", corridor[0] / "old.html"
    opened = lambda path: subprocess.run([browser, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--virtual-time-budget=8000", "--dump-dom",
                                          path.as_uri()], capture_output=True, text=True, timeout=180)
    text, job = page.read_text(encoding="utf-8"), opened(page)
    figures = text.count('class="plotly-graph-div"')
    assert figures >= 6 and job.stdout.count('class="main-svg"') >= figures and "Uncaught" not in job.stderr
    old.write_text(text.replace("DecompressionStream", "NotYetInvented"), encoding="utf-8")  # as a browser of some years ago sees it
    job = opened(old)
    told = re.findall(r'<figure role="img" aria-label="(.{9})[^"]*">.*?</noscript>(.{9})', job.stdout, re.S)
    assert len(told) == figures and all(words == shown for words, shown in told) and 'class="main-svg"' not in job.stdout and "Uncaught" not in job.stderr


def test_a_misspelt_parameter_stops_a_notebook_before_it_works(tmp_path):
    job = alone("06_stage1_flan.ipynb", tmp_path, ("stpes", 2))
    assert job.returncode and "no parameter of this notebook named 'stpes'; did you mean 'steps'?" in job.stderr
    assert not (tmp_path / "stage1_flan").exists()
    job = alone("06_stage1_flan.ipynb", tmp_path, ("recipe", "smok"))
    assert job.returncode and "no recipe named 'smok'; did you mean 'smoke'?" in job.stderr


# ------------------------------------------------------------------------------------------------- alone, and with other knobs

REACHED = {  # how one sees that a knob reached the work: from its value, what was printed, and the config.json of each run that it left
    "seed": lambda value, said, made: re.search(rf"seed {value}\b", said) or {c["seed"] for c in made} == {value},
    "base": lambda value, said, made: f"base {value}" in said or re.search(f"base +({value.name}|[0-9]+ tokens, {value.name})", said) or [c["origin"]["from"] for c in made if c["name"] == "stage1_flan"] == [str(value)],
    "llama": lambda value, said, made: re.search(f"llama.* {value.name}", said),
    "my_rows": lambda value, said, made: "a-row-of-mine-1" in said and "2 rows of {'mine': 2}" in said,
    "url": lambda value, said, made: "That is not a number." in said and value.split()[-1] in said,
    "ablation": lambda value, said, made: "2 seeds, 12 questions each" in said,
    "lr": lambda value, said, made: {c["name"] for c in made if c["lr"] == value} in ({"stage1_flan"}, {"stage2_chatgpt"}, {"stage3_gpt4", "answer_only"}),  # this notebook's stage, and not one before
    "steps": lambda value, said, made: {c["name"] for c in made if c["steps"] == value} in ({"stage1_flan"}, {"stage2_chatgpt"}, {"stage3_gpt4", "answer_only"}),
    "max_new_tokens": lambda value, said, made: f"up to {value} new tokens" in said and f"cut at {value} new tokens" in said,
    "grid": lambda value, said, made: f"5 messages x 6 tasks x {value} questions" in said,
    "tasks": lambda value, said, made: "bbh (1 of 27 tasks)" in said,
    "data": lambda value, said, made: (value / "bbh" / "navigate.json").exists() and "bbh (1 of 27 tasks)" in said,
    "few": lambda value, said, made: {c["steps"] for c in made if c["name"] in ("long", "small_gpu")} | {c["steps"] for c in made if "scale_out" in c["out"]} == {value},
    "tokens": lambda value, said, made: [c["seq_len"] for c in made if c["name"] == "long"] == [value],
    "rank": lambda value, said, made: [c["lora_rank"] for c in made] == [value],
    "processes": lambda value, said, made: f"packs of 512 tokens, by one process and by {value}, in" in said and f"--nproc_per_node {value} " in said,
}


@pytest.fixture(scope="module")
def turned(tmp_path_factory):
    """{knob: a value that no recipe has}: a student, a tokenizer, rows, an endpoint, questions and runs of one's own."""
    from orcalab import evaluate, generate, model, procedural, recipes
    here = tmp_path_factory.mktemp("mine")
    model.save(here / "my_student", *model.tiny_random(5))
    (here / "my_llama").mkdir()
    shutil.copy(model.llama_standin() / "tokenizer.model", here / "my_llama")
    (here / "mine.jsonl").write_text("".join(json.dumps({"id": f"a-row-of-mine-{n}", "question": f"{n} + 1?", "response": str(n + 1)}) + "\n" for n in range(2)))
    (here / "data" / "bbh").mkdir(parents=True)
    (here / "data" / "bbh" / "navigate.json").write_text(json.dumps({"examples": [{"input": f"Take {n} steps. Are you back?\nOptions:\n- Yes\n- No", "target": "No"} for n in range(1, 5)]}))
    rec, student, proxy = recipes.get("smoke", out=str(here / "runs")), generate.Student("tiny-random", "cpu", "fp32"), Proxy(0, reply=lambda headers, body: reply("That is not a number."))
    evaluate.ask(student, "WHO", "cautious", procedural.held_out(rec.tasks, rec.questions), here, rec)
    (answers,) = here.glob("WHO.*.jsonl")
    for seed in (8, 9):  # two ablation runs, in which everybody answered alike
        config.write_json(here / f"run-{seed}" / "stage" / "config.json", {"seed": seed})
        (here / f"run-{seed}" / "answers").mkdir()
        for who in ("stage1_flan", "bare_answers", "explained_kept", "explained_erased", "explained_generic"):
            for message in config.listed(recipes.get("ablation").messages):
                text = answers.read_text(encoding="utf-8").replace('"WHO"', f'"{who}"').replace('"system": "cautious"', f'"system": "{message}"')
                (here / f"run-{seed}" / "answers" / f"{who}.{message}.jsonl").write_text(text, encoding="utf-8")
    yield {"seed": 3, "base": here / "my_student", "llama": here / "my_llama", "my_rows": here / "mine.jsonl", "url": f"{proxy.url} my-model", "ablation": f"{here / 'run-8'}, {here / 'run-9'}",
           "lr": 2e-4, "steps": 2, "max_new_tokens": 5, "grid": 2, "tasks": "bbh", "data": here / "data", "few": 2, "tokens": 1100, "rank": 4, "processes": 3}
    proxy.close()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_runs_alone_with_every_knob_turned(path, turned, tmp_path):
    """First thing after install, in a kernel of its own, into an empty folder: a stage that it starts from is trained there."""
    knobs = {name: turned[name] for name in execute.knobs(path) if name not in ("recipe", "out")}  # a new knob needs a value, and a way to see that it mattered
    job = alone(path.name, tmp_path, *knobs.items())
    assert job.returncode == 0, job.stderr[-3000:]
    cells = [c for c in config.read_json(tmp_path / path.name)["cells"] if c["cell_type"] == "code"]
    said = "\n".join("".join(o.get("text", "") or o["data"].get("text/html", "")) for c in cells for o in c["outputs"])
    made = [config.read_json(p) for p in sorted(tmp_path.glob("**/config.json")) if p.parent.name != "model"]
    assert [name for name, value in knobs.items() if not REACHED[name](value, said, made)] == [], said[:2000]
    trained = re.findall(r"^(\w+) is not trained in (.*): training it first, 3 steps of 2048 tokens\. Stopping is safe", said, re.M)
    before = {"07": ["stage1_flan"], "08": ["stage1_flan", "stage2_chatgpt"]} | dict.fromkeys(("09",), ["stage1_flan", "stage2_chatgpt", "stage3_gpt4"]) | dict.fromkeys(("10", "11"), ["stage1_flan", "stage2_chatgpt", "stage3_gpt4", "answer_only"])
    assert trained == [(name, str(tmp_path)) for name in before.get(path.stem[:2], [])]


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_stopping_the_command_stops_the_notebook_too(name, tmp_path):
    job = psutil.Popen([sys.executable, "-m", "orcalab", "run", "--recipe", "smoke", "--out", str(tmp_path)], stdout=subprocess.PIPE,
                       stderr=subprocess.PIPE, text=True, cwd=ROOT,
                       preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))  # a launcher in the background has it ignored
    started = time.time()
    while not [c for c in job.children(recursive=True) if "ipykernel_launcher" in c.cmdline()]:
        assert time.time() - started < 60 and job.poll() is None
        time.sleep(0.1)
    time.sleep(1.5)
    children = job.children(recursive=True)
    job.send_signal(getattr(signal, name))
    assert "the same command goes on" in job.communicate(timeout=30)[1] and job.returncode == 130
    assert psutil.wait_procs(children, timeout=20)[1] == []


def test_a_notebook_that_fails_says_where_and_leaves_its_copy(tmp_path):
    for room in ("orcalab", "notebooks"):
        shutil.copytree(ROOT / room, tmp_path / room, ignore=shutil.ignore_patterns("runs", "__pycache__"))
    tour = tmp_path / "notebooks" / "00_tour.ipynb"
    book = json.loads(tour.read_text())
    book["cells"].insert(1, {"cell_type": "code", "execution_count": None, "id": "mistake", "metadata": {}, "outputs": [], "source": "print('so far')\nnever_named"})
    tour.write_text(json.dumps(book))
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-m", "orcalab", "run", "--recipe", "smoke", "--out", "runs"], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120)
    copy = tmp_path / "runs" / "notebooks" / "00_tour.ipynb"
    assert done.returncode == 1 and "00_tour" in done.stderr and "name 'never_named' is not defined" in done.stderr and str(copy.relative_to(tmp_path)) in done.stderr
    assert "so far" in copy.read_text() and sorted(p.name for p in copy.parent.iterdir()) == ["00_tour.ipynb", "00_tour.log"]


def test_where_jupyter_can_keep_nothing_a_notebook_is_executed_all_the_same(tmp_path):
    book, target = tmp_path / "a.ipynb", tmp_path / "out" / "a.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("print(6 * 7)")]), book)
    code = f"import time; from pathlib import Path; from orcalab import execute; a, b = Path({str(book)!r}), Path({str(target)!r}); execute.execute(execute.begin(a, b, True), a, b, {{}}, 'a', time.time())"
    job = subprocess.run([sys.executable, "-c", code], env={**os.environ, "JUPYTER_DATA_DIR": str(tmp_path / "a.ipynb" / "no folder"), "JUPYTER_RUNTIME_DIR": str(tmp_path / "runtime")}, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert job.returncode == 0 and job.stdout.strip().endswith("so far"), job.stderr
    assert "42" in target.read_text() and not NotebookNotary().check_signature(nbformat.read(target, 4))
