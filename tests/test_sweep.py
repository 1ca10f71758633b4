"""sweep.py: many runs of one recipe, planned before the first begins; killed at any time, no run is done twice."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress

import psutil
import pytest
from conftest import ROOT

from orcalab import __main__ as cli, config, recipes, report, sweep, workers

STAGES = ("stage1_flan", "stage2_chatgpt", "stage3_gpt4", "answer_only")
ENV = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def planned(folder, over, verbs="train,evaluate", **given):
    """Plan a sweep over the smoke recipe as the command does; return the names of its runs."""
    return [out.name for out in sweep.plan(folder, sweep.Sweep(over, verbs), {"recipe": "smoke", **given}, recipes.get)]


def said(capsys, *words):
    """Run a sweep's command in this process; return its exit status and what it printed to stdout and stderr."""
    status = cli.main(["sweep", *map(str, words)])
    return status, *capsys.readouterr()


# ------------------------------------------------------------------------------------------------- the plan

def test_a_grid_is_every_combination_and_a_list_is_one_run_a_line():
    assert sweep.points("seed=0,1 lr=1e-4,3e-4") == [{"seed": s, "lr": x} for s in "01" for x in ("1e-4", "3e-4")]
    assert sweep.points(" seed = 0, 1|lr=1e-4 ") == [{"seed": "0"}, {"seed": "1"}, {"lr": "1e-4"}]
    assert sweep.points("lr=1e-4 steps=3\nlr=3e-4 steps=6\n") == [{"lr": "1e-4", "steps": "3"}, {"lr": "3e-4", "steps": "6"}]
    assert sweep.points('drop="near, wrong",nothing rows=a=b.jsonl') == [{"drop": d, "rows": "a=b.jsonl"} for d in ("near,wrong", "nothing")]
    assert sweep.points('rows="my rows.jsonl",b.jsonl seed=0') == [{"rows": r, "seed": "0"} for r in ("my rows.jsonl", "b.jsonl")]


@pytest.mark.parametrize("over", ["", "lr", "lr=", "=1", "lr=1e-4 3e-4", "lr=1 lr=2", "lr=1 |", "lr=1||seed=0"])
def test_what_says_no_run_is_refused(over, tmp_path):
    with pytest.raises(ValueError, match="say what varies, each field once, such as --over"):
        planned(tmp_path, over)


@pytest.mark.parametrize("over, given, message", [
    ("lrr=1", {}, "no parameter named 'lrr'; did you mean 'lr'?"),
    ("lr=1e-4,fast", {}, "lr must be float, got 'fast'"),
    ("lr=1e-4 steps=3,-1", {}, "steps must be a number of at least 0, got -1"),
    ("seed=0,1,0", {}, "seed-0 comes twice"),
    ("lr=3e-4,0.0003", {}, "lr-0.0003 comes twice"),
    ("lr=3e-4 | lr=3e-4 seed=0", {}, "lr-0.0003 comes twice"),  # 0 is the recipe's own seed
    ("recipe=smoke,laptop", {}, "recipe cannot vary: it is the same for all runs of a sweep"),
    ("out=a,b", {}, "out cannot vary"),
    ("lr=1e-4", {"lr": "3e-4"}, "lr cannot vary"),
    ("lr=1e-4", {"stage": "stage2"}, "no stage named 'stage2'; did you mean 'stage2_chatgpt'?"),
    ("lr=1e-4", {"recipe": "smoek"}, "no recipe named 'smoek'; did you mean 'smoke'?"),
    ("lr=1e-4", {"verbs": "trian"}, "no verb of a sweep named 'trian'; did you mean 'train'?"),
    ("lr=1e-4 clip=1", {"verbs": "run"}, "run takes base, lr, out, recipe, seed, steps, which every stage's notebook has, and not clip;"),
    ("lr=1e-4", {"verbs": "run", "stage": "stage1_flan"}, "and not stage;"),
])
def test_every_run_is_proved_before_anything_is_written(over, given, message, tmp_path):
    with pytest.raises(ValueError, match=re.escape(message)):
        planned(tmp_path, over, **given)
    assert not list(tmp_path.iterdir())


def test_a_folders_name_says_what_varies():
    assert sweep.named({"seed": 1, "lr": 3e-4}) == sweep.named({"lr": 3e-4, "seed": 1}) == "lr-0.0003_seed-1"
    odd = [{"rows": "data/my rows.jsonl"}, {"rows": "other/my rows.jsonl"}, {"rows": "data/my-rows.jsonl"}, {"data": ""}, {"data": ".."}, {"messages": "cautious,empty"}, {"rows": "x" * 900}, {"rows": "x" * 901}]
    names = [sweep.named(values) for values in odd]
    assert names[0].startswith("rows-my-rows.jsonl-") and len(set(names)) == len(names)
    assert all(re.fullmatch(r"[\w.+-]{1,60}", n) and n[0].isalpha() for n in names)


def test_the_plan_lies_in_the_runs_folders_in_the_types_of_the_fields(tmp_path):
    assert planned(tmp_path, "lr=1e-4,3e-4 seed=1", steps="2") == ["lr-0.0001_seed-1", "lr-0.0003_seed-1"]
    made = config.read_json(tmp_path / "lr-0.0003_seed-1" / "sweep.json")
    assert (made["values"], made["given"], made["verbs"]) == ({"lr": 3e-4, "seed": 1}, {"recipe": "smoke", "steps": "2", "lr": 3e-4, "seed": 1}, ["train", "evaluate"])
    assert planned(tmp_path / "b", "base=tiny-random questions=2,3 drop=\"near,wrong\"")[1].startswith("base-tiny-random_drop-near-wrong-")


def finish(out):
    """Let a run count as done."""
    config.write_json(out / "done.json", {**config.read_json(out / "sweep.json"), "seconds": 1.0})


def test_a_sweep_may_grow(tmp_path):
    for name in planned(tmp_path, "lr=1e-4,3e-4", "train"):
        finish(tmp_path / name)
    assert planned(tmp_path, "lr=1e-4,3e-4,1e-3", "train") == ["lr-0.0001", "lr-0.0003", "lr-0.001"]
    assert [sweep.done(tmp_path / n) for n in ("lr-0.0001", "lr-0.0003", "lr-0.001")] == [True, True, False]
    assert planned(tmp_path, "lr=1e-4 seed=0,1", "train") == ["lr-0.0001", "lr-0.0001_seed-1"]  # by a field whose value was the recipe's own
    assert sweep.done(tmp_path / "lr-0.0001") and config.read_json(tmp_path / "lr-0.0001" / "sweep.json")["values"] == {"lr": 1e-4, "seed": 0}
    planned(tmp_path, "lr=3e-4", "train,evaluate")
    assert not sweep.done(tmp_path / "lr-0.0003")  # it is trained, and not asked
    finish(tmp_path / "lr-0.0003")
    planned(tmp_path, "lr=3e-4", "train")
    assert sweep.done(tmp_path / "lr-0.0003")
    planned(tmp_path, "lr=3e-4", "train", save_every="1", device="cpu")
    assert sweep.done(tmp_path / "lr-0.0003")  # what changes no result is no other run
    planned(tmp_path, "lr=3e-4", "train", questions="3")
    assert not sweep.done(tmp_path / "lr-0.0003")  # other questions are other answers


def test_a_run_with_other_inputs_is_refused_before_the_first_begins(tmp_path):
    planned(tmp_path, "lr=1e-4,3e-4", steps="2")
    before = {p: p.read_bytes() for p in tmp_path.glob("*/sweep.json")}
    cfg = recipes.get("smoke", out=str(tmp_path / "lr-0.0003"), lr=3e-4, steps=2).stage("stage1_flan")
    config.write_json(cfg.folder / "config.json", config.to_json(cfg))
    planned(tmp_path, "lr=1e-4,3e-4", steps="2")
    said = re.escape(f"{cfg.folder} holds a run with other inputs (steps: 2 -> 3); choose another out, or delete that folder")
    with pytest.raises(ValueError, match=said):
        planned(tmp_path, "lr=1e-4,3e-4", steps="3")
    assert {p: p.read_bytes() for p in tmp_path.glob("*/sweep.json")} == before


def test_cores_and_gpus_are_dealt_out(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6")
    seen = lambda k: [(p.get("CUDA_VISIBLE_DEVICES"), p.get("OMP_NUM_THREADS")) for p in sweep.places(k)]
    monkeypatch.setattr(workers, "cores", lambda: 7)
    monkeypatch.setattr(sweep, "cores", lambda: 7)
    assert seen(1) == [("4,5,6", None)] and seen(2) == [("4,6", "3"), ("5", "3")] and seen(4) == [("4", "1"), ("5", "1"), ("6", "1"), ("4", "1")]
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # none is to be seen
    assert seen(2) == [("", "2"), ("", "2")]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert seen(2) == [("1", "2"), ("1", "2")]


def test_gpus_are_counted_where_nobody_chose_some(monkeypatch, tmp_path):
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\nprintf 'GPU 0: NVIDIA A100 (UUID: GPU-1)\\n  MIG 1g.10gb     Device  0: (UUID: MIG-1)\\nGPU 1: NVIDIA A100 (UUID: GPU-2)\\n'\n")
    tool.chmod(0o755)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert [p.get("CUDA_VISIBLE_DEVICES") for p in sweep.places(2)] == ["0", "1"]
    tool.write_text("#!/bin/sh\nexit 9\n")  # a driver that does not answer
    assert [p.get("CUDA_VISIBLE_DEVICES") for p in sweep.places(2)] == [None, None]


# ------------------------------------------------------------------------------------------------- the table

@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """The folder of a sweep of two runs of one stage, done in this process, and a third that is not begun."""
    folder = tmp_path_factory.mktemp("swept") / "lr"
    for name in planned(folder, "lr=1e-4,3e-4,1e-3", stage="stage1_flan", steps="2", held_out="2", eval_every="1")[:2]:
        assert cli.main(["sweep", "--out", str(folder), "--only", name]) == 0
    return folder


def test_runs_are_compared_at_any_time(swept, capsys):
    status, out, _ = said(capsys, "--out", swept, "--status")
    assert status == 0 and "lr-0.001 is not done: not begun" in out and str(swept / "sweep.html") in out
    lines = [re.split(r"  +", line.strip()) for line in out.splitlines() if line.startswith(("student", "base", "stage1_flan"))]
    assert lines[0] == ["student", "run", "last loss", "held out", "tokens/s", "message", "macro", "95 % from", "to"]
    assert [line[:2] for line in lines[1:]] == [[s, n] for s in ("base", "stage1_flan") for n in ("lr-0.0001", "lr-0.0003")]
    made = config.read_json(swept / "results.json")
    assert {n: (r["done"], r["values"]["lr"]) for n, r in made.items()} == {"lr-0.0001": (True, 1e-4), "lr-0.0003": (True, 3e-4), "lr-0.001": (False, 1e-3)}
    for name, line in zip(("lr-0.0001", "lr-0.0003"), lines[3:]):
        own = config.read_json(swept / name / "stage1_flan" / "results.json")
        assert line[2:5] == [f"{own['last_loss']:.3f}", f"{own['held_out']:.3f}", f"{own['tokens_per_s']:.0f}"]
        asked = {s["student"]: s for s in config.read_json(swept / name / "results.json")["scores"]}["stage1_flan"]
        assert line[5:] == ["cautious", *(f"{asked[k]:.1%}" for k in ("macro", "low", "high"))]
    losses = {r["stages"]["stage1_flan"]["last_loss"] for r in made.values() if r["done"]}
    assert len(losses) == 2  # the runs differ


def test_the_page_opens_offline_with_a_figure_of_scores_and_one_of_losses(swept):
    page = report.write_sweep(swept)[0].read_text(encoding="utf-8")
    assert page.count('class="plotly-graph-div"') == 2 and not re.search(r'<(script|link)[^>]+(src|href)="https?:', page)
    assert "How each student does, run by run" in page and "Loss of stage1_flan, run by run" in page and "lr-0.001 is not done: not begun" in page


def test_a_run_alone_writes_what_it_does_as_commands_and_is_not_done_again(swept):
    out = swept / "lr-0.0003"
    before = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in out.rglob("*") if p.is_file() and p.name != "lock"}
    sweep.do(out, {})  # no verb is needed any more
    assert {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in out.rglob("*") if p.is_file() and p.name != "lock"} == before
    assert config.read_json(out / "done.json")["verbs"] == ["train", "evaluate"]


def test_a_folder_without_runs_and_a_run_without_a_plan_are_said(tmp_path, capsys):
    assert said(capsys, "--out", tmp_path, "--status")[2] == f"orcalab: there is no run in {tmp_path}\n"
    planned(tmp_path, "compile=yes,no")  # to see which is faster
    status, out, _ = said(capsys, "--out", tmp_path, "--status")
    assert status == 0 and out.splitlines()[2:4] == ["compile-no is not done: not begun", "compile-yes is not done: not begun"]
    planned(tmp_path, "seed=0,1")
    assert said(capsys, "--out", tmp_path, "--only", "seed-01")[2] == "orcalab: no run named 'seed-01'; did you mean 'seed-1'?\n"
    assert said(capsys, "--out", tmp_path, "--recipe", "smoke")[2].startswith("orcalab: say what varies")
    assert said(capsys, "--out", tmp_path, "--recipe", "smoke", "--over", "seed=0", "--at_once", "0")[2] == "orcalab: at_once must be a number of at least 1, got 0\n"


# ------------------------------------------------------------------------------------------------- processes

@pytest.fixture
def begin():
    """Start a sweep as a user does, in a group of processes of its own; what a broken test leaves is ended."""
    jobs = []

    def start(folder, *words):
        command = [sys.executable, "-m", "orcalab", "sweep", "--out", str(folder), "--recipe", "smoke", *words]
        job = psutil.Popen(command, cwd=ROOT, env=ENV, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
                           preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))  # a launcher in the background has it ignored
        jobs.append(job)
        return job
    yield start
    for job in jobs:
        with suppress(ProcessLookupError):
            os.killpg(job.pid, signal.SIGKILL)
        job.wait()
        job.stdout.close()


def wait_for(what, job, most=1800):
    """Wait until something is so, while the sweep works; return what it is."""
    begun = time.time()
    while not (found := what()):
        assert job.poll() is None and time.time() - begun < most, job.stdout.read()
        time.sleep(0.05)
    return found


def starts(folder):
    """Return {run: how often its work was begun}, from the logs."""
    return {p.parent.name: n for p in folder.glob("*/log.txt") if (n := len(re.findall(r"^\S+ \S+ orcalab train ", p.read_text(), re.M)))}


def finished(folder):
    """Return the names of the runs that are done."""
    return {p.parent.name for p in folder.glob("*/done.json")}


def working(folder):
    """Return the names of the runs that are begun and not done."""
    return set(starts(folder)) - finished(folder)


def files(folder, names):
    """Return when each file of some runs was written, but for the plan, which each start writes, and the lock."""
    return {p: p.stat().st_mtime_ns for n in names for p in (folder / n).rglob("*") if p.is_file() and p.name not in ("sweep.json", "lock")}


def killed_twice(begin, folder, number, *words):
    """Kill a sweep alone and start it again at once, beside its runs, which live on; kill that one with its runs; let the third one end. No run may be done twice."""
    job = begin(folder, *words)
    wait_for(lambda: len(finished(folder)) >= number // 4 and working(folder), job)
    job.suspend()  # so that no further run begins between these lines
    children = job.children()
    orphans = {c.cmdline()[-1] for c in children if c.status() != psutil.STATUS_ZOMBIE}
    job.kill()
    again = begin(folder, *words)
    job.wait()
    wait_for(lambda: orphans <= finished(folder), again)
    assert orphans and {n: starts(folder)[n] for n in orphans} == dict.fromkeys(orphans, 1)  # the second sweep waited for what the first one had begun
    psutil.wait_procs(children)
    wait_for(lambda: len(finished(folder)) >= number // 2 and working(folder), again)
    runs = again.children(recursive=True)
    os.killpg(again.pid, signal.SIGKILL)
    assert again.wait() == -signal.SIGKILL and runs and not psutil.wait_procs(runs, timeout=60)[1]
    done, broken = finished(folder), working(folder)
    assert broken and len(done) < number
    before, spared = files(folder, done), begin(folder, *words)
    told = spared.communicate()[0]
    assert spared.returncode == 0 and f"{number} runs, 2 at a time; {len(done)} done before" in told, told
    assert files(folder, done) == before
    assert starts(folder) == {p.parent.name: 1 + (p.parent.name in broken) for p in folder.glob("*/sweep.json")}
    made = config.read_json(folder / "results.json")
    assert len(made) == number and all(r["done"] for r in made.values())
    return made, told


def test_a_sweep_that_is_killed_twice_does_no_run_twice(begin, tmp_path):
    made, _ = killed_twice(begin, tmp_path / "sweep", 3, "--over", "seed=0,1,2", "--at_once", "2", "--verbs", "train", "--stage", "stage1_flan", "--steps", "2")
    assert all([len((tmp_path / "sweep" / n / s / "metrics.jsonl").read_text().splitlines()) for s in r["stages"]] == [2] for n, r in made.items())


@pytest.mark.long
@pytest.mark.timeout(7200)
def test_eight_smoke_runs_that_are_killed_twice_end_with_eight_results(begin, tmp_path, capsys):
    folder, begun = tmp_path / "sweep", time.time()
    made, told = killed_twice(begin, folder, 8, "--over", "lr=1e-4,3e-4 seed=0,1,2,3", "--at_once", "2")
    for name, r in made.items():
        assert {s: len((folder / name / s / "metrics.jsonl").read_text().splitlines()) for s in r["stages"]} == dict.fromkeys(STAGES, 3)
        assert sorted(s["student"] for s in r["scores"]) == sorted(["base", *STAGES]) and all(s["questions"] == 12 for s in r["scores"])
    assert len({json.dumps([s["last_loss"] for s in r["stages"].values()]) for r in made.values()}) == 8
    assert sum(line.startswith("stage3_gpt4 ") for line in told.splitlines()) == 8
    with capsys.disabled():
        print(f"\n8 runs, killed twice, in {time.time() - begun:.0f} s; begun {starts(folder)}\n{told}")


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_stopping_a_sweep_stops_its_runs(name, begin, tmp_path):
    job = begin(tmp_path, "--over", "seed=0,1,2", "--at_once", "2")
    wait_for(lambda: len(starts(tmp_path)) == 2, job)
    runs = job.children(recursive=True)
    job.send_signal(getattr(signal, name))
    assert "the same command goes on" in job.communicate()[0] and job.returncode == 130
    assert len(runs) == 2 and psutil.wait_procs(runs, timeout=5)[1] == [] and not finished(tmp_path) and not (tmp_path / "seed-2" / "log.txt").exists()


def test_a_run_that_fails_ends_no_other_and_is_told_at_the_end(begin, tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"question": "1+1", "response": "2"}\n' * 40)
    (tmp_path / "broken.jsonl").write_text("no row\n")
    words = ["--over", f"rows={tmp_path / 'broken.jsonl'},{tmp_path / 'rows.jsonl'}", "--verbs", "prepare", "--stage", "stage1_flan", "--drop", "nothing"]
    job = begin(tmp_path / "sweep", *words)
    told, bad = job.communicate()[0], next((tmp_path / "sweep").glob("rows-broken*"))
    assert job.returncode == 1 and finished(tmp_path / "sweep") == {n.name for n in (tmp_path / "sweep").glob("rows-rows*")}
    assert re.search(rf"^\[1/2\] {bad.name} FAILED after \d:\d\d, about \d+:\d\d left \(.*log.txt: orcalab: .*broken.jsonl:1: not JSON", told, re.M) and re.search(r"^\[2/2\] rows-rows.jsonl-\w{6} \d", told, re.M)
    assert f"{bad.name} is not done: orcalab: {tmp_path / 'broken.jsonl'}:1: not JSON" in told
    (tmp_path / "broken.jsonl").write_text((tmp_path / "rows.jsonl").read_text())
    job = begin(tmp_path / "sweep", *words)
    assert "2 runs, 1 at a time; 1 done before" in job.communicate()[0] and job.returncode == 0


def test_papermill_leaves_a_run_that_the_sweep_takes_for_its_own(tmp_path, capsys):
    folder = tmp_path / "lr"
    given = [w for n, v in (("recipe", "smoke"), ("steps", 2), ("lr", 3e-4), ("out", folder / "lr-0.0003")) for w in ("-p", n, str(v))]
    job = subprocess.run([sys.executable, "-m", "papermill", str(ROOT / "notebooks" / "06_stage1_flan.ipynb"), str(tmp_path / "out.ipynb"), "--no-progress-bar", *given],
                         capture_output=True, text=True, cwd=tmp_path, env={**ENV, "PYDEVD_DISABLE_FILE_VALIDATION": "1"})
    assert job.returncode == 0, job.stderr[-2000:]
    status, out, _ = said(capsys, "--out", folder, "--status")  # without any plan
    assert status == 0 and re.search(r"^stage1_flan  lr-0.0003 +\d\.\d{3} +\d+  cautious +0\.0%", out, re.M)
    trained = (folder / "lr-0.0003" / "stage1_flan" / "results.json").stat().st_mtime_ns
    assert planned(folder, "lr=1e-4,3e-4", stage="stage1_flan", steps="2") == ["lr-0.0001", "lr-0.0003"]
    out = said(capsys, "--out", folder, "--status")[1]
    assert re.search(r"^stage1_flan  lr-0.0003 ", out, re.M) and "lr-0.0001 is not done: not begun\nlr-0.0003 is not done: not begun" in out
    status, out, _ = said(capsys, "--out", folder, "--only", "lr-0.0003")
    assert status == 0 and "stage1_flan is trained already" in out and "ask stage1_flan" not in out
    assert (folder / "lr-0.0003" / "stage1_flan" / "results.json").stat().st_mtime_ns == trained and sweep.done(folder / "lr-0.0003")


@pytest.mark.long
@pytest.mark.timeout(7200)
def test_a_run_may_be_all_notebooks(begin, tmp_path):
    job = begin(tmp_path, "--over", "lr=2e-4 seed=7", "--verbs", "run")
    told, out = job.communicate()[0], tmp_path / "lr-0.0002_seed-7"
    assert job.returncode == 0 and re.search(r"^stage3_gpt4 +lr-0.0002_seed-7 +\d\.\d{3} ", told, re.M), told
    assert [p.name for p in sorted((out / "notebooks").iterdir())] == [p.name for p in sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))]
    assert all((made := config.read_json(out / s / "config.json"))["lr"] == 2e-4 and made["seed"] == 7 for s in STAGES) and (out / "report.html").exists()
