"""The command line: `orcalab run` drives the notebooks; train, prepare and evaluate are their work alone."""

import html
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path

import orcalab
from orcalab import config, recipes, sources
from orcalab.progress import clock

VERBS = {
    "run": "execute every notebook of the recipe, in order, and write report.html",
    "train": "train the recipe's stages without notebooks (--stage NAME for one)",
    "prepare": "prepare the rows of every stage, and print what is in them",
    "evaluate": "ask the trained students the held-out questions, and print the scores",
}


def usage():
    """Return the help text, made from the config dataclasses."""
    lines = ["usage: orcalab VERB [--name value ...]", ""]
    lines += [f"  {verb:<10}{text}" for verb, text in VERBS.items()]
    lines += ["", "  --recipe    name of the recipe: " + " or ".join(recipes.RECIPES), "  --rows may name mixtures: " + ", ".join(m.name for m in recipes.MIXES),
              "  or sources (NAME, or NAME:FOLDER): " + ", ".join(sources.SOURCES), "  or files and folders"]
    for cls, head in ((config.Recipe, "of the recipe"), (config.Config, "of every stage")):
        lines += ["", f"settings {head}:"]
        lines += [f"  --{n:<16}{t}" for n, t in config.help_of(cls).items() if n not in ("name", "stages", "tasks", "doc", "start")]
    return "\n".join(lines)


def arguments(words):
    """Turn `--name value` pairs into a dictionary; raise a ValueError for anything else."""
    given = {}
    names = {f.name for c in (config.Recipe, config.Config) for f in fields(c)} - {"name", "stages", "tasks", "doc", "start"}
    for at in range(0, len(words), 2):
        name = config.choose(words[at].removeprefix("--"), sorted(names | {"recipe", "stage"}), "parameter")
        if not words[at].startswith("--") or at + 1 == len(words):
            raise ValueError(f"expected --name value, got {' '.join(words[at:at + 2])!r}")
        given[name] = words[at + 1]
    return given


# ------------------------------------------------------------------------------------------------- run

def notebooks():
    """Return the folder of the numbered notebooks: beside the package, or under the working folder."""
    for folder in (Path(orcalab.__file__).parents[1] / "notebooks", Path("notebooks")):
        if (folder / "00_tour.ipynb").exists():
            return folder
    raise ValueError("the notebooks are not here: run this from a clone of the repository (pip install -e .)")


def knobs(path):
    """Return the parameter names in a notebook's cell tagged `parameters`."""
    cells = config.read_json(path)["cells"]
    source = "".join(next("".join(c["source"]) for c in cells if "parameters" in c["metadata"].get("tags", [])))
    return [line.split("=")[0].strip() for line in source.splitlines() if "=" in line.split("#")[0]]


def run(recipe="laptop", **given):
    """Execute the notebooks in order through papermill; skip those done with the same inputs.

    Leaves executed copies in `<out>/notebooks`, `<out>/report.html`, and a table on the terminal.

    Raises:
        ValueError: a parameter that not every stage's notebook has, or `out` holds a run with other settings.
        SystemExit: a notebook failed.
    """
    rec = recipes.get(recipe, **given)
    folder, out = notebooks(), Path(rec.out)
    paths = sorted(folder.glob("[0-9][0-9]_*.ipynb"))
    have = {p: knobs(p) for p in paths}
    common = set.intersection(*(set(names) for p, names in have.items() if "_stage" in p.stem))
    for name in given:  # a knob of one notebook alone would change less than it says
        if name not in common:
            raise ValueError(f"run takes {', '.join(sorted(common))}, which every stage's notebook has, and not {name}{config.nearest(name, common)}; "
                             "`orcalab train` takes every setting")
    refuse_other_inputs(rec.stages)
    code = config.digest([p.read_text(encoding="utf-8") for p in sorted(Path(orcalab.__file__).parent.glob("*.py"))])
    state_file = out / "run.json"
    state = config.read_json(state_file) if state_file.exists() else {}
    begun, jobs, made = time.time(), [], []
    print(f"recipe {recipe}, seed {rec.seed}: {len(paths)} notebooks -> {out}", flush=True)
    for n, path in enumerate(paths, 1):
        values = {**given, "recipe": recipe, "seed": rec.seed, "base": rec.base, "out": str(out.resolve())}  # a notebook works in its own folder
        values = {k: v for k, v in values.items() if k in have[path]}
        made.append([path.read_text(encoding="utf-8"), values])
        seal, label = config.digest([made, code]), f"[{n:>2}/{len(paths)}] {path.stem:<22}"
        done = state.get(path.stem, {})
        if done.get("seal") == seal and (out / "notebooks" / path.name).exists() and set(done["stages"]) <= finished(rec):
            print(f"{label} done before ({clock(state[path.stem]['seconds'])})", flush=True)
        else:
            jobs.append((path, out / "notebooks" / path.name, values, label, seal))
    ready = worker(jobs[0][1]) if jobs else None
    for n, (path, target, values, label, seal) in enumerate(jobs, 1):
        job, ready = ready, worker(jobs[n][1]) if n < len(jobs) else None
        try:
            seconds = execute(job, path, target, values, label, begun)
        finally:
            if sys.exc_info()[0] and ready:
                ready.kill()
        state[path.stem] = {"seal": seal, "seconds": seconds, "stages": sorted(finished(rec))}
        config.write_json(state_file, state)
    page = write_report(rec)
    print(f"\n{finding(rec)}\n\n{page} ({clock(time.time() - begun)} in all)")
    print(f"next: open that page, or: jupyter lab {out / 'notebooks' / paths[-1].name}")


def finished(rec):
    """Return the names of the stages that are trained."""
    return {s.name for s in rec.stages if s.finished}


def refuse_other_inputs(stages):
    """Raise before anything works for minutes if a stage's folder holds a run with other settings."""
    for cfg in stages:
        old = config.read_json(cfg.folder / "config.json") if (cfg.folder / "config.json").exists() else {}
        if changed := ", ".join(f"{k}: {old[k]!r} -> {v!r}" for k, v in cfg.settings.items() if k in old and old[k] != v):
            raise ValueError(f"{cfg.folder} holds a run with other inputs ({changed}); choose another out, or delete that folder")


def worker(target):
    """Start a process that loads papermill and waits to be told what to execute; the next one loads while this one works."""
    target.parent.mkdir(parents=True, exist_ok=True)
    code = "import json, sys; from papermill import execute_notebook; job = sys.stdin.readline(); job and execute_notebook(**json.loads(job))"
    env = {**os.environ, "ORCALAB_PROGRESS": str(target.with_suffix(".progress").resolve()), "PYDEVD_DISABLE_FILE_VALIDATION": "1",
           "PYTHONPATH": os.pathsep.join([str(Path(orcalab.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])}
    with open(target.with_suffix(".log"), "w", encoding="utf-8") as log:
        return subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=log, stderr=log, env=env, text=True)


def execute(job, path, target, values, label, begun):
    """Let a worker execute one notebook, showing what happens inside; return its seconds."""
    inside, log = target.with_suffix(".progress"), target.with_suffix(".log")
    inside.unlink(missing_ok=True)
    started, spoken, terminal = time.time(), time.time(), sys.stdout.isatty()
    try:
        print(json.dumps({"input_path": str(path.resolve()), "output_path": str(target.resolve()), "parameters": values,
                          "kernel_name": "python3", "progress_bar": False, "request_save_on_cell_execute": False,
                          "shutdown_kernel": "immediate", "cwd": str(path.parent.resolve())}), file=job.stdin, flush=True)
        while job.poll() is None:
            time.sleep(0.1)
            text = f"{label} {clock(time.time() - started)}  {glance(inside)}"
            if terminal:
                print(f"\r\x1b[K{text[:os.get_terminal_size().columns - 1]}", end="", flush=True)
            elif time.time() - spoken > 30:
                spoken = time.time()
                print(text, flush=True)
    finally:
        if job.poll() is None:
            job.terminate()
            job.wait(20)
        inside.unlink(missing_ok=True)
    seconds = time.time() - started
    if job.returncode:
        tail = log.read_text(encoding="utf-8").strip()[-1800:]
        raise SystemExit(f"\n{label} failed after {clock(seconds)}:\n{tail}\n\nThe executed copy so far: {target}\n"
                         "The same command goes on from here.")
    log.unlink()
    print(f"{chr(13) + chr(27) + '[K' if terminal else ''}{label} {clock(seconds):>6}   {clock(time.time() - begun):>6} so far", flush=True)
    return seconds


def glance(inside):
    """Return one line on the long work inside a notebook, from its progress file."""
    try:
        now = config.read_json(inside)
    except (OSError, ValueError):
        return ""
    return f"{now['what']}: {now['done']}/{now['total']}, {clock(now['left'])} left{', ' + now['note'] if now['note'] else ''}"


# ------------------------------------------------------------------------------------- the work itself

def train(recipe="laptop", stage=None, **given):
    """Train the recipe's stages, or one, without notebooks; write report.html."""
    from orcalab import card, model as models, teacher, train as trainer
    rec = recipes.get(recipe, **given)
    stages = [rec.stage(stage)] if stage else list(rec.stages)
    refuse_other_inputs(stages)
    for cfg in stages:
        if cfg.start not in ("base", *(s.name for s in stages)) and cfg.start not in finished(rec):
            raise ValueError(f"{cfg.name} starts from {cfg.start}, which is not trained yet: no {rec.stage(cfg.start).folder / 'model'}")
    if rec.base != "tiny-random":
        models.resolve(rec.base)  # a folder that holds a tokenizer alone is no base
    ready, tokenizer = [], models.load_tokenizer(rec.base, rec.stages[0].template)
    for cfg in stages:  # every row of every stage is read and proved before anything is trained
        ready.append(teacher.prepare(rec, cfg, tokenizer))
        print(card.summary(ready[-1].card, ready[-1].steps), flush=True)
    for cfg, prepared in zip(stages, ready):
        start = None if cfg.start == "base" else rec.stage(cfg.start).folder / "model"
        result = trainer.train(cfg, prepared, start)
        print(f"{cfg.name}: loss {result['first_loss']:.3f} -> {result['last_loss']:.3f}, {result['tokens']} tokens, "
              f"{result['tokens_per_s']:.0f} tokens/s", flush=True)
    print(write_report(rec))


def prepare(recipe="laptop", stage=None, **given):
    """Prepare the rows of every stage, or of one: sources, rows, mixture, examples, plan, with a data card; audit what was erased."""
    from orcalab import card, data, model as models, teacher
    rec = recipes.get(recipe, **given)
    tokenizer = models.load_tokenizer(rec.base, rec.stages[0].template)
    for cfg in [rec.stage(stage)] if stage else rec.stages:
        prepared = teacher.prepare(rec, cfg, tokenizer)
        print(card.summary(prepared.card, prepared.steps), flush=True)
        if prepared.card["report"]["erased"]:
            found = data.audit(prepared, tokenizer)
            print(f"  audit: {found['erased']} rows erased, in the ids of {found['leaks']} of them any of the {found['texts']} erased messages can be read", flush=True)
            if found["leaks"]:
                raise ValueError(f"{prepared.folder}: an erased message can still be read; delete the folder and prepare it again")
        print(f"  {prepared.folder / 'README.md'}", flush=True)


def evaluate(recipe="laptop", **given):
    """Ask every trained student of the recipe under the cautious message; print the scores."""
    from orcalab import evaluate as judge, teacher
    rec = recipes.get(recipe, **given)
    questions = teacher.held_out(rec.tasks, rec.questions)
    trained = [config.read_json(s.folder / "config.json")["template"] for s in rec.stages if s.name in finished(rec)]
    template = given.get("template", trained[0] if trained else rec.stages[0].template)  # the base is asked as its students are
    for name in ["base", *(s.name for s in rec.stages)]:
        source = rec.base if name == "base" else rec.stage(name).folder / "model"
        if name == "base" or name in finished(rec):
            judge.ask(judge.Lazy(source, rec.stages[0].device, rec.stages[0].dtype, template), name, "cautious", questions, Path(rec.out) / "answers", rec)
    print(write_report(rec))
    print(finding(rec))


# ---------------------------------------------------------------------------------------------- report

def cautious(rec):
    """Return the scores under the cautious message, in the order of the stages, from the answers files."""
    from orcalab import evaluate as judge
    records = {s: r for (s, m), r in judge.read_answers(Path(rec.out) / "answers").items() if m == "cautious"}
    order = [n for n in ["base", *(s.name for s in rec.stages)] if n in records]
    return [{"student": n, "system": "cautious", **judge.score(records[n])} for n in order], records


def finding(rec):
    """Return the table and the comparison that the run was made for, as text."""
    from orcalab import evaluate as judge, show
    scores, records = cautious(rec)
    if not scores:
        return "no student was evaluated yet"
    text = show.text_table(*show.task_rows(scores, rec.tasks))
    if {"stage3_gpt4", "answer_only"} <= set(records):
        c = judge.compare(records["stage3_gpt4"], records["answer_only"])
        text += (f"\n\nexplained and erased minus answers only, same questions: {100 * c['macro']:+.1f} points "
                 f"[{100 * c['low']:+.1f}, {100 * c['high']:+.1f}], McNemar p = {c['p']:.2g}")
    return text


def write_report(rec):
    """Write `<out>/report.html` from what lies in the run folders; return its path."""
    from orcalab import evaluate as judge, show
    out = Path(rec.out)
    trained = [s for s in rec.stages if s.name in finished(rec)]
    scores, records = cautious(rec)
    lead, sections = html_lead(rec, records), []
    if scores:
        rows = [[t.name, t.strategy, "yes" if t.direct else "no", t.why] for t in rec.tasks]
        sections.append(("What each stage taught", [show.macro(scores), show.table(*show.task_rows(scores, rec.tasks))]))
        last = [s for s in scores if s["student"] in ("stage3_gpt4", "answer_only")]
        sections.append(("Which answers need explaining", [
            show.by_task(last), show.table(rows, ["task", "strategy", "should a direct answer do?", "why, written beforehand"])]))
    grid = judge.read_answers(out / "grid")
    if grid:
        every = [{"student": s, "system": m, **judge.score(r)} for (s, m), r in grid.items()]
        sections.append(("Which system message wins where", [show.heat(every, s) for s in sorted({s for s, _ in grid})]))
    if trained:
        cards = [config.read_json(s.folder / "config.json") for s in trained]
        folders = [out / "prepared" / c["seal"]["data"] for c in cards]
        results = [(s, show.metrics(s.folder)) for s in trained]
        rows = [[s.name, len(m), sum(x["tokens"] for x in m), sum(x["targets"] for x in m), *(f"{config.read_json(s.folder / 'results.json')[k]:.3f}" for k in ("first_loss", "last_loss")),
                 f"{sum(x['tokens'] for x in m) / sum(x['seconds'] for x in m):.0f}"] for s, m in results]
        sections.append(("Loss by stage", [show.loss_curve(*(s.folder for s in trained)),
                         show.table(rows, ["stage", "steps", "tokens", "targets", "first loss", "last loss", "tokens/s"])]))
        sections.append(("What the stages were trained on", [show.mixture(*(config.read_json(f / "card.json") for f in folders))]))
    if scores:
        sections.append(("Answers to read", [answers_table(records)]))
    if trained:
        sections.append(("Settings and fingerprints", [f"<pre>{html.escape(rec.doc)}</pre>", f"<pre>{html.escape(json.dumps(cards, indent=1))}</pre>"]))
    return show.report(out / "report.html", f"orcalab: recipe {rec.name}, seed {rec.seed}", lead, sections)


def html_lead(rec, records):
    """Return the report's first paragraph, its numbers computed from the answers."""
    from orcalab import evaluate as judge
    own = sorted({html.escape(s.rows) for s in rec.stages if s.rows != "procedural"})
    said = ("On this recipe a program stands in for GPT-4: it writes the worked answers, so what carries over to real teachers is the comparison, "
            "not the numbers. " if not own else f"Trained on rows from {', '.join(own)}; the held-out questions, if any were asked, are reasoning_gym's. ")
    if not {"stage3_gpt4", "answer_only"} <= set(records):
        return said
    c = judge.compare(records["stage3_gpt4"], records["answer_only"])
    a, b = judge.score(records["stage3_gpt4"]), judge.score(records["answer_only"])
    return said + (f"The student that saw explained answers with the strategy erased gets <b>{a['macro']:.1%}</b> of {a['questions']} "
                   f"held-out questions (mean over tasks), the one that saw answers only, from the same checkpoint and for the same number of "
                   f"tokens, <b>{b['macro']:.1%}</b>: a difference of <b>{100 * c['macro']:.1f}</b> points "
                   f"[{100 * c['low']:.1f}, {100 * c['high']:.1f}].")


def answers_table(records):
    """Return the first two answers per task of the last students, side by side, as HTML."""
    from orcalab import show
    names = [n for n in ("base", "stage3_gpt4", "answer_only") if n in records] or list(records)[:1]
    rows = []
    for r in records[names[0]]:
        if r["number"] < 2:
            same = [next(x for x in records[n] if (x["task"], x["number"]) == (r["task"], r["number"])) for n in names]
            rows.append([r["task"], r["question"][-90:], r["gold"], *(("✓ " if x["right"] else "✗ ") + x["text"][:160] for x in same)])
    return show.table(sorted(rows), ["task", "question (end)", "gold", *names])


def main(words=None):
    """Run the command line; a mistake of the user's ends in one line and exit status 2."""
    words = sys.argv[1:] if words is None else words
    try:
        if not words or words[0] == "help" or {"-h", "--help"} & set(words):
            print(usage(), flush=True)
            return 0
        if words[0] == "--version":
            print(orcalab.__version__)
            return 0
        verb = config.choose(words[0], VERBS, "verb")
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # a scheduler's stop ends the notebook too, as Ctrl-C does
        {"run": run, "train": train, "prepare": prepare, "evaluate": evaluate}[verb](**arguments(words[1:]))
    except BrokenPipeError:  # `orcalab --help | head`: nobody reads on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, OSError) as e:
        print(f"orcalab: {e}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
