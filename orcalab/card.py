"""The data card of a prepared folder: what is in it, what was left out and why, with two pictures; plain files, no program needed to read them."""

from collections import Counter
from html import escape
from pathlib import Path

import numpy as np

from orcalab import sources

COLUMNS = ("source", "task", "strategy", "teacher", "system", "part")  # of a tag
TEXT = {"rows": "rows", "tokens": "tokens", "targets": "targets (tokens that are learned)", "erased": "rows whose system message was erased, each proved absent from its ids",
        "as_they_stand": "rows without a gold answer, learned as they stand", "empty": "rows dropped: no answer", "too_long": "rows dropped: longer than a pack", "cut": "rows cut at the start of their question",
        "tokens_lost": "tokens lost to both", "leaks": "rows dropped: their question or answer says the erased message, too",
        "unsayable": "rows dropped or refused: characters that the tokenizer would lose", "overlap": "rows that overlap with an evaluation set", "unread": "rows chosen and not needed: the steps were full"}


def counted(tags, counts):
    """Return {column: {value: rows}} of tags and how many rows have each, with the licence of each source."""
    out = {c: Counter() for c in (*COLUMNS, "licence")}
    for tag, n in zip(tags, map(int, counts)):
        for column, value in (*zip(COLUMNS, tag), ("licence", sources.licence(tag[0]))):
            out[column][value or "unknown"] += n
    return {c: dict(sorted(v.items(), key=lambda x: (-x[1], x[0]))) for c, v in out.items()}


def spread(lengths):
    """Return how long the examples are: quantiles, and counts in at most 20 bins."""
    low, median, high, most = (int(x) for x in np.quantile(lengths, [0, 0.5, 0.95, 1]))
    step = (most - low) // 20 + 1
    counts, edges = np.histogram(lengths, range(low, most + step + 1, step))
    return {"shortest": low, "median": median, "mean": round(float(np.mean(lengths)), 1), "95 %": high, "longest": most, "edges": edges.tolist(), "counts": counts.tolist()}


def bars(title, unit, values):
    """Return {name: number} as a bar chart in SVG, readable on light and dark."""
    wide, high, most, rows = 720, 66 + 24 * len(values), max(values.values(), default=0) or 1, []
    for y, (name, value) in zip(range(52, high, 24), values.items()):
        length = 430 * value / most
        rows.append(f'<text x="188" y="{y + 13}" text-anchor="end">{escape(str(name)[:28])}</text><rect x="196" y="{y}" width="{max(1, length):.1f}" height="17" rx="2" '
                    f'fill="#0072B2"/><text x="{202 + length:.1f}" y="{y + 13}">{value:,}</text>')
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide} {high}" width="{wide}" role="img" aria-label="{escape(title)}"><style>.card text{{font:12px system-ui,sans-serif;'
            f'fill:#333}}.card .t{{font-size:15px;font-weight:600}}@media(prefers-color-scheme:dark){{.card text{{fill:#ddd}}}}</style><g class="card"><text class="t" x="16" y="22">{escape(title)}</text>'
            f'<text x="16" y="38">{escape(unit)}</text>{"".join(rows)}</g></svg>\n')


def table(head, rows):
    """Return rows as a Markdown table, numbers to the right."""
    cell = lambda v: f"{v:,}" if isinstance(v, int) else str(v).replace("|", "\\|").replace("\n", " ")
    side = ["---:" if rows and (isinstance(rows[0][c], (int, float)) or str(rows[0][c]).endswith("%")) else "---" for c in range(len(head))]
    return "\n".join(f"| {' | '.join(x)} |" for x in (head, side, *([cell(v) for v in r] for r in rows)))


def summary(made, steps):
    """Return a few lines on what is in a prepared folder, and what was left out, for a terminal."""
    r, cfg = made["report"], made["config"]
    out = [f"{cfg['name']}: {r['rows']} rows proved, {r['tokens']} tokens, {r['targets']} targets; {steps} steps, {made['packs']} packs, {made['fill']:.1%} full, "
           f"{made['epochs']:.2f} passes over the rows; {r['too_long']} rows dropped and {r['cut']} cut for length ({r['tokens_lost']} tokens lost)"]
    if made["planned"] < r["rows"] or r.get("unread"):
        out.append(f"  the steps take {made['planned']} of the {r['rows'] + r.get('unread', 0)} rows; with `--steps 0 --epochs 1` they are as many as all rows take")
    for part, c in made["chosen"].items():
        left_out = ", ".join(f"{n} {k}" for k, n in c.items() if n and k not in ("rows", "available", "asked", "taken", "aside"))
        out.append(f"  {part}: {c['taken']} of {c['rows']} rows{f' ({left_out})' if left_out else ''}" + (f", {c['aside']} set aside" if c["aside"] else ""))
    out += [f"  {r[k]} {TEXT[k]}" for k in ("leaks", "unsayable", "overlap", "empty") if r.get(k)]
    found = made["contamination"].items()
    out += [f"  overlap with {name}: {c['overlap']} of {c['questions']} questions" for name, c in found if c["overlap"]]
    if found:
        out.append(f"  no overlap with {sum(not c['overlap'] for _, c in found)} of {len(found)} evaluation sets")
    if r["as_they_stand"]:
        out.append(f"  {r['as_they_stand']} rows name no gold `answer`, so '{cfg['answers']}' leaves their answers as they stand")
    return "\n".join(out)


def write(folder, made):
    """Write README.md, mixture.svg and lengths.svg into a prepared folder, from what its card.json holds."""
    cfg, report, by, long = made["config"], made["report"], made["rows_by"], made["lengths"]
    kind = next((k for k in ("task", "source") if 1 < len(by[k]) <= 40), "source")
    bins = {f"{low:,} to {end - 1:,} tokens": n for low, end, n in zip(long["edges"], long["edges"][1:], long["counts"])}
    for name, *of in (("mixture", f"Rows by {kind}", f"{report['rows']:,} rows of stage {cfg['name']}", dict(list(by[kind].items())[:30])),
                      ("lengths", "How long the examples are", f"examples by length; a pack has {cfg['seq_len']:,} tokens", bins)):
        Path(folder, f"{name}.svg").write_text(bars(*of), encoding="utf-8", newline="\n")
    parts = [f"# Prepared rows of `{cfg['name']}`\n\nMade by orcalab from `{cfg['rows']}`, answers {cfg['answers']}, system message {cfg['system']}, template {cfg['template']}, seed {cfg['seed']}. "
             f"`data-*.arrow` hold rows, ids and masks (`datasets.load_dataset(\"arrow\", data_files=...)` opens them), `plan.npy` and `packs.npy` which example goes in which pack.\n\n"
             f"{made['packs']:,} packs of {cfg['seq_len']:,} tokens, {made['fill']:.2%} full ({cfg['packing']}); {made['epochs']:.2f} passes over the rows, {made['planned']:,} of which are in the plan.\n\n"
             f"![rows](mixture.svg)\n\n![lengths](lengths.svg)\n\n## Counts\n\n" + table(["what", "how many"], [[TEXT[k], int(report[k])] for k in TEXT if report.get(k)]),
             "## Lengths in tokens\n\n" + table(list(k for k in long if k not in ("edges", "counts")), [[v for k, v in long.items() if k not in ("edges", "counts")]])]
    if made["chosen"]:
        keys = list(dict.fromkeys(k for c in made["chosen"].values() for k in c))
        order = ["rows", *(k for k in keys if k not in ("rows", "available", "asked", "taken", "aside")), "available", "asked", "taken", "aside"]
        parts.append("## What was chosen\n\nRows read, those left out and why, what was left, asked for and taken, and what was set aside for validation.\n\n" +
                     table(["part", *order], [[p, *(c.get(k, 0) for k in order)] for p, c in made["chosen"].items()]))
    for column, heading in (("source", "source"), ("task", "task"), ("strategy", "strategy"), ("teacher", "teacher"), ("licence", "licence"), ("system", "system message"), ("part", "part of the mixture")):
        many = list(by[column].items())
        rest = [[f"{len(many) - 200} others", sum(n for _, n in many[200:])]] if len(many) > 200 else []
        parts.append(f"## Rows by {heading}\n\n" + table([heading, "rows", "share"], [[k, n, f"{n / report['rows']:.1%}"] for k, n in [*many[:200], *rest]]))
    if made["contamination"]:
        rows = [[name, c["questions"], c["overlap"], ", ".join(f"{t} ({n})" for t, n in c["rows"].items()) or "none"] for name, c in made["contamination"].items()]
        parts.append("## Overlap with evaluation sets\n\nQuestions that share a run of 13 words with a row, where no other question has that run, and the tasks of those rows.\n\n" +
                     table(["set", "questions", "overlap", "tasks (rows)"], rows))
    Path(folder, "README.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8", newline="\n")
