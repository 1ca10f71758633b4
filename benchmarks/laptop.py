"""The recorded run of the laptop recipe, and what the README and the heads of the notebooks say about it.

    python benchmarks/laptop.py 0      # `orcalab run --seed 0` in a folder of its own, timed, with its peak memory: tens of minutes
    python benchmarks/laptop.py smoke  # `orcalab run --recipe smoke`, for the times and memory at the notebooks' heads: about two minutes
    python benchmarks/laptop.py        # seconds: the README's block and its figure, from laptop.json

Every number in the README's block comes from laptop.json; tests/test_readme.py makes both again and compares. Time and memory of each notebook, of smoke
and of seed 0, are in notebooks.json; notebooks/tidy.py writes them where they are read, and is called at the end.
"""

import html
import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

from orcalab import config, data, evaluate, recipes, scores, show

HERE = Path(__file__).resolve().parent
RECORD, FIGURE, README, NOTEBOOKS = HERE / "laptop.json", HERE / "laptop.svg", HERE.parent / "README.md", HERE / "notebooks.json"
BEGIN, END = "<!-- recorded run: written by benchmarks/laptop.py -->", "<!-- end of the recorded run -->"
EXPLAINED, ANSWERS = "stage3_gpt4", "answer_only"


def memory(process, how="pss"):
    """Return the bytes of a process and its children, a page that several have in parts, where the system can tell (pss); of the process itself all of it, if `how` is rss."""
    import psutil
    total, found = 0, [process]
    try:
        found += process.children(recursive=True)
    except psutil.Error:  # it ended meanwhile
        pass
    for p in found:
        try:
            m = p.memory_full_info()
            total += getattr(m, how if p == process else "pss", m.rss)
        except psutil.Error:
            pass
    return total


def timed(out, *words):
    """Execute `orcalab run` with these words and out, afresh.

    Returns: (what it printed, {"minutes", "peak_gib", "notebooks": {name: {"seconds", "gib"}}}); a notebook's memory is that of its kernel and what it starts, once a second.
    """
    import psutil
    begun, peak, high, lines = time.time(), 0, Counter(), out.with_suffix(".out")
    lines.parent.mkdir(exist_ok=True)
    with open(lines, "w", encoding="utf-8") as f:
        job = psutil.Popen([sys.executable, "-m", "orcalab", "run", *words, "--out", str(out)], stdout=f, stderr=subprocess.STDOUT)
        while job.poll() is None:
            now = lines.read_text(encoding="utf-8").count(" so far\n")  # as many are done, so this one works
            kernels = sorted(job.children(), key=psutil.Process.create_time)  # its own is the oldest; beside it the next ones' get ready
            peak, high[now] = max(peak, memory(job)), max(high[now], *(memory(k, how="rss") for k in kernels[:1]), 0)
            time.sleep(1)  # looking costs, too
    printed = lines.read_text(encoding="utf-8")
    if job.returncode:
        raise SystemExit(printed)
    made = {name: {"seconds": round(done["seconds"], 1), "gib": round(high[n] / 2**30, 2)} for n, (name, done) in enumerate(config.read_json(out / "run.json").items())}
    return printed, {"minutes": round((time.time() - begun) / 60, 1), "peak_gib": round(peak / 2**30, 1), "notebooks": made}


def keep(recipe, made):
    """Note the times and memory of a recipe's notebooks, of seed 0, in notebooks.json."""
    record = config.read_json(NOTEBOOKS) if NOTEBOOKS.exists() else {}
    config.write_json(NOTEBOOKS, {**record, recipe: {"seed": 0, "cores": os.cpu_count(), **made}})


def run(seed):
    """Run the main job for one seed, afresh, and note what it printed, took and found."""
    out = HERE.parent / "runs" / f"recorded-{seed}"
    if out.exists():
        raise SystemExit(f"{out} is there already: a recorded run starts from nothing, so move it away first")
    printed, made = timed(out, "--seed", str(seed))
    if seed == 0:
        keep("laptop", made)
    rec = recipes.get("laptop", seed=seed, out=str(out))
    answers = {s: r for (s, m), r in evaluate.read_answers(out / "answers").items() if m == "cautious"}
    order = [s for s in ["base", *(c.name for c in rec.stages)]]
    stages = [[c.name, show.metrics(c.folder)] for c in rec.stages]
    return {"seed": seed, "recipe": recipe_digest(), "minutes": made["minutes"], "peak_gib": made["peak_gib"],
            "scores": [{"student": s, **scores.score(answers[s])} for s in order],
            "difference": scores.compare(answers[EXPLAINED], answers[ANSWERS]),
            "over_base": scores.compare(answers[EXPLAINED], answers["base"]),
            "over_stage2": {s: scores.compare(answers[s], answers["stage2_chatgpt"]) for s in (EXPLAINED, ANSWERS)},
            "one_answer": {t.name: max(Counter(r["answer"] for r in answers[EXPLAINED] if r["task"] == t.name).values()) / rec.questions for t in rec.tasks},
            "stages": [{"name": n, "steps": len(m), "tokens": sum(x["tokens"] for x in m), "targets": sum(x["targets"] for x in m),
                        "tokens_per_s": round(sum(x["tokens"] for x in m) / sum(x["seconds"] for x in m))} for n, m in stages],
            "printed": [x for x in printed.replace(str(HERE.parent) + "/", "").splitlines() if "left" not in x]}


def recipe_digest():
    """Digest what the laptop recipe trains and asks; a recorded run of another recipe is not this one's."""
    rec = recipes.laptop()
    stages = [{k: v for k, v in s.settings.items() if k != "seed"} for s in rec.stages]
    return config.digest([data.BUILDER, stages, [[t.name, t.strategy, t.settings, t.direct] for t in rec.tasks], rec.questions, rec.max_new_tokens, rec.base])


def points(c):
    return f"{100 * c['macro']:+.1f} points [{100 * c['low']:+.1f}, {100 * c['high']:+.1f}]"


def block(runs):
    """Return the README's Markdown on the recorded runs."""
    first = runs[0]
    lines = [x for x in first["printed"] if "so far" in x or not x.startswith("[")]  # without what was said inside a notebook
    text = ["```text", f"$ orcalab run --seed {first['seed']} --out runs/recorded-{first['seed']}", *lines, "```", "",
            "| seed | base model | explained, strategy erased | answers only | explained minus answers | minutes | peak memory |",
            "|---|---|---|---|---|---|---|"]
    for r in runs:
        s = {x["student"]: x for x in r["scores"]}
        text.append(f"| {r['seed']}{'*' if r.get('note') else ''} | {s['base']['macro']:.1%} | {s[EXPLAINED]['macro']:.1%} | {s[ANSWERS]['macro']:.1%} | {points(r['difference'])} "
                    f"| {r['minutes']} | {r['peak_gib']} GiB |")
    s = {x["student"]: x for x in first["scores"]}
    both = [next(x for x in first["stages"] if x["name"] == n) for n in (EXPLAINED, ANSWERS)]
    lost = [t for t, d in first["difference"]["by_task"].items() if d < 0]
    busy = [str(r["seed"]) for r in runs if r.get("beside_other_work")]
    beside = f"Other work used the same cores beside seed {' and '.join(busy)}; alone, seed 0 with thirteen of the notebooks took 24 minutes (LOG.md)." if busy else ""
    text += [f"\n\\* {r['note']}" for r in runs if r.get("note")]
    text += ["", f"Macro accuracy over {len(s['base']['by_task'])} tasks, {s['base']['questions']} held-out questions a student; in brackets the 95 % interval of a "
             f"paired bootstrap. Both students start from stage 2 and are trained for as many tokens ({both[0]['tokens']:,} and "
             f"{both[1]['tokens']:,}; of these {both[0]['targets']:,} and {both[1]['targets']:,} are learned, since a bare answer is short). "
             + (f"The explained one scores lower on {', '.join(lost)} (seed {first['seed']}). " if lost else "The explained one scores lower on no task. ") + beside,
             "", f"**What that difference is made of** (seed {first['seed']}). Stage 2 explains already, and gets {s['stage2_chatgpt']['macro']:.1%}. Stage 3 changes that by "
             f"{points(first['over_stage2'][EXPLAINED])}; training on bare answers instead changes it by {points(first['over_stage2'][ANSWERS])}. So most of the difference is a skill that "
             f"bare answers undo, and stage 1, which never saw an explanation, stands at {s['stage1_flan']['macro']:.1%}. The base model's {s['base']['macro']:.1%} is a matter of form as "
             "much as of skill: nobody showed it the form in which answers are read off."
             + "".join(f" On {t} the explained student gives one and the same answer to {x:.0%} of the questions, so its score there is the share of that answer and no skill."
                       for t, x in first["one_answer"].items() if x > 0.9),
             "", "![accuracy per task, answers only against explained and erased](benchmarks/laptop.svg)"]
    return "\n".join(text)


def figure(runs):
    """Return the README's figure as SVG: per task, the answer-only student and the explained one, a row each."""
    s = {x["student"]: x for x in runs[0]["scores"]}
    tasks = {t.name: t for t in recipes.TASKS}
    order = sorted(tasks, key=lambda t: (tasks[t].direct, -runs[0]["difference"]["by_task"][t]))
    green, orange, grey = show.COLOURS[EXPLAINED], show.COLOURS[ANSWERS], "#8A8A8A"
    left, wide, top, step = 250, 450, 74, 44
    at = lambda share: left + wide * share
    rows = [*((t.replace("_", " "), tasks[t].strategy, s[ANSWERS]["by_task"][t], s[EXPLAINED]["by_task"][t]) for t in order),
            ("mean over tasks", "", s[ANSWERS]["macro"], s[EXPLAINED]["macro"])]
    high = top + step * len(rows) + 34
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 760 {high}" font-family="system-ui, sans-serif" font-size="14" fill="{grey}">',
           "<title>Accuracy on held-out questions, per task</title>",
           f'<circle cx="{left + 7}" cy="26" r="7" fill="{orange}"/><text x="{left + 22}" y="31">answers only</text>',
           f'<circle cx="{left + 147}" cy="26" r="7" fill="{green}"/><text x="{left + 162}" y="31">explained, strategy erased</text>']
    out += [f'<line x1="{at(x)}" x2="{at(x)}" y1="{top - 24}" y2="{high - 34}" stroke="{grey}" stroke-opacity=".25"/>'
            f'<text x="{at(x)}" y="{high - 12}" text-anchor="middle" font-size="12">{x:.0%}</text>' for x in (0, 0.25, 0.5, 0.75, 1)]
    for n, (name, strategy, a, b) in enumerate(rows):
        y = top + step * n
        bold = ' font-weight="700"' if not strategy else ""
        out += [f'<text x="{left - 44}" y="{y}" text-anchor="end"{bold}>{html.escape(name)}</text>',
                f'<text x="{left - 44}" y="{y + 16}" text-anchor="end" font-size="11" opacity=".8">{html.escape(strategy)}</text>',
                f'<line x1="{at(a):.1f}" x2="{at(b):.1f}" y1="{y}" y2="{y}" stroke="{green if b >= a else orange}" stroke-width="4" stroke-opacity=".45"/>']
        for share, colour, other in ((a, orange, b), (b, green, a)):
            side = 1 if share > other or (share == other and colour == green) else -1
            out += [f'<circle cx="{at(share):.1f}" cy="{y}" r="8" fill="{colour}"/>',
                    f'<text x="{at(share) + side * 14:.1f}" y="{y + 5}" text-anchor="{"start" if side > 0 else "end"}" font-size="12"{bold}>{share:.0%}</text>']
    return "\n".join([*out, "</svg>"]) + "\n"


def put(readme, runs):
    """Return the README with its block on the recorded runs replaced."""
    before, rest = readme.split(BEGIN)
    return f"{before}{BEGIN}\n\n{block(runs)}\n\n{END}{rest.split(END)[1]}"


def main(*words):
    runs = {r["seed"]: r for r in (config.read_json(RECORD) if RECORD.exists() else [])}
    if "smoke" in words:
        with TemporaryDirectory() as folder:
            keep("smoke", timed(Path(folder) / "smoke", "--recipe", "smoke")[1])
    for seed in (int(w) for w in words if w != "smoke"):
        runs[seed] = run(seed)
        config.write_json(RECORD, sorted(runs.values(), key=lambda r: r["seed"]))
    runs = sorted(runs.values(), key=lambda r: r["seed"])
    FIGURE.write_text(figure(runs), encoding="utf-8")
    README.write_text(put(README.read_text(encoding="utf-8"), runs), encoding="utf-8")
    subprocess.run([sys.executable, HERE.parent / "notebooks" / "tidy.py"], check=True)
    s = {x["student"]: x["macro"] for x in runs[0]["scores"]}
    print(json.dumps({"peer": "answer-only student, same checkpoint, same tokens", "ratio": round(s[EXPLAINED] / s[ANSWERS], 3),
                      "work": f"{runs[0]['scores'][0]['questions']} held-out questions, seed {runs[0]['seed']}", "minutes": runs[0]["minutes"]}))


if __name__ == "__main__":
    main(*sys.argv[1:])
