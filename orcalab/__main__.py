"""The command line: `orcalab run` drives the notebooks; train, prepare and evaluate are their work alone."""

import os
import re
import signal
import sys
import time
from dataclasses import fields
from pathlib import Path

import orcalab
from orcalab import config, endpoint, exam, recipes, sources, sweep as sweeps, terminal
from orcalab.execute import corridor, refuse_other_inputs
from orcalab.progress import clock
from orcalab.strategies import FINAL

VERBS = {
    "run": "execute every notebook of the recipe, in order, and write report.html",
    "train": "train the recipe's stages without notebooks (--stage NAME for one)",
    "plan": "say what each stage will cost before anything is loaded: steps, tokens, GiB by kind, hours (--on A100-80 for another device, --nodes 4 --gpus 8 for several)",
    "prepare": "prepare the rows of every stage, and print what is in them",
    "evaluate": "ask the trained students the held-out questions, or the paper's benchmarks (--tasks bbh --data FOLDER), and print the scores",
    "teach": "ask a teacher the questions of a stage's rows, keep a ledger, write the answers as rows (--status sums the ledger up)",
    "chat": "talk with a student in the terminal (--model FOLDER for any model; /help says what else can be typed)",
    "export": "write a student to a folder for transformers, vLLM, MLflow, AzureML or llama.cpp (--to FOLDER, --formats hf,mlflow,azureml,gguf)",
    "sweep": "train and evaluate a recipe at many settings, and compare them (--over \"lr=1e-4,3e-4 seed=0,1\" --at_once 2; --status compares what is there)",
    "choose": "try strategies with the student that a stage starts from, and choose one for each family of tasks",
}


PLAIN = {"name", "stages", "tasks", "mixes", "doc", "start"}  # fields that no flag sets
WHOM, TALK, EXAM, SWEEP = ({f.name for f in fields(c)} - ({"name"} if c is exam.Exam else PLAIN) for c in (endpoint.Teacher, terminal.Talk, exam.Exam, sweeps.Sweep))
COMMON = ("recipe", "seed", "out", "base", "lr", "steps")  # what every stage's notebook has
JUDGING = WHOM - {"model", "first", "calls"}  # how a judge is asked


def usage(verb=""):
    """Return the help text of all verbs, or of what one of them takes, made from the config dataclasses."""
    stages, rows = ("train", "plan", "prepare", "teach", "choose", "chat", "export"), [v for v in VERBS if v not in ("run", "chat", "export")]
    groups = [("of the recipe", config.Recipe, VERBS), ("of every stage", config.Config, ["run", *rows]), ("of the teacher (teach)", endpoint.Teacher, ["teach", "evaluate"]), ("of a conversation (chat)", terminal.Talk, ["chat"]),
              ("of benchmarks (evaluate); a judge takes the teacher's", exam.Exam, ["evaluate"]), ("of a sweep (sweep)", sweeps.Sweep, ["sweep"])]
    lines = [(f"usage: orcalab {verb or 'VERB'} [--name value ...]", VERBS), ("", VERBS), *((f"  {name:<10}{text}", [name]) for name, text in VERBS.items()), ("", VERBS),
             ("  --recipe    name of the recipe, laptop if none is given: " + " or ".join(recipes.RECIPES), VERBS), ("  --stage     one of its stages, by name", stages), ("  --rows may name mixtures: " + ", ".join(m.name for m in recipes.MIXES), rows),
             ("  or sources (NAME, or NAME:FOLDER): " + ", ".join(sources.SOURCES), rows), ("  or files and folders", rows),
             ("  --teacher   " + " or ".join(endpoint.TEACHERS) + ", or what rows are to say in their column teacher", ["teach"]), ("  --chosen    strategies.json of `orcalab choose`", ["teach"])]
    for head, cls, of in groups:
        lines += [("", of), (f"settings {head}:", of), *((f"  --{n:<18}{t}", of) for n, t in config.help_of(cls).items() if n in takes(verb) and (n not in PLAIN or cls is exam.Exam) and (verb != "run" or n in COMMON and (cls is config.Recipe or n not in config.help_of(config.Recipe))))]
    return "\n".join([text for text, of in lines if not verb or verb in of] + ["", "what one verb takes: orcalab VERB --help"] * (not verb))


def takes(verb):
    """Return the names of the settings that a verb takes, of all verbs for ""."""
    own = {"teach": {"teacher", "chosen", "status", *WHOM}, "plan": {"on", "nodes", "gpus"}, "chat": TALK, "evaluate": EXAM | JUDGING, "export": {"model", "to", "formats"}, "sweep": {"status", *SWEEP}}
    return {"recipe", "stage", *(f.name for c in (config.Recipe, config.Config) for f in fields(c) if f.name not in PLAIN), *(own.get(verb, ()) if verb else set().union(*own.values()))}


def arguments(words, verb="train"):
    """Turn `--name value` pairs into a dictionary; raise a ValueError for anything else."""
    given = {}
    words = [w for word in words for w in ([word, "yes"] if word == "--status" and verb in ("teach", "sweep") else word.split("=", 1) if re.match(r"--\w+=", word) else [word])]
    for at in range(0, len(words), 2):
        name = config.choose(words[at].removeprefix("--"), sorted(takes(verb)), "parameter")
        if not words[at].startswith("--") or at + 1 == len(words):
            raise ValueError(f"expected --name value, got {' '.join(words[at:at + 2])!r}")
        given[name] = words[at + 1]
    return given


def run(recipe="laptop", **given):
    """Execute the notebooks in order through papermill; leave executed copies in `<out>/notebooks`, `<out>/report.html`, and a table on the terminal."""
    rec, begun = recipes.get(recipe, **given), time.time()
    copies = corridor(rec, given)
    from orcalab import report
    page, text = report.write_report(rec)
    print(f"\n{text}\n\n{page} ({clock(time.time() - begun)} in all)")
    print(f"next: open that page, or: jupyter lab {copies[-1]}")


def train(recipe="laptop", stage=None, **given):
    """Train the recipe's stages, or one, without notebooks; write report.html."""
    from orcalab import card, cluster, corpus, model as models, ranks, report, train as trainer
    from orcalab.prepared import open_prepared
    rec = recipes.get(recipe, **given)
    stages = [rec.stage(stage)] if stage else list(rec.stages)
    if ranks.begin(stages[0].device):
        sys.stdout = open(os.devnull, "w")  # the first of several processes speaks for all
    for cfg in stages:
        cluster.share(cfg, ranks.world())
    refuse_other_inputs(stages)
    for cfg in stages:
        if cfg.start not in ("base", *(s.name for s in stages)) and cfg.start not in rec.finished:
            raise ValueError(f"{cfg.name} starts from {cfg.start}, which is not trained yet: no {rec.stage(cfg.start).folder / 'model'}")
    if rec.base != "tiny-random":
        ranks.first(lambda: models.resolve(rec.base))  # a folder that holds a tokenizer alone is no base
    ready, tokenizer = [], models.load_tokenizer(rec.base, rec.stages[0].template)
    for cfg in stages:  # every row of every stage is read and proved before anything is trained
        ready.append(open_prepared(ranks.first(lambda: corpus.prepare(rec, cfg, tokenizer).folder)))
        print(card.summary(ready[-1].card, ready[-1].steps), flush=True)
    for cfg, prepared in zip(stages, ready):
        start = None if cfg.start == "base" else rec.stage(cfg.start).folder / "model"
        if cfg.finished:
            print(f"{cfg.name} is trained already ({cfg.folder}): nothing is done again", flush=True)
        result = trainer.train(cfg, prepared, start)
        print(f"{cfg.name}: loss {result['first_loss']:.3f} -> {result['last_loss']:.3f}, {result['tokens']} tokens, "
              f"{result['tokens_per_s']:.0f} tokens/s; {result['peak_gib']:.2f} GiB at its peak, {result['planned_gib']:.2f} planned", flush=True)
    print(ranks.first(lambda: report.write_report(rec)[0]))


def needed(given, *names):
    """Train those of a recipe's stages that are not trained yet, first what each starts from: for a notebook that is run alone."""
    for cfg in map(recipes.get(**given).stage, names):
        if not cfg.finished:
            needed(given, *{cfg.start} - {"base"})
            print(f"{cfg.name} is not trained in {cfg.out}: training it first, {cfg.steps or 'as many as its rows take'} steps of {cfg.tokens_per_step} tokens. Stopping is safe, for the same cell "
                  f"goes on from the last checkpoint, one every {cfg.save_every} steps; if this is the wrong folder, stop and set out", flush=True)
            train(stage=cfg.name, **given)


def plan(recipe="laptop", stage=None, on="", nodes="", gpus="", **given):
    """Say what each stage will cost, before anything is loaded or bought; beside it what it took, where it is trained already.

    Rows that are prepared, or few enough to prepare, are counted; a mixture that is not prepared is estimated, and the text says so. Several GPUs are A100-80, unless `on` says otherwise.
    """
    if not all(re.fullmatch("[1-9][0-9]*|", str(n)) for n in (nodes, gpus)):
        raise ValueError(f"nodes, and gpus of each, are whole numbers of at least 1, got {nodes or 1} and {gpus or 1}")
    from orcalab import corpus, forecast, model as models, prepared
    rec = recipes.get(recipe, **given)
    stages, ready, rows = [rec.stage(stage)] if stage else rec.stages, {}, {}
    for cfg in stages:
        cards = {p.parent: config.read_json(p) for p in (Path(cfg.out) / "prepared").glob(f"{cfg.name}-*/card.json")}
        same = [p for p, c in cards.items() if c["config"]["rows"] == cfg.rows and all(c["made_of"][k] == v for k, v in cfg.settings.items() if k in c["made_of"])]
        if same:
            ready[cfg.name] = prepared.open_prepared(same[0])
        elif cfg.rows in recipes.EXPECTED:
            rows[cfg.name] = round(recipes.EXPECTED[cfg.rows] * cfg.scale)
        else:
            ready[cfg.name] = corpus.prepare(rec, cfg, models.load_tokenizer(rec.base, cfg.template))
    on, many = on or "A100-80" * bool(nodes or gpus), (int(nodes or 1), int(gpus or 1))
    print(forecast.describe(stages, forecast.shape_of(rec.base, stages[0].template, stages[0].rope), on, ready, rows, many))
    for cfg in stages:
        if cfg.finished and "peak_gib" in (done := config.read_json(cfg.folder / "results.json")):
            print(f"{cfg.name} is trained: {done['peak_gib']:.2f} GiB at its peak, {done['planned_gib']:.2f} were planned; {done['seconds'] / 3600:.2f} hours")
    if rows:
        print(f"exact, once the rows are prepared: orcalab prepare --recipe {recipe}")


def prepare(recipe="laptop", stage=None, **given):
    """Prepare the rows of every stage, or of one: sources, rows, mixture, examples, plan, with a data card; audit what was erased."""
    from orcalab import card, corpus, data, model as models
    rec = recipes.get(recipe, **given)
    tokenizer = models.load_tokenizer(rec.base, rec.stages[0].template)
    for cfg in [rec.stage(stage)] if stage else rec.stages:
        prepared = corpus.prepare(rec, cfg, tokenizer)
        print(card.summary(prepared.card, prepared.steps), flush=True)
        if prepared.card["report"]["erased"]:
            found = data.audit(prepared, tokenizer)
            print(f"  audit: {found['erased']} rows erased, in the ids of {found['leaks']} of them any of the {found['texts']} erased messages can be read", flush=True)
            if found["leaks"]:
                raise ValueError(f"{prepared.folder}: an erased message can still be read; delete the folder and prepare it again")
        print(f"  {prepared.folder / 'README.md'}", flush=True)


def evaluate(recipe="laptop", **given):
    """Ask every trained student of the recipe under its messages, or benchmarks with --tasks; print the scores, write results.json and a page."""
    from orcalab import report
    how = config.change(exam.Exam(), **{k: v for k, v in given.items() if k in EXAM})
    judge = endpoint.get("judge", **{"temperature": 0.0, "model": how.judge, **{k: v for k, v in given.items() if k in JUDGING}})
    given = {k: v for k, v in given.items() if k not in EXAM | JUDGING}
    if how.model and "out" not in given:
        given["out"] = "runs/" + "-".join(exam.students(None, how))
    rec = recipes.get(recipe, **{"messages": exam.BOTH, **given} if how.tasks or how.harness else given)
    if how.harness:
        return exam.in_harness(rec, how, int(given.get("questions", 0)))
    if how.tasks:
        root, sets = exam.ask(rec, how, given.get("data", ""), int(given.get("questions", 0)), given.get("template"), judge)
    else:
        root = exam.ask_own(rec, how, given.get("template"))
    if how.shard:
        print(f"share {how.shard} is answered; once all are, the same command without --shard scores them")
    else:
        print(*(report.write_exam(rec, root, sets, judge) if how.tasks else report.write_report(rec)), sep="\n")


def answering(recipe, stage, given):
    """Return the folder of a stage's student, the last that learns explained answers if none is named; the base's name if nothing is trained."""
    rec, cfg = asking(recipe, stage, given)
    if cfg.finished:
        return str(cfg.folder / "model")
    if stage:
        raise ValueError(f"{cfg.name} is not trained yet: no {cfg.folder / 'model'}")
    print(f"{cfg.name} is not trained in {rec.out}, so this is the base model; first: orcalab train --recipe {recipe} --out {rec.out}", file=sys.stderr)
    return rec.base


def refuse_both(model, recipe, stage):
    """Raise a ValueError where a model is named twice."""
    if model and (recipe or stage):
        raise ValueError(f"either --model, or --recipe and --stage: which is meant, {model} or {stage or recipe}?")


def chat(recipe="", stage=None, **given):
    """Talk with a student in the terminal: a stage's, the last one's that explains, or any model."""
    how = config.change(terminal.Talk(), **{k: v for k, v in given.items() if k in TALK})
    refuse_both(how.model, recipe, stage)
    terminal.begin(how, how.model or answering(recipe or "laptop", stage, {k: v for k, v in given.items() if k not in TALK - {"seed"}}))


def export(recipe="", stage=None, model="", to="", formats="hf", **given):
    """Write a student to a folder for those who serve it."""
    if not to:
        raise ValueError("say where to write the model, with --to FOLDER")
    refuse_both(model, recipe, stage)
    from orcalab import serve
    serve.export(model or answering(recipe or "laptop", stage, given), to, formats)


def asking(recipe, stage, given):
    """Return a recipe and the stage whose questions are asked: the one named, else the last that learns explained answers."""
    rec = recipes.get(recipe, **given)
    return rec, rec.stage(stage or [s.name for s in rec.stages if s.answers == "explained"][-1])


def teach(recipe="laptop", stage=None, teacher="", chosen="", status="", **given):
    """Ask a teacher the questions of a stage's rows, keep every answer in a ledger, and write those that may be learned as rows."""
    from orcalab import ledger, show, teacher as teachers
    name = teacher or Path(str(given.get("model", ""))).name.replace(":", "-")
    whom = config.change(endpoint.get(teacher) if teacher else endpoint.Teacher(name or "teacher"), **{k: v for k, v in given.items() if k in WHOM})
    rec, cfg = asking(recipe, stage, {k: v for k, v in given.items() if k not in WHOM})
    folder = Path(rec.out) / "teacher" / whom.name
    if status:
        found = sorted(folder.parent.glob("*/ledger.jsonl")) if not name else [folder / "ledger.jsonl"]
        for path in found or [folder.parent / "*" / "ledger.jsonl"]:
            with ledger.Ledger(path) as book:
                print(f"{path}: {len(book):,} answers" + (f"; {book.torn} lines broke off and do not count" if book.torn else ""))
                print(show.text_table(*book.table()))
        return
    if chosen and not Path(chosen).exists():
        raise ValueError(f"there is no {chosen}: `orcalab choose` writes it")
    picked = {f: c["chosen"] for f, c in config.read_json(chosen).items()} if chosen else None
    endpoint.client_of(whom, endpoint.Pace()).close()  # says what is missing before there is a ledger
    endpoint.knock(whom)
    asked, total = teachers.of_stage(rec, cfg, whom, picked)
    with ledger.Ledger(folder / "ledger.jsonl", write=True) as book:
        print(teachers.forecast(asked(), total, whom), flush=True)
        said = teachers.collect(asked(), whom, book, total)
        print(counts(said), flush=True)
        kept = teachers.rows_from(asked(), whom, book, folder, config.listed(cfg.drop))
        print(f"rows: {counts(kept)}")
        print(show.text_table(*book.table()))
    missing = said["unanswered"] or any(k.startswith("stopped") for k in said)
    more = " with more of a budget" if any("budget" in k for k in said) else ""
    print(f"{folder / 'rows.jsonl'}{f'; the same command{more} goes on' if missing else ''}")
    for why, advice in (("cut off", "raise --max_tokens"), ("format", f"the instruction asks for a last line {FINAL!r}; small models often leave it out, and --system empty does not ask for it")):
        if n := kept[f"dropped: {why}"]:
            print(f"{n} dropped for {why!r}: {advice} ({folder / 'dropped.jsonl'} has them)")
    if kept["kept"]:
        keep = "" if cfg.system in ("strategy", "cautious") else "--system keep "
        print(f"next: orcalab prepare --recipe {recipe} --stage {cfg.name} --rows {folder / 'rows.jsonl'} {keep}--steps 0 --epochs 1 --out {Path(rec.out).with_name('taught')}")
    return 130 if "stopped: you stopped it" in said else 1 if missing else 0


def counts(said):
    return ", ".join(f"{k} {v:,}" if not k.startswith(("stopped", "because")) else k for k, v in said.items()) or "nothing"


def choose(recipe="laptop", stage=None, **given):
    """Try candidate strategies with the student that a stage starts from, on a few questions of each family; write strategies.json."""
    from orcalab import corpus, dress as dressing, evaluate as judge, families, procedural, report, show
    rec, cfg = asking(recipe, stage, given)
    name = cfg.start if cfg.start in rec.finished else "base"
    if name != cfg.start:
        print(f"{cfg.start}, where {cfg.name} starts, is not trained in {rec.out}: the base model is tried instead")
    student = rec.base if name == "base" else rec.stage(name).folder / "model"
    questions = {}
    if cfg.rows.startswith("procedural"):
        tasks = procedural.held_out(rec.tasks, rec.questions + rec.grid)  # behind those that students are scored on
        for t in rec.tasks:
            questions.setdefault(families.family_of(t.name).name, []).extend(tasks[t.name][rec.questions:])
    else:
        for n, row in enumerate(corpus.rows_of(rec, cfg)[0]):
            if n >= 5000 and all(len(q) == rec.grid for q in questions.values()):
                break  # a family that did not come up by now is a rare one
            own = questions.setdefault(families.family_of(row.task, row.kind).name, [])
            if row.answer and len(own) < rec.grid and dressing.single(row):
                own.append({"question": row.messages[-2]["content"], "answer": row.answer})
    questions = {f: q for f, q in questions.items() if q}
    if not questions:
        raise ValueError(f"no row of {cfg.rows} has a gold answer, which choosing needs to know what is right")
    folder = Path(rec.out) / "choose" / cfg.name
    found = judge.choose_strategies(judge.Lazy(student, cfg.device, cfg.dtype), name, questions, folder, rec)
    print(show.text_table(*report.choice_rows(found)))
    if not any(t["right"] for c in found.values() for t in c["tried"].values()):
        print("no answer was right under any strategy, so this decides nothing: our own are kept")
    print(f"{folder / 'strategies.json'} (student: {student})\nnext: orcalab teach --recipe {recipe} --stage {cfg.name} --rows {cfg.rows} --chosen {folder / 'strategies.json'} --first 20 --out {rec.out} --model NAME")


def sweep(status="", **given):
    """Do a recipe's runs at many settings, several at once, each in a folder of its own, and compare what lies in these folders."""
    how, given = config.change(sweeps.Sweep(), **{k: v for k, v in given.items() if k in SWEEP}), {k: v for k, v in given.items() if k not in SWEEP}
    folder = Path(given.pop("out", f"runs/{given.get('recipe', 'laptop')}-sweep"))
    if how.only:
        name = config.choose(how.only, [p.parent.name for p in folder.glob("*/sweep.json")], "run")
        return sweeps.do(folder / name, {"prepare": prepare, "train": train, "evaluate": evaluate, "run": run})
    if asked := [] if status else sweeps.plan(folder, how, given, recipes.get):
        sweeps.work(asked, how.at_once)
    from orcalab import report
    page, text, missing = report.write_sweep(folder)
    print(f"\n{text}\n\n{page}")
    return int(any(out.name in missing for out in asked))


def several():
    """Tell whether torchrun, or who sets what it sets, started more than one process."""
    return "LOCAL_RANK" in os.environ and int(os.environ.get("WORLD_SIZE", 1)) > 1


def main(words=None):
    """Run the command line; a mistake of the user's ends in one line and exit status 2."""
    words = sys.argv[1:] if words is None else words
    try:
        if not words or words[0] == "help" or {"-h", "--help"} & set(words):
            print(usage(words[0] if words and words[0] in VERBS else ""), flush=True)
            return 0
        if words[0] == "--version":
            print(orcalab.__version__)
            return 0
        verb = config.choose(words[0], VERBS, "verb")
        if verb != "train" and several():
            raise ValueError(f"{verb} is no work for several processes: torchrun is for train, and evaluate has --shard")
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # a scheduler's stop ends the notebook too, as Ctrl-C does
        return {"run": run, "train": train, "plan": plan, "prepare": prepare, "evaluate": evaluate, "teach": teach, "choose": choose, "chat": chat, "export": export, "sweep": sweep}[verb](**arguments(words[1:], verb)) or 0
    except BrokenPipeError:  # `orcalab --help | head`: nobody reads on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, OSError) as e:
        print(f"orcalab: {e}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        if several():
            print(f"orcalab: rank {os.environ['RANK']} stops, for another process ended or the job was to end: the same command goes on from the last whole checkpoint", file=sys.stderr)
            return 130
        print("\nstopped; the same command goes on from what is kept: notebooks that are done, checkpoints, answers", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
