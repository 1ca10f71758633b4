"""Figures, token views and the report: from lists and run folders, never from a live model."""

import html
import json
import os
import re
import sys
import time
from itertools import accumulate, cycle
from pathlib import Path

import plotly.graph_objects as go
from plotly.subplots import make_subplots

# Okabe and Ito's palette: told apart by colour-blind readers, and on light and dark ground alike
BLUE, ORANGE, GREEN, SKY, PURPLE, RED, GREY = "#0072B2", "#E69F00", "#009E73", "#56B4E9", "#CC79A7", "#D55E00", "#8A8A8A"
COLOURS = {"bare_answers": ORANGE, "explained_kept": PURPLE, "explained_erased": GREEN, "explained_generic": BLUE, "base": GREY, "stage1_flan": SKY, "stage2_chatgpt": BLUE, "stage3_gpt4": GREEN, "answer_only": ORANGE}
NAMES = {"base": "base model", "stage1_flan": "stage 1: short answers", "stage2_chatgpt": "stage 2: explained",
         "stage3_gpt4": "stage 3: strategies, erased", "answer_only": "control: answers only",
         "bare_answers": "answers only", "explained_kept": "explained, strategy kept", "explained_erased": "explained, strategy erased", "explained_generic": "explained, Orca 1's messages",
         "right": "the right strategy", "wrong": "a wrong strategy", "cautious": "the cautious message", "empty": "no message"}
MEMORY = {"weights": BLUE, "adapter": RED, "masters": SKY, "optimizer": GREEN, "gradients": PURPLE, "gathered": "#666699", "activations": ORANGE, "loss": "#B8860B", "temporary": "#F0E442", "process": GREY}  # forecast's kinds
SMALL = {"grad_norm": ("gradient norm before clipping", ".3g", PURPLE), "lr": ("learning rate", ".2e", SKY),  # what, format, colour of training's small panels
         "lost_updates": ("updates lost to rounding", "z.2%", RED), "tokens_per_s": ("tokens a second", ",.0f", GREEN)}
KINDS = {"special": (PURPLE, 35), "byte": (ORANGE, 33), "digit": (SKY, 36), "character": (BLUE, 34), "piece": (GREY, 90)}  # also for a terminal


def _figure(title, x="", y="", height=380, fig=None, **layout):
    fig = fig or go.Figure()
    fig.update_layout(title={"text": title, "x": 0, "xanchor": "left", "font": {"size": 16}}, height=height,
                      template="plotly_white", paper_bgcolor="rgba(0,0,0,0)", plot_bgcolor="rgba(0,0,0,0)",
                      font={"family": "system-ui, sans-serif", "size": 13, "color": "#777"},
                      margin={"l": 60, "r": 20, "t": 60, "b": 50}, legend={"orientation": "h", "y": -0.22}, **layout)
    lines = {"gridcolor": "rgba(128,128,128,.25)", "zerolinecolor": "rgba(128,128,128,.4)"}
    return fig.update_xaxes(title=x, **lines).update_yaxes(title=y, **lines)


def _interval(scores, **how):
    return {"error_y": {"type": "data", "symmetric": False, "array": [s["high"] - s["macro"] for s in scores], "arrayminus": [s["macro"] - s["low"] for s in scores], **how}}


def metrics(folder):
    """Return a run's metrics.jsonl as a list of dicts."""
    return [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]


def _mean(values):
    """Return the running mean: a fifth of each value, four fifths of the mean before it."""
    return list(accumulate(values, lambda mean, v: 0.8 * mean + 0.2 * v))


def loss_curve(*folders, names=()):
    """Draw the loss of one or more runs by tokens seen, each with its running mean; `names` tell runs of one stage apart."""
    note = "<br><sup>stages learn different words, so their losses cannot be compared with each other</sup>" if len(folders) > 1 else ""
    fig = _figure(f"Loss on the teacher's tokens{note}", "tokens of the stage", "loss per target (nats)")
    for folder, own, tint in zip(folders, names or [""] * len(folders), cycle((BLUE, ORANGE, GREEN, SKY, PURPLE, RED, GREY))):
        name, lines = own or Path(folder).name, metrics(folder)
        x, mean = list(accumulate(line["tokens"] for line in lines)), _mean([line["loss"] for line in lines])
        colour = COLOURS.get(name, tint)
        fig.add_scatter(x=x, y=[line["loss"] for line in lines], mode="lines", line={"color": colour, "width": 1},
                        opacity=0.3, showlegend=False, hoverinfo="skip")
        fig.add_scatter(x=x, y=mean, mode="lines", name=NAMES.get(name, name), line={"color": colour, "width": 3})
    return fig


def training(folder):
    """Draw how a run goes or went, from its metrics.jsonl: loss by step, and below gradient norm, learning rate, updates lost, and speed.

    Loss is nats per target: each step faint, the running mean strong, held-out loss as dots, the running mean of each strategy as a thin line.
    """
    lines, name, of = metrics(folder), Path(folder).name, _steps(folder)
    steps, loss, last, colour = [x["step"] for x in lines], [x["loss"] for x in lines], lines[-1], COLOURS.get(name, BLUE)
    heads = [f"{what}: {last.get(key) or 0:{form}}" + (f", MFU {last['mfu']:.0%}" if "mfu" in last and form[0] == "," else "") for key, (what, form, _) in SMALL.items()]
    fig = make_subplots(3, 2, specs=[[{"colspan": 2}, None], [{}, {}], [{}, {}]], row_heights=[0.5, 0.25, 0.25], vertical_spacing=0.11, horizontal_spacing=0.1, subplot_titles=["", *heads])
    tokens, targets, seconds = (sum(x[k] for x in lines) for k in ("tokens", "targets", "seconds"))
    _figure(f"{NAMES.get(name, name)}<br><sup>step {last['step']} of {of or last['step']}, loss {last['loss']:.3f}, {targets:,} targets of {tokens:,} tokens "
            f"in {seconds / 60:,.1f} min</sup>", height=680, fig=fig)
    draw = lambda x, y, row=1, col=1, name="", **how: fig.add_scatter(x=x, y=y, row=row, col=col, name=name, showlegend=bool(name), **{"mode": "lines" if len(lines) > 30 else "lines+markers", "marker_size": 4, **how})
    draw(steps, loss, line={"color": colour, "width": 1}, opacity=0.5, hoverinfo="skip")
    parts = [x.get("by", {}).get("strategy", {}) for x in lines]
    kinds = sorted({k for p in parts for k in p})
    for tint, kind in zip(cycle((ORANGE, PURPLE, SKY, GREEN, GREY, RED)), kinds if len(kinds) > 1 else []):
        at = [(s, p[kind][0] / p[kind][1]) for s, p in zip(steps, parts) if p.get(kind, (0, 0))[1]]
        draw([s for s, _ in at], _mean([v for _, v in at]), name=kind, line={"color": tint, "width": 1.3})
    draw(steps, _mean(loss), name="all, running mean", legendrank=1, line={"color": colour, "width": 3.5})
    looks = [x for x in lines if "held_out" in x]
    draw([x["step"] for x in looks], [x["held_out"] for x in looks], name="held out" if looks else "", legendrank=2, mode="markers",
         hovertext=[f"{x['stops']:.0%} of answers end" for x in looks], marker={"color": RED, "size": 9, "line": {"color": "white", "width": 1}}, marker_size=9)
    for n, (key, (_, _, tint)) in enumerate(SMALL.items()):
        draw(steps, [x.get(key) for x in lines], 2 + n // 2, 1 + n % 2, line={"color": tint, "width": 1.8}, hovertext=[f"MFU {x.get('mfu', 0):.1%}" for x in lines] if n == 3 else None)
    end = max(of, last["step"])
    fig.update_xaxes(range=[0.5, end + 0.5], dtick=1 if end <= 10 else None).update_xaxes(title="step", row=3).update_yaxes(title="nats per target", row=1)
    fig.update_yaxes(rangemode="tozero", row=3).update_yaxes(tickformat=".1~%", autorangeoptions_include=0.01, row=3, col=1).update_yaxes(exponentformat="e", row=2, col=2)
    return fig.update_annotations(font={"size": 13, "color": "#777"}).update_layout(legend={"y": -0.1}, margin_t=80)


def _steps(folder):
    """Return how many steps a run is to have, from its config.json; 0 before there is one."""
    made = json.loads(at.read_text()) if (at := Path(folder) / "config.json").exists() else {}
    return made.get("planned", {}).get("steps") or made.get("steps", 0)


class Live:
    """Draws `training` in a notebook at most every `every` seconds, for a tenth of the time, and at the last step: train.train calls it, as `watching`,
    with each line of metrics. Where no front end listens it does nothing."""

    def __init__(self, folder, every=4.0):
        self.folder, self.every, self.next, self.handle = folder, every, 0.0, None
        if "ipykernel" in sys.modules and not os.environ.get("ORCALAB_PROGRESS"):  # as progress.py decides
            from IPython.display import display
            self.handle = display({"text/plain": ""}, raw=True, display_id=True)

    def __call__(self, line):
        begun = time.time()
        if self.handle and (begun >= self.next or line["step"] == _steps(self.folder)):
            self.handle.update(training(self.folder)._repr_mimebundle_(), raw=True)  # as a bundle: a figure shows itself, past any handle
            self.next = time.time() + max(self.every, 10 * (time.time() - begun))


def memory(plans, measured=()):
    """Draw {name: {kind: GiB}} that runs are planned to take (`gib` of forecast.forecast) as bars, and {name: GiB} that they took as diamonds."""
    fig = _figure("Memory, planned by kind" + (" and measured" if measured else ""), "GiB", height=190 + 46 * len(plans), barmode="stack")
    for kind in sorted({k for p in plans.values() for k in p}, key=list(MEMORY).index):
        fig.add_bar(x=[p.get(kind, 0) for p in plans.values()], y=list(plans), orientation="h", name=kind, marker_color=MEMORY[kind], hovertemplate="%{x:.2f} GiB")
    if measured:
        fig.add_scatter(x=list(measured.values()), y=list(measured), mode="markers", name="measured peak",
                        marker={"symbol": "diamond", "size": 13, "color": "#777", "line": {"color": "white", "width": 1.5}})
    return fig.update_yaxes(autorange="reversed", showgrid=False).update_layout(legend={"traceorder": "normal", "yref": "container", "y": 0.01, "yanchor": "bottom"}, margin_b=100)


def lengths(groups, seq_len=0):
    """Draw histograms of example lengths: {name: lengths in tokens}."""
    fig = _figure("How long the examples are", "tokens", "examples", barmode="overlay")
    for colour, (name, values) in zip(cycle((BLUE, GREEN, ORANGE, PURPLE, SKY, RED)), groups.items()):
        fig.add_histogram(x=list(values), name=NAMES.get(name, name), opacity=0.6, marker_color=colour, nbinsx=60)
    if seq_len:
        fig.add_vline(x=seq_len, line_dash="dot", annotation_text=f"seq_len {seq_len}")
    return fig


def packs(packed, rows=8):
    """Draw the first packs of a Packed: each example a shade, its targets green, padding empty."""
    shade = [[None if s < 0 else 0.9 if y >= 0 else 0.15 + 0.2 * (s % 2) for s, y in zip(seg, lab)]
             for seg, lab in zip(packed.segment[:rows].tolist(), packed.labels[:rows].tolist())]
    fig = _figure("What is in a pack", "token", "pack", height=130 + 34 * len(shade))
    fig.add_heatmap(z=shade, zmin=0, zmax=1, showscale=False, ygap=4, hovertemplate="pack %{y}, token %{x}<extra></extra>",
                    colorscale=[[0, "#B8B8B8"], [0.25, "#B8B8B8"], [0.26, "#7A7A7A"], [0.5, "#7A7A7A"], [0.51, GREEN], [1, GREEN]])
    return fig.update_yaxes(autorange="reversed", dtick=1)


def mixture(*cards):
    """Draw how many rows of each task are trained on, from the cards of prepared folders: one bar a stage."""
    tasks = sorted({t for c in cards for t in c["by"]["task"]}, reverse=True)
    name = cards[0]["config"]["name"]
    fig = _figure("Rows trained on" if len(cards) > 1 else f"Rows trained on in {name}", "rows", "", height=140 + (20 + 14 * len(cards)) * len(tasks),
                  barmode="group", showlegend=len(cards) > 1)
    for c in cards:
        name = c["config"]["name"]
        fig.add_bar(x=[c["by"]["task"].get(t, 0) for t in tasks], y=tasks, orientation="h", name=NAMES.get(name, name), marker_color=COLOURS.get(name, BLUE))
    return fig.update_layout(legend={"traceorder": "normal", "y": -0.25 + 0.02 * len(tasks)})


def macro(scores):
    """Draw macro accuracy of each student under one message, with 95 % intervals."""
    fig = _figure("Accuracy on held-out questions (mean over tasks)", "", "accuracy", showlegend=False)
    fig.add_bar(x=[NAMES.get(s["student"], s["student"]) for s in scores], y=[s["macro"] for s in scores],
                marker_color=[COLOURS.get(s["student"], PURPLE) for s in scores],
                text=[f"{s['macro']:.0%}" for s in scores], textposition="inside", insidetextanchor="start", textfont_color="white", **_interval(scores, color="#777"))
    return fig.update_yaxes(range=[0, 1], tickformat=".0%")


def messages(scores):
    """Draw accuracy under each system message, a point with its 95 % interval for each student."""
    systems, students = (list(dict.fromkeys(s[k] for s in scores)) for k in ("system", "student"))
    fig = _figure("How each student does, by what it is told", "", "accuracy (mean over tasks)", height=440, scattermode="group", scattergap=0.5)
    for name in students:
        own = [s for system in systems for s in scores if (s["student"], s["system"]) == (name, system)]
        fig.add_scatter(x=[NAMES.get(s["system"], s["system"]) for s in own], y=[s["macro"] for s in own], mode="markers", name=NAMES.get(name, name), offsetgroup=name,
                        marker={"size": 12, "color": COLOURS.get(name, GREY)}, **_interval(own, thickness=1.5, width=5))
    return fig.update_yaxes(range=[0, 1], tickformat=".0%")


def _who(s, scores):
    """Return how a student under a message is named, its colour, and the number of the message among those of `scores`."""
    return ({"name": f"{NAMES.get(s['student'], s['student'])}, {NAMES.get(s['system'], s['system'])}", "offsetgroup": f"{s['student']} {s['system']}"},
            COLOURS.get(s["student"], PURPLE), list(dict.fromkeys(x["system"] for x in scores)).index(s["system"]))


def dots(scores, key="by_task", title="Where explaining helps, and where it does not"):
    """Draw accuracy per task with its 95 % interval, or another share that scores have by task: a point for each student and message."""
    tasks = list(scores[0][key]) if scores else []
    fig = _figure(title, "share of answers", "", height=130 + (14 + 9 * len(scores)) * len(tasks), scattermode="group", scattergap=0.4)
    for s in scores:
        how, colour, n = _who(s, scores)
        low, high = ([abs(s[key][t] - s["intervals"][t][i]) for t in tasks] for i in (0, 1))
        fig.add_scatter(x=list(s[key].values()), y=[t.split("/")[-1] for t in tasks], mode="markers", orientation="h", marker={"size": 8, "color": colour, "symbol": ("circle-open", "circle", "diamond", "square-open", "triangle-up", "cross", "x", "star")[n % 8]}, **how,
                        error_x={"type": "data", "symmetric": False, "array": high, "arrayminus": low, "thickness": 1, "width": 2, "visible": key == "by_task"})
    return fig.update_xaxes(range=[-0.02, 1.02], tickformat=".0%").update_yaxes(autorange="reversed").update_layout(legend={"y": 1, "yanchor": "bottom"}, margin_t=100, title_y=0.98, title_yanchor="top")


def beside(ours, paper):
    """Draw accuracy on each benchmark: the paper's models in grey, ours in colour with 95 % intervals, and what guessing gives.

    Args:
        ours: scores, each with its `benchmark`.  paper: {model: {benchmark: percent}}.
    """
    order = list(dict.fromkeys(s["benchmark"] for s in ours))
    fig = _figure("Accuracy, mean over tasks; dotted: what guessing gives", "", "accuracy", height=460, barmode="group")
    for n, (model, numbers) in enumerate(paper.items()):
        fig.add_bar(x=order, y=[numbers[b] / 100 if b in numbers else None for b in order], name=f"{model} (paper)", offsetgroup=model,
                    marker={"color": f"rgba(128,128,128,{0.1 + 0.3 * n / len(paper)})", "line": {"color": GREY, "width": 1}})
    for who in dict.fromkeys((s["student"], s["system"]) for s in ours):
        own = [s for s in ours if (s["student"], s["system"]) == who]
        how, colour, n = _who(own[0], ours)
        fig.add_bar(x=[s["benchmark"] for s in own], y=[s["macro"] for s in own], **how, **_interval(own, color="#777"), marker={"color": colour, "pattern": {"shape": ("", "/", "x", ".", "+", "-", "|", "\\")[n % 8], "fgcolor": "white"}})
    for n, b in enumerate(order):
        chance = next(s["chance"] for s in ours if s["benchmark"] == b)
        fig.add_shape(type="line", x0=n - 0.45, x1=n + 0.45, y0=chance, y1=chance, line={"color": RED, "width": 2, "dash": "dot"})
    return fig.update_yaxes(range=[0, 1], tickformat=".0%")


def heat(scores, student):
    """Draw one student's accuracy per system message (rows) and task (columns)."""
    rows = [s for s in scores if s["student"] == student]
    tasks = list(rows[0]["by_task"])
    z = [[s["by_task"][t] for t in tasks] for s in rows]
    fig = _figure(f"System message against task: {NAMES.get(student, student)}", "", "", height=140 + 42 * len(rows))
    fig.add_heatmap(z=z, x=tasks, y=[s["system"] for s in rows], colorscale="Viridis", zmin=0, zmax=1, texttemplate="%{z:.0%}",
                    xgap=2, ygap=2, colorbar={"tickformat": ".0%"})
    return fig.update_yaxes(autorange="reversed")


def tokens(ids, mask, tokenizer):
    """Return the tokens of an example as HTML: targets green, context grey, ids on hover."""
    parts = []
    for i, m in zip(ids, mask):
        name = tokenizer.convert_ids_to_tokens(int(i))  # SentencePiece's decoder takes a leading space away
        text = html.escape(name if "▁" in name else tokenizer.decode([int(i)])).replace("\n", "⏎<br>").replace(" ", "&nbsp;").replace("▁", "&nbsp;")
        style = f"background:{'rgba(0,158,115,.35)' if m else 'rgba(128,128,128,.18)'};border-radius:3px;margin:1px;padding:0 1px"
        parts.append(f'<span style="{style}" title="id {int(i)}, {"target" if m else "context"}">{text}</span>')
    return f'<div style="font-family:monospace;line-height:1.9;overflow-wrap:anywhere">{"".join(parts)}</div>'


def pieces(ids, known, ansi=False):
    """Return tokens coloured by kind, spaces as ▁: HTML with ids on hover, or its printed twin.

    Args:
        known: (text, kind) of every id, a kind being one of KINDS.
    """
    cells = [(i, known[i][0].replace(" ", "▁").replace("\n", "⏎"), known[i][1]) for i in ids]
    if ansi:
        return " ".join(f"\x1b[{KINDS[k][1]}m{t}\x1b[0m" for _, t, k in cells)
    chip = '<span style="background:{}59;border-radius:3px;margin:1px;padding:0 2px" title="{}">{}</span>'
    return f"""<div style="font-family:monospace;line-height:1.9">{"<wbr>".join(chip.format(KINDS[k][0], f"id {i}, {k}", html.escape(t)) for i, t, k in cells)}</div>"""


def grid(known, width=256):
    """Draw a vocabulary, a cell an id, in rows of `width` from the top; coloured by kind."""
    kinds, cells = list(KINDS), lambda f: [[f(i) if i < len(known) else None for i in range(r, r + width)] for r in range(0, len(known), width)]
    fig = _figure(f"{len(known):,} tokens, one cell each", f"{width} ids in a row", "", height=180 + 4 * (len(known) // width))
    fig.add_heatmap(z=cells(lambda i: kinds.index(known[i][1])), zmin=-0.5, zmax=len(kinds) - 0.5, showscale=False, dy=width, hoverinfo="text",
                    text=cells(lambda i: html.escape(f"{i} {known[i][0]!r}")),
                    colorscale=[[(k + e) / len(kinds), KINDS[n][0]] for k, n in enumerate(kinds) for e in (0, 1)])
    for name, (colour, _) in KINDS.items():
        fig.add_scatter(x=[None], y=[None], mode="markers", name=name, marker={"color": colour, "symbol": "square", "size": 11})
    return fig.update_layout(legend_y=-0.1, yaxis_autorange="reversed", yaxis_tickformat=",", xaxis_showticklabels=False)


def table(rows, head):
    """Return rows as an HTML table: words to the left, numbers to the right, long text wrapped."""
    right = _numeric(rows, len(head))
    style = lambda c, v: "" if right[c] else f' class="{"long" if len(str(v)) > 60 else "word"}"'
    cells = lambda values, tag: "".join(f"<{tag}{style(c, v)}>{html.escape(str(v))}</{tag}>" for c, v in enumerate(values))
    return f"<table><tr>{cells(head, 'th')}</tr>{''.join(f'<tr>{cells(r, chr(116) + chr(100))}</tr>' for r in rows)}</table>"


def _numeric(rows, columns):
    """Tell for each column whether it holds numbers (or nothing) only."""
    texts = [[str(r[c]).strip() for r in rows] for c in range(columns)]
    return [any(column) and all(re.match(r"[-+±]?[\d.]|$", v) for v in column) for column in texts]


def text_table(rows, head):
    """Return rows as a plain-text table: words to the left, numbers to the right.

    >>> print(text_table([["a", 1], ["bb", 22]], ["name", "n"]))
    name   n
    a      1
    bb    22
    """
    grid = [[str(v) for v in r] for r in [head, *rows]]
    wide = [max(len(r[c]) for r in grid) for c in range(len(head))]
    number = _numeric(rows, len(head))
    return "\n".join("  ".join(v.rjust(w) if n else v.ljust(w) for v, w, n in zip(r, wide, number)).rstrip() for r in grid)


def score_rows(scores):
    """Return (rows, head) of the table of scores: student, message, macro with interval, tasks, length, format."""
    tasks = list(scores[0]["by_task"]) if scores else []
    rows = [[NAMES.get(s["student"], s["student"]), s["system"], f"{s['macro']:.1%}", f"{s['low']:.1%} to {s['high']:.1%}",
             *(f"{s['by_task'][t]:.0%}" for t in tasks), f"{s['tokens']:.0f}", f"{s['format_ok']:.0%}"] for s in scores]
    return rows, ["student", "message", "macro", "95 % interval", *tasks, "tokens", "format ok"]


def task_rows(scores, tasks=()):
    """Return (rows, head) of the same scores turned: a line per task, a column per student; narrow enough to read anywhere.

    Args:
        tasks: config.Tasks of the recipe; adds whether a direct answer should do, as it was fixed beforehand.
    """
    direct = {t.name: "direct" if t.direct else "explain" for t in tasks}
    lines = [[t, *([direct.get(t, "")] if direct else []), *(f"{s['by_task'][t]:.0%}" for s in scores)] for t in scores[0]["by_task"]]
    pad = [""] if direct else []
    lines += [["mean over tasks", *pad, *(f"{s['macro']:.1%}" for s in scores)],
              ["  95 % interval", *pad, *(f"{100 * s['low']:.0f} to {100 * s['high']:.0f}" for s in scores)],
              ["tokens an answer", *pad, *(f"{s['tokens']:.0f}" for s in scores)]]
    return lines, ["task", *(["should do"] if direct else []), *(s["student"] for s in scores)]


STYLE = """body{font:16px/1.6 system-ui,sans-serif;max-width:1060px;margin:2em auto;padding:0 1em;color:#222}
table{border-collapse:collapse;font-size:13px;margin:1em 0;display:block;overflow-x:auto}td,th{padding:5px 9px;
border-bottom:1px solid #ddd;text-align:right;white-space:nowrap}.word,.long{text-align:left}.long{white-space:pre-wrap;min-width:14em}
h1{font-size:1.7em}h2{margin-top:2em;border-top:1px solid #ddd;padding-top:1em}pre{background:#f5f5f5;padding:1em;
overflow-x:auto;font-size:12px}nav a{margin-right:1.2em}.big{font-size:1.25em}
@media(prefers-color-scheme:dark){body{background:#15171a;color:#ddd}td,th{border-color:#444}pre{background:#222}a{color:#7ab8ff}}"""


def report(path, title, lead, sections):
    """Write one HTML file that opens offline, with a table of contents.

    Args:
        lead: one paragraph, HTML.
        sections: list of (heading, list of figures or HTML strings).
    """
    from plotly.offline import get_plotlyjs
    nav = " ".join(f'<a href="#s{n}">{html.escape(h)}</a>' for n, (h, _) in enumerate(sections))
    drawn = lambda x: x.to_html(full_html=False, include_plotlyjs=False, config={"displayModeBar": False}) if isinstance(x, go.Figure) else x
    body = (f'<h2 id="s{n}">{html.escape(heading)}</h2>{"".join(map(drawn, items))}' for n, (heading, items) in enumerate(sections))
    text = (f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
            f"<title>{html.escape(title)}</title><style>{STYLE}</style><script>{get_plotlyjs()}</script>"
            f'<h1>{html.escape(title)}</h1><p class="big">{lead}</p><nav>{nav}</nav>{"".join(body)}</html>')
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    side = Path(str(path) + ".part")
    side.write_text(text, encoding="utf-8")
    side.replace(path)
    return Path(path)
