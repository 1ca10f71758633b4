"""What a run found: a table on the terminal, and report.html, both made from what lies in the run folders."""

import base64
import gzip
import html
import inspect
import json
from itertools import product
from pathlib import Path

from orcalab import config, evaluate, exam, panels, show, sweep, tasks
from orcalab.scores import compare, score

PAIRS = (("stage3_gpt4", "answer_only"), ("explained_erased", "bare_answers"))  # explained and erased, and the control of bare answers


STYLE = """body{font:16px/1.6 system-ui,sans-serif;max-width:1060px;margin:2em auto;padding:0 1em;color:#222}
table{border-collapse:collapse;font-size:13px;margin:1em 0;display:block;overflow-x:auto}td,th{padding:5px 9px;
border-bottom:1px solid #8884;white-space:nowrap}
h1{font-size:1.7em}h2{margin-top:2em;border-top:1px solid #8884;padding-top:1em}pre{background:#8881;padding:1em;
overflow-x:auto;font-size:12px}nav{columns:2;margin:1.5em 0}.big{font-size:1.25em}figure{margin:1em 0}
@media(prefers-color-scheme:dark){body{background:#15171a;color:#ddd}a{color:#7ab8ff}}@media print{nav,summary{display:none}figure,tr{break-inside:avoid}}"""

# plotly's code lies in the page packed, a third of its size; the figures' data as they are
DRAW = """<script>Promise.resolve().then(()=>new Response(new Blob([Uint8Array.from(atob("PACKED"),c=>c.charCodeAt(0))]).stream().pipeThrough(new DecompressionStream("gzip"))).text()).then(code=>{
const s=document.createElement("script");s.textContent=code;document.head.append(s);document.querySelectorAll(".plotly-graph-div").forEach(d=>{
const f=JSON.parse(d.previousElementSibling.textContent);f.layout.font.color=matchMedia("(prefers-color-scheme:dark)").matches?"#bbb":"#555";Plotly.newPlot(d,f.data,f.layout,{displayModeBar:false,responsive:true})})}).catch(
()=>document.querySelectorAll("figure").forEach(f=>f.append(f.getAttribute("aria-label"))))</script>"""


def page(path, title, lead, sections):
    """Write one HTML file that opens offline, with a table of contents.

    Args:
        lead: one paragraph, HTML.
        sections: list of (heading, list of figures or HTML strings).
    """
    from plotly.offline import get_plotlyjs
    nav = "".join(f'<div><a href="#s{n}">{html.escape(h)}</a></div>' for n, (h, _) in enumerate(sections))
    drawn = lambda x: x if isinstance(x, str) else (f'<figure role="img" aria-label="{html.escape(show.alt(x))}"><script type="application/json">{x.to_json().replace("</", "<" + chr(92) + "/")}</script>'
                                                    f'<div class="plotly-graph-div" style="height:{x.layout.height}px"></div><noscript>{html.escape(show.alt(x))}</noscript></figure>')
    body = (f'<h2 id="s{n}">{html.escape(heading)}</h2>{"".join(map(drawn, items))}' for n, (heading, items) in enumerate(sections))
    packed = base64.b64encode(gzip.compress(get_plotlyjs().encode(), mtime=0)).decode()
    text = (f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{html.escape(title)}</title><style>{STYLE}</style>'
            f'<h1>{html.escape(title)}</h1><p class="big">{lead}</p><nav>{nav}</nav>{"".join(body)}{DRAW.replace("PACKED", packed)}</html>')
    path.parent.mkdir(parents=True, exist_ok=True)
    side = path.with_name(path.name + ".part")
    side.write_text(text, encoding="utf-8")
    return side.replace(path)


def pair(records):
    """Return the two students that a recipe compares, as far as both have answered, else nothing."""
    return next((p for p in PAIRS if set(p) <= set(records)), ())


def finding(tasks, scores, several, records):
    """Return the table and the comparison that the run was made for, as text; the arguments are what write_report reads."""
    if not scores:
        return "no student was evaluated yet"
    text = "\n\n".join(show.text_table(*made) for made in (show.task_rows(scores, tasks), show.score_rows(several)) if made[0])
    if both := pair(records):
        c = compare(*(records[n] for n in both))
        text += (f"\n\nexplained and erased minus answers only, same questions: {100 * c['macro']:+.1f} points "
                 f"[{100 * c['low']:+.1f}, {100 * c['high']:+.1f}], McNemar p = {c['p']:.2g}")
    return text


def write_report(rec):
    """Write `<out>/report.html` from what lies in the run folders; return its path, and what was found as text."""
    out = Path(rec.out)
    trained, found = [s for s in rec.stages if s.name in rec.finished], evaluate.read_answers(out / "answers")
    records = {s: r for (s, m), r in found.items() if m == "cautious"}
    scores = [{"student": n, "system": "cautious", **score(records[n])} for n in ("base", *(s.name for s in rec.stages)) if n in records]
    several = [{"student": n, "system": m, **score(found[n, m])} for n, said in rec.students.items() if len(said) > 1 for m in said if (n, m) in found]
    lead, sections = html_lead(rec, records), []
    if scores:
        rows = [[t.name, t.strategy, "yes" if t.direct else "no", t.why] for t in rec.tasks]
        sections.append(("What each stage taught", [show.macro(scores), show.table(*show.task_rows(scores, rec.tasks))]))
        last = [s for s in scores if s["student"] in pair(records)]
        sections.append(("Which answers need explaining", [show.dots(last), show.table(rows, ["task", "strategy", "should a direct answer do?", "why, written beforehand"])]))
    if several:
        sections.append(("What each student does under each message", [show.messages(several), show.table(*show.score_rows(several))]))
    if grid := evaluate.read_answers(out / "grid"):
        every = [{"student": s, "system": m, **score(r)} for (s, m), r in grid.items()]
        sections.append(("Which system message wins where", [show.heat(every, s) for s in sorted({s for s, _ in grid})]))
    if trained:
        cards = [config.read_json(s.folder / "config.json") for s in trained]
        rows = [[s.name, len(m), sum(x["tokens"] for x in m), sum(x["targets"] for x in m), *(f"{config.read_json(s.folder / 'results.json')[k]:.3f}" for k in ("first_loss", "last_loss")),
                 f"{sum(x['tokens'] for x in m) / sum(x['seconds'] for x in m):.0f}"] for s, m in ((s, show.metrics(s.folder)) for s in trained)]
        sections.append(("Loss by stage", [show.loss_curve(*(s.folder for s in trained)),
                         show.table(rows, ["stage", "steps", "tokens", "targets", "first loss", "last loss", "tokens/s"])]))
        sections.append(("What the stages were trained on", [show.mixture(*(config.read_json(out / "prepared" / c["seal"]["data"] / "card.json") for c in cards))]))
    if scores:
        names = [n for n in ("base", *pair(records)) if n in records] or list(records)[:1]
        some = sorted((r for n in names for r in records[n] if r["number"] < 2), key=lambda r: r["task"])
        sections.append(("Answers to read", ["<p>The first two questions of each task, as an extract.</p>", "<div" + panels.explore(some, most=len(some)).partition("<div")[2]]))
    if trained:
        prints = [[c["name"], *(c["seal"][k] for k in ("data", "tokenizer", "weights")), ", ".join(f"{k} {v}" for k, v in c["versions"].items())] for c in cards]
        sections.append(("Settings and fingerprints", [f"<pre>{html.escape(inspect.cleandoc(rec.doc))}</pre>", show.table(prints, ["stage", "rows", "tokenizer", "starts from weights", "made with"]),
                         *(f"<details><summary>{html.escape(c['name'])}, all of it</summary><pre>{html.escape(json.dumps(c, indent=1))}</pre></details>" for c in cards)]))
    return page(out / "report.html", f"orcalab: recipe {rec.name}, seed {rec.seed}", lead, sections), finding(rec.tasks, scores, several, records)


def write_sweep(folder):
    """Write results.json and sweep.html of a sweep from what lies in its runs' folders, whoever left it there; return the page, a table as text, and {run that is not done: its last words}."""
    runs, rows, left = {}, [], {}
    for out in sorted({p.parent for p in folder.glob("*/sweep.json")} | {p.parents[1] for p in folder.glob("*/*/metrics.jsonl")}):
        plan = out / "sweep.json"
        runs[out.name] = {"values": config.read_json(plan)["values"] if plan.exists() else {}, "done": sweep.done(out),
                          "stages": {p.parent.name: config.read_json(p) for p in sorted(out.glob("*/results.json")) if (p.parent / "metrics.jsonl").exists()},
                          "scores": [{"student": s, "system": m, **score(r)} for (s, m), r in evaluate.read_answers(out / "answers").items()]}
        if plan.exists() and not runs[out.name]["done"]:
            left[out.name] = sweep.said(out) if (out / "log.txt").exists() else "not begun"
    if not runs:
        raise ValueError(f"there is no run in {folder}")
    config.write_json(folder / "results.json", runs)
    students = sorted({s for r in runs.values() for s in (*r["stages"], *(x["student"] for x in r["scores"]))}, key=lambda s: [*show.NAMES, s].index(s))
    forms = {"last_loss": ".3f", "held_out": ".3f", "tokens_per_s": ".0f", "system": "", "macro": ".1%", "low": ".1%", "high": ".1%"}
    for student, (name, r) in product(students, runs.items()):
        for s in [s for s in r["scores"] if s["student"] == student] or [{}] * (student in r["stages"]):
            own = {**r["stages"].get(student, {}), **s}
            rows.append([student, name, *(f"{own[k]:{form}}" if k in own else "" for k, form in forms.items())])
    head, said = ["student", "run", "last loss", "held out", "tokens/s", "message", "macro", "95 % from", "to"], [f"{name} is not done: {line}" for name, line in left.items()]
    every = [{**s, "student": f"{s['student']}, {s['system']}" if s["system"] != "cautious" else s["student"], "system": name} for name, r in runs.items() for s in r["scores"]]
    figures = [show.messages(every).update_layout(title_text="How each student does, run by run")] if every else []
    for stage in [s for s in students if any(s in r["stages"] for r in runs.values())]:
        have = [name for name, r in runs.items() if stage in r["stages"]]
        figures.append(show.loss_curve(*(folder / name / stage for name in have), names=have).update_layout(title_text=f"Loss of {stage}, run by run"))
    made = page(folder / "sweep.html", f"orcalab: {folder.name}", f"{len(runs)} runs, {len(left)} of them not done.",
                       [("Runs beside each other", [show.table(rows, head), *(f"<p>{html.escape(x)}</p>" for x in said), *figures])])
    return made, "\n".join([show.text_table(rows, head), *said]), left


def html_lead(rec, records):
    """Return the report's first paragraph, its numbers computed from the answers."""
    own = sorted({html.escape(s.rows) for s in rec.stages if not s.rows.startswith("procedural")})
    said = ("On this recipe a program stands in for GPT-4: it writes the worked answers, so what carries over to real teachers is the comparison, "
            "not the numbers. " if not own else f"Trained on rows from {', '.join(own)}; the held-out questions, if any were asked, are reasoning_gym's. ")
    both = [records[n] for n in pair(records)]
    if not both:
        return said
    (a, b), c = map(score, both), compare(*both)
    return said + (f"The student that saw explained answers with the strategy erased gets <b>{a['macro']:.1%}</b> of {a['questions']} "
                   f"held-out questions (mean over tasks), the one that saw answers only, from the same checkpoint and for the same number of "
                   f"tokens, <b>{b['macro']:.1%}</b>: a difference of <b>{100 * c['macro']:.1f}</b> points "
                   f"[{100 * c['low']:.1f}, {100 * c['high']:.1f}].")


def beside_paper(made):
    """Return (rows, head): the paper's numbers on the benchmarks that were asked, each with its certainty, and ours with their intervals."""
    order = list(dict.fromkeys(s["benchmark"] for s in made["scores"] if s["by_task"]))
    paper = tasks.paper(order)
    rows = [[f"{model} (paper)", *(f"{n[b][0]:.2f} {n[b][1]}" if b in n else "" for b in order)] for model, n in paper.items()]
    for who in dict.fromkeys((s["student"], s["system"]) for s in made["scores"]):
        own = {s["benchmark"]: s for s in made["scores"] if (s["student"], s["system"]) == who}
        rows.append([f"{who[0]}, {who[1]}", *(f"{100 * s['macro']:.2f} [{100 * s['low']:.1f}, {100 * s['high']:.1f}]" if (s := own.get(b)) and s["by_task"] else "" for b in order)])
    asked = {b: next(len(s["by_task"]) for s in made["scores"] if s["benchmark"] == b and s["by_task"]) for b in order}
    there = {b: len(tasks.BENCHMARKS[b].tasks) for b in order}
    return rows, ["% right, mean over tasks", *(b if asked[b] == there[b] else f"{b} ({asked[b]} of {there[b]} tasks)" for b in order)]


def beside(made):
    """Draw accuracy on each benchmark beside that of some of the paper's models."""
    paper = tasks.paper({s["benchmark"] for s in made["scores"]})
    few = {m: {b: v for b, (v, _) in paper[m].items()} for m in ("LLaMA-2-Chat-13B", "Orca-2-7B", "Orca-2-13B", "ChatGPT", "GPT-4") if m in paper}
    return show.beside([s for s in made["scores"] if s["by_task"]], few)


def notes(made):
    """Return what the paper's numbers leave out, or count otherwise, benchmark by benchmark."""
    return " ".join(f"{b}: {tasks.BENCHMARKS[b].note}." for b in dict.fromkeys(s["benchmark"] for s in made["scores"]) if tasks.BENCHMARKS[b].note)


def costs(made, took):
    """Return (rows, head): what answers cost and how they ended, beside how good they are, a line for each benchmark, student and message."""
    share = lambda x: "" if x is None else f"{x:.0%}"
    lasted = lambda s: f"{x:.2f}" if (x := took[s["benchmark"]].get((s["student"], s["system"]))) else ""
    rows = [[s["benchmark"], s["student"], s["system"], s["questions"], "" if s["macro"] is None else f"{s['macro']:.1%}", share(s["chance"]) if s["by_task"] else "", share(s["format_ok"]), share(s["of_read"]) if s["by_task"] else "", share(s["ours"]), share(s["official"]), f"{s['tokens']:.0f}", lasted(s), share(s["cut"]), ", ".join(f"{k} {n}" for k, n in s["reasons"].items())] for s in made["scores"]]
    return rows, ["benchmark", "student", "message", "questions", "right", "guessing", "format ok", "right of read", "lettered: ours", "first capital", "new tokens", "seconds", "cut", "ended by"]


def versus_rows(made):
    """Return (rows, head): who is better on each benchmark, of one student or under one message, with Holm's adjustment over a benchmark's comparisons."""
    rows = [[b, f"{', '.join(c['a'])} - {', '.join(c['b'])}", f"{100 * c['macro']:+.1f}", f"{100 * c['low']:+.1f} to {100 * c['high']:+.1f}", c["only_a"], c["only_b"],
             *("" if c[p] is None else f"{c[p]:.2g}" for p in ("p", "holm"))] for b, pairs in made["versus"].items() for c in pairs]
    return rows, ["benchmark", "first minus second", "points", "95 % interval", "right in first alone", "in second alone", "p", "p (Holm)"]


def regret_rows(regret):
    """Return (rows, head): what a student loses on each task by choosing its strategy itself."""
    points = lambda r, k: f"{100 * r[k]:+.1f}"
    rows = [[s, t, r.get("best", ""), points(r, "macro" if t == "mean over tasks" else "regret"), f"{points(r, 'low')} to {points(r, 'high')}", points(r, "naive")]
            for s, of in regret.items() for t, r in [*of["by_task"].items(), ("mean over tasks", of)]]
    return rows, ["student", "task", "best strategy", "loses (points)", "95 % interval (of both)", "measured where it was chosen"]


def choice_rows(found):
    """Return (rows, head) of what evaluate.choose_strategies found: right answers of those asked, a line per family and strategy."""
    lines = [[f if n == 0 else "", s, "own" if s == c["own"] else "", f"{t['right']} of {t['questions']}", f"{t['tokens']:.0f}", f"{t['p']:.2g}" if s != c["own"] else "", "chosen" if s == c["chosen"] else ""]
             for f, c in found.items() for n, (s, t) in enumerate(c["tried"].items())]
    return lines, ["family", "strategy", "ours", "right", "tokens", "p against own", ""]


def write_exam(rec, root, sets, judge=None):
    """Score what was asked of benchmarks (see exam.results), write results.json and report.html; return the page's path, and its tables as text."""
    made = exam.results(root, sets, rec, judge)
    took = {b: evaluate.seconds(root / b) for b in sets}
    tables = {"paper": beside_paper(made), "costs": costs(made, took), "versus": versus_rows(made), "regret": regret_rows({f"{s} ({b})": r for b, of in made["regret"].items() for s, r in of.items()})}
    named = lambda s: {**s, "student": f"{s['student']}, {s['system']}"}
    sections = [("Beside the paper", [beside(made), show.table(*tables["paper"]), "<p>Certainty of the paper's numbers: P read in the "
                 "paper or an official file, S in a secondary source, U from memory, D derived. Ours: 95 % intervals, questions drawn anew inside each task. " + html.escape(notes(made)) + "</p>"])]
    for b in took:
        own = [s for s in made["scores"] if s["benchmark"] == b and s["by_task"]]
        if not own:
            continue
        sections.append((f"{b}, task by task", [show.dots(own, title=f"{b}: right answers"), show.table(*show.task_rows([named(s) for s in own])),
                                                show.dots(own, "format_by_task", f"{b}: answers that could be read")]))
        if told := made["regret"][b]:
            forms = list(dict.fromkeys(f for s in own for of in s["forms"].values() for f in of))
            took_form = [[s["student"], s["system"], t, *(f"{of.get(f, 0) / sum(of.values()):.0%}" for f in forms)] for s in own if s["system"] == "cautious" for t, of in s["forms"].items()]
            sections.append((f"{b}: which strategy wins where, and which was taken", [show.heat(own, s) for s in told] + [
                show.table(*regret_rows(told)), "<p>Strategies that answers took where the choice was the student's, by their form (only the forms of this book's own teacher are known; all else is <i>other</i>):</p>", show.table(took_form, ["student", "message", "task", *forms])]))
    sections += [("What answers cost, and how they ended", [show.table(*tables["costs"])]), ("Who is better", [show.table(*tables["versus"])])]
    if odd := evaluate.read_lines(root / "disagreements.jsonl"):
        lines = [[r["student"], r["system"], r["task"], r["number"], r["gold"], r["answer"] or "not read", r["official"] or "none", r["text"][-160:]] for r in odd[:: -(-len(odd) // 20)]]
        sections.append((f"{len(odd)} answers that AGIEval's own rule reads otherwise", [f"<p>Every {-(-len(odd) // 20)}th of them; all are in disagreements.jsonl.</p>", show.table(lines, ["student", "message", "task", "number", "gold", "ours", "first capital", "the answer ends"])]))
    if made["overlap"]:
        lines = [[s, t, o["questions"], o["overlap"], ", ".join(f"{k} ({n})" for k, n in o["rows"].items())] for s, by in made["overlap"].items() for t, o in by.items()]
        sections.append(("Were these questions trained on?", [show.table(lines, ["student", "task", "questions", "that share 13 words with a row", "rows of task"])]))
    if any(made["judged"].values()):
        sections.append(("What no parser can say", [f"<pre>{html.escape(json.dumps(made['judged'], indent=1))}</pre>"]))
    lead = f"{sum(s['questions'] for s in made['scores']):,} answers to questions of {', '.join(took)}, greedy, without examples."
    path = page(root / "report.html", f"orcalab: benchmarks, recipe {rec.name}", lead, sections)
    return path, "\n\n".join([*(show.text_table(*x) for x in tables.values() if x[0]), notes(made)]).strip()
