"""Many runs of one recipe, several at once, each in a folder of its own. What lies there is the plan and the state: what is done is not done again.

Beside what `orcalab train` or papermill leaves, a run's folder has sweep.json (what is to be done), log.txt (what was printed) and done.json (what was done).
"""

import csv
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

from orcalab.config import COMPUTING, check, choose, digest, listed, read_json, to_json, write_json
from orcalab.execute import common_knobs, refuse_other_inputs
from orcalab.progress import clock
from orcalab.workers import cores


@dataclass(frozen=True)
class Sweep:
    """Which runs `orcalab sweep` does, and how."""

    over: str = ""  # what varies, fields with their values, in every combination; | or a new line between several such grids
    verbs: str = "train,evaluate"  # what each run does, of prepare / train / evaluate / run (all notebooks, through papermill), joined by commas
    at_once: int = 1  # runs at the same time; cores and GPUs are dealt out to them
    only: str = ""  # one run of the sweep, by name, to do here and now

    __post_init__ = check


def points(over):
    """Return what varies, a dictionary for each run; a value with commas or spaces stands in quotes.

    >>> points('lr=1e-4,3e-4 seed=0 | drop="near,wrong"')
    [{'lr': '1e-4', 'seed': '0'}, {'lr': '3e-4', 'seed': '0'}, {'drop': 'near,wrong'}]
    """
    out = []
    for grid in re.split(r"[|\n]", over.strip()):
        words = [w.partition("=")[::2] for w in re.findall(r'(?:"[^"]*"|[^\s"])+', re.sub(r"\s*([=,])\s*", r"\1", grid))]
        if not words or not all(map(all, words)) or len(dict(words)) < len(words):
            raise ValueError(f'say what varies, each field once, such as --over "lr=1e-4,3e-4 seed=0,1"; got {grid.strip()!r}')
        out += [dict(zip(dict(words), values)) for values in product(*(next(csv.reader([text])) for _, text in words))]
    return out


def named(values):
    """Return the name of a run's folder, made of what varies, such as lr-0.0003_seed-1; a digest stands for what does not fit into one."""
    said = {k: re.sub(r"[^\w.+-]+", "-", Path(str(v)).name)[:30] for k, v in sorted(values.items())}
    return "_".join(f"{k}-{text}" if text == str(values[k]) else f"{k}-{text}-{digest(values[k], 6)}" for k, text in said.items())


def plan(folder, how, given, get):
    """Build the recipe of every run, then write into each folder what is to be done there; return the folders.

    Args:    how: a Sweep.  given: what all runs share: recipe, stage, settings.  get: recipes.get.
    Raises:  ValueError: a run that cannot be built, or comes twice, or whose folder holds one with other settings.
    """
    known, runs = {read_json(p)["key"]: p.parent for p in folder.glob("*/sweep.json")}, {}
    verbs = [choose(verb, ("prepare", "train", "evaluate", "run"), "verb of a sweep") for verb in listed(how.verbs)]
    for values in points(how.over):
        if same := [k for k in values if k in ("out", "recipe", "stage", *given)]:
            raise ValueError(f"{same[0]} cannot vary: it is the same for all runs of a sweep")
        rec = get(**{k: v for k, v in {**given, **values}.items() if k != "stage"}, out="")
        values = {k: getattr(rec if hasattr(rec, k) else rec.stages[0], k) for k in values}
        made = {**to_json(rec), "doc": given.get("stage"), "stages": [s.settings for s in rec.stages]}  # what results depend on
        key = digest([made, {k: v for k, v in values.items() if k in COMPUTING}])
        out = known.setdefault(key, folder / named(values))  # a run that is there keeps its name, also if a further field varies now
        if out in runs:
            raise ValueError(f"{out.name} comes twice")
        if "run" in verbs:
            common_knobs({**given, **values})
        refuse_other_inputs(replace(s, out=str(out)) for s in ([rec.stage(given["stage"])] if "stage" in given else rec.stages))
        runs[out] = {"key": key, "verbs": verbs, "values": values, "given": {**given, **values}}
    for out, made in runs.items():
        write_json(out / "sweep.json", made)
    return list(runs)


def done(out):
    """Tell whether a run has done what it is to do."""
    made, did = (read_json(p) if (p := out / name).exists() else {"key": name} for name in ("sweep.json", "done.json"))
    return made["key"] == did["key"] and set(made["verbs"]) <= set(did["verbs"])


def do(out, doing):
    """Do one run in this process; if another process is at it, wait until that ends. `doing` has a function for each verb."""
    from filelock import FileLock
    with FileLock(out / "lock"):  # the system lets go of it when its holder dies, however that comes about
        made, begun = read_json(out / "sweep.json"), time.time()
        if done(out):
            return
        for verb in made["verbs"]:
            given = {k: v for k, v in made["given"].items() if k != "stage" or verb in ("prepare", "train")} | {"out": str(out)}
            print(time.strftime("%F %T"), "orcalab", verb, *(f"--{k} {v}" for k, v in given.items()), flush=True)
            doing[verb](**given)
        write_json(out / "done.json", {**made, "seconds": time.time() - begun})


def places(at_once):
    """Return the environment of each of `at_once` processes: with its share of the cores, and of the GPUs if there are several."""
    said = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True).stdout if shutil.which("nvidia-smi") else ""
    gpus = listed(os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(re.findall(r"^GPU (\d+)", said, re.M))))
    dealt = [{"CUDA_VISIBLE_DEVICES": ",".join(gpus[n::at_once] or [gpus[n % len(gpus)]])} if len(gpus) > 1 else {} for n in range(at_once)]
    threads = {"OMP_NUM_THREADS": str(max(1, cores() // at_once))} if at_once > 1 else {}
    return [{**threads, **os.environ, **own, "PYTHONUNBUFFERED": "1"} for own in dealt]


def said(out):
    """Return the last line of a run's log."""
    return next((line for line in reversed((out / "log.txt").read_text(encoding="utf-8", errors="replace").splitlines()) if line.strip()), "")[:300]


def work(outs, at_once):
    """Do runs, `at_once` at a time, each in a process of its own, which Ctrl-C and SIGTERM end, too."""
    waiting, free, running, took, told = [out for out in outs if not done(out)], places(at_once), {}, [], time.time()
    print(f"{len(outs)} runs, {at_once} at a time; {len(outs) - len(waiting)} done before; each writes its log.txt", flush=True)
    try:
        while waiting or running:
            while waiting and free:
                out, place = waiting.pop(0), free.pop(0)
                command = [sys.executable, "-m", "orcalab", "sweep", "--out", str(out.parent), "--only", out.name]
                with open(out / "log.txt", "ab") as log:
                    running[out] = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=place), place, time.time()
            time.sleep(0.1)
            if time.time() - told > 60:
                told = time.time()
                print(*(f"    {out.name}: {said(out)}" for out in running), sep="\n", flush=True)
            for out in [out for out, (job, *_) in running.items() if job.poll() is not None]:
                job, place, since = running.pop(out)
                free.append(place)
                took.append(time.time() - since)
                mean = sum(took) / len(took)
                left = mean * len(waiting) / at_once + max((max(0, mean - time.time() + start) for _, _, start in running.values()), default=0)
                why = f" ({out / 'log.txt'}: {said(out)})" if job.returncode else ""
                print(f"[{len(outs) - len(waiting) - len(running)}/{len(outs)}] {out.name} {'FAILED after ' * bool(why)}{clock(took[-1])}, about {clock(left)} left{why}", flush=True)
    finally:
        for job, *_ in running.values():
            job.terminate()
        for job, *_ in running.values():
            job.wait()
