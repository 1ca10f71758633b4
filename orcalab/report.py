"""What a run found: a table on the terminal, and report.html, both made from what lies in the run folders."""

import html
import json
from pathlib import Path

from orcalab import config, evaluate, show

PAIRS = (("stage3_gpt4", "answer_only"), ("explained_erased", "bare_answers"))  # explained and erased, and the control of bare answers


def pair(records):
    """Return the two students that a recipe compares, as far as both have answered, else nothing."""
    return next((p for p in PAIRS if set(p) <= set(records)), ())


def by_message(rec):
    """Return the scores of the students that were asked under several messages."""
    found = evaluate.read_answers(Path(rec.out) / "answers")
    return [{"student": n, "system": m, **evaluate.score(found[n, m])} for n, said in rec.students.items() if len(said) > 1 for m in said if (n, m) in found]


def cautious(rec):
    """Return the scores under the cautious message, in the order of the stages, and the records, from the answers files."""
    records = {s: r for (s, m), r in evaluate.read_answers(Path(rec.out) / "answers").items() if m == "cautious"}
    order = [n for n in ["base", *(s.name for s in rec.stages)] if n in records]
    return [{"student": n, "system": "cautious", **evaluate.score(records[n])} for n in order], records


def finding(rec):
    """Return the table and the comparison that the run was made for, as text."""
    scores, records = cautious(rec)
    if not scores:
        return "no student was evaluated yet"
    text = show.text_table(*show.task_rows(scores, rec.tasks))
    if several := by_message(rec):
        text += "\n\n" + show.text_table(*show.score_rows(several))
    if both := pair(records):
        c = evaluate.compare(*(records[n] for n in both))
        text += (f"\n\nexplained and erased minus answers only, same questions: {100 * c['macro']:+.1f} points "
                 f"[{100 * c['low']:+.1f}, {100 * c['high']:+.1f}], McNemar p = {c['p']:.2g}")
    return text


def write_report(rec):
    """Write `<out>/report.html` from what lies in the run folders; return its path."""
    out = Path(rec.out)
    trained = [s for s in rec.stages if s.name in rec.finished]
    scores, records = cautious(rec)
    lead, sections = html_lead(rec, records), []
    if scores:
        rows = [[t.name, t.strategy, "yes" if t.direct else "no", t.why] for t in rec.tasks]
        sections.append(("What each stage taught", [show.macro(scores), show.table(*show.task_rows(scores, rec.tasks))]))
        last = [s for s in scores if s["student"] in pair(records)]
        sections.append(("Which answers need explaining", [
            show.by_task(last), show.table(rows, ["task", "strategy", "should a direct answer do?", "why, written beforehand"])]))
    if several := by_message(rec):
        sections.append(("What each student does under each message", [show.messages(several), show.table(*show.score_rows(several))]))
    if grid := evaluate.read_answers(out / "grid"):
        every = [{"student": s, "system": m, **evaluate.score(r)} for (s, m), r in grid.items()]
        sections.append(("Which system message wins where", [show.heat(every, s) for s in sorted({s for s, _ in grid})]))
    if trained:
        cards = [config.read_json(s.folder / "config.json") for s in trained]
        rows = [[s.name, len(m), sum(x["tokens"] for x in m), sum(x["targets"] for x in m), *(f"{config.read_json(s.folder / 'results.json')[k]:.3f}" for k in ("first_loss", "last_loss")),
                 f"{sum(x['tokens'] for x in m) / sum(x['seconds'] for x in m):.0f}"] for s, m in ((s, show.metrics(s.folder)) for s in trained)]
        sections.append(("Loss by stage", [show.loss_curve(*(s.folder for s in trained)),
                         show.table(rows, ["stage", "steps", "tokens", "targets", "first loss", "last loss", "tokens/s"])]))
        sections.append(("What the stages were trained on", [show.mixture(*(config.read_json(out / "prepared" / c["seal"]["data"] / "card.json") for c in cards))]))
    if scores:
        sections.append(("Answers to read", [answers_table(records)]))
    if trained:
        sections.append(("Settings and fingerprints", [f"<pre>{html.escape(rec.doc)}</pre>", f"<pre>{html.escape(json.dumps(cards, indent=1))}</pre>"]))
    return show.report(out / "report.html", f"orcalab: recipe {rec.name}, seed {rec.seed}", lead, sections)


def html_lead(rec, records):
    """Return the report's first paragraph, its numbers computed from the answers."""
    own = sorted({html.escape(s.rows) for s in rec.stages if not s.rows.startswith("procedural")})
    said = ("On this recipe a program stands in for GPT-4: it writes the worked answers, so what carries over to real teachers is the comparison, "
            "not the numbers. " if not own else f"Trained on rows from {', '.join(own)}; the held-out questions, if any were asked, are reasoning_gym's. ")
    both = [records[n] for n in pair(records)]
    if not both:
        return said
    (a, b), c = map(evaluate.score, both), evaluate.compare(*both)
    return said + (f"The student that saw explained answers with the strategy erased gets <b>{a['macro']:.1%}</b> of {a['questions']} "
                   f"held-out questions (mean over tasks), the one that saw answers only, from the same checkpoint and for the same number of "
                   f"tokens, <b>{b['macro']:.1%}</b>: a difference of <b>{100 * c['macro']:.1f}</b> points "
                   f"[{100 * c['low']:.1f}, {100 * c['high']:.1f}].")


def answers_table(records):
    """Return the first two answers per task of the last students, side by side, as HTML."""
    names = [n for n in ("base", *pair(records)) if n in records] or list(records)[:1]
    rows = []
    for r in records[names[0]]:
        if r["number"] < 2:
            same = [next(x for x in records[n] if (x["task"], x["number"]) == (r["task"], r["number"])) for n in names]
            rows.append([r["task"], r["question"][-90:], r["gold"], *(("✓ " if x["right"] else "✗ ") + x["text"][:160] for x in same)])
    return show.table(sorted(rows), ["task", "question (end)", "gold", *names])
