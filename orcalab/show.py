"""Figures and tables: from lists and run folders, never from a live model."""

import html
import json
import os
import re
import sys
import textwrap
import time
from itertools import accumulate, cycle, zip_longest
from pathlib import Path

import plotly.graph_objects as go
from plotly.subplots import make_subplots

# Okabe and Ito's palette: told apart by colour-blind readers, and on light and dark ground alike
BLUE, ORANGE, GREEN, SKY, PURPLE, RED, GREY = "#0072B2", "#E69F00", "#009E73", "#56B4E9", "#CC79A7", "#D55E00", "#8A8A8A"
PALE, DARK = "rgba(128,128,128,.28)", "rgba(128,128,128,.6)"  # one document and the next
COLOURS = {"bare_answers": ORANGE, "explained_kept": PURPLE, "explained_erased": GREEN, "explained_generic": BLUE, "base": GREY, "stage1_flan": SKY, "stage2_chatgpt": BLUE, "stage3_gpt4": GREEN, "answer_only": ORANGE}
NAMES = {"base": "base model", "stage1_flan": "stage 1: short answers", "stage2_chatgpt": "stage 2: explained",
         "stage3_gpt4": "stage 3: strategies, erased", "answer_only": "control: answers only",
         "bare_answers": "answers only", "explained_kept": "explained, strategy kept", "explained_erased": "explained, strategy erased", "explained_generic": "explained, Orca 1's messages",
         "right": "the right strategy", "wrong": "a wrong strategy", "cautious": "the cautious message", "empty": "no message"}
MEMORY = {"weights": BLUE, "adapter": RED, "masters": SKY, "optimizer": GREEN, "gradients": PURPLE, "gathered": "#666699", "activations": ORANGE, "loss": "#B8860B", "temporary": "#F0E442", "process": GREY}  # forecast's kinds
SMALL = {"grad_norm": ("gradient norm before clipping", ".3g", PURPLE), "lr": ("learning rate", ".2e", SKY),  # what, format, colour of training's small panels
         "lost_updates": ("updates lost to rounding", "z.2%", RED), "tokens_per_s": ("tokens a second", ",.0f", GREEN)}


class Figure(go.Figure):
    """A plotly figure that also shows itself as words (`alt`), for whoever does not see it."""

    def _repr_mimebundle_(self, *args, **kwargs):
        return {**super()._repr_mimebundle_(*args, **kwargs), "text/plain": alt(self)}

    def _ipython_display_(self):
        from IPython.display import display
        display(self._repr_mimebundle_(), raw=True)


def alt(fig):
    """Return a figure in words: its title, its caption with the numbers that matter, its axes, and what is drawn.

    >>> alt(memory({"a100": {"weights": 12.5, "gradients": 3.0}}))
    'Memory, planned by kind. a100 needs most: 15.5 GiB. Across: GiB. Drawn: weights; gradients.'
    """
    title, drawn = fig.layout.title, "; ".join(dict.fromkeys(trace.name for trace in fig.data if trace.name))
    parts = (title.text, title.subtitle.text, (x := fig.layout.xaxis.title.text) and f"Across: {x}", (y := fig.layout.yaxis.title.text) and f"Up: {y}", drawn and f"Drawn: {drawn}")
    return "".join(f"{re.sub('<[^>]+>', ' ', part)}. " for part in parts if part).strip()


def figure(title, x="", y="", said="", height=380, fig=None, **layout):
    """Return a figure in the look of this book: readable on light and dark ground, `said` below its title.

    Args:    title: what is asked.  x, y: what the axes are, with units.  said: the caption, computed from the data.  height: in pixels.
    """
    fig = (fig or Figure()).update_layout(title={"text": title, "x": 0, "xanchor": "left", "font": {"size": 16}, "subtitle": {"text": said, "font": {"size": 13}}}, height=height + 16 * bool(said),
                      template="plotly_white", paper_bgcolor="rgba(0,0,0,0)", plot_bgcolor="rgba(0,0,0,0)", font={"family": "system-ui, sans-serif", "size": 13, "color": "#777"}, margin={"l": 60, "r": 20, "t": 60 + 16 * bool(said), "b": 50}, legend={"orientation": "h", "y": -0.22}, **layout)
    lines = {"gridcolor": "rgba(128,128,128,.25)", "zerolinecolor": "rgba(128,128,128,.4)"}
    return fig.update_xaxes(title=x, **lines).update_yaxes(title=y, **lines)


def _interval(scores, **how):
    return {"error_y": {"type": "data", "symmetric": False, "array": [s["high"] - s["macro"] for s in scores], "arrayminus": [s["macro"] - s["low"] for s in scores], **how}}


def _few(texts, most=5):
    return ("…, " if len(texts) > most else "") + ", ".join(texts[-most:])


def metrics(folder):
    """Return a run's metrics.jsonl as a list of dicts."""
    return [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]


def _mean(values):
    """Return the running mean: a fifth of each value, four fifths of the mean before it."""
    return list(accumulate(values, lambda mean, v: 0.8 * mean + 0.2 * v))


def loss_curve(*folders, names=()):
    """Draw the loss of one or more runs by tokens seen, each with its running mean; `names` tell runs of one stage apart."""
    fig, ends = figure("Loss on the teacher's tokens", "tokens of the stage", "loss per target (nats)", " "), []
    for folder, own, tint in zip(folders, names or [""] * len(folders), cycle((BLUE, ORANGE, GREEN, SKY, PURPLE, RED, GREY))):
        name, lines = own or Path(folder).name, metrics(folder)
        x, mean = list(accumulate(line["tokens"] for line in lines)), _mean([line["loss"] for line in lines])
        fig.add_scatter(x=x, y=[line["loss"] for line in lines], mode="lines", line={"color": COLOURS.get(name, tint), "width": 1}, opacity=0.3, showlegend=False, hoverinfo="skip")
        fig.add_scatter(x=x, y=mean, mode="lines", name=NAMES.get(name, name), line={"color": COLOURS.get(name, tint), "width": 3})
        ends.append(f"{name} {mean[0]:.2f} to {mean[-1]:.2f}")
    many = len(set(map(str, folders))) > 1 and not any(names)  # other words are learned in each
    return fig.update_layout(title_subtitle_text="running means: " + _few(ends) + "; not comparable between stages" * many)


def training(folder):
    """Draw how a run goes or went, from its metrics.jsonl: loss by step, and below gradient norm, learning rate, updates lost, and speed.

    Loss is nats per target: each step faint, the running mean strong, held-out loss as dots, the running mean of each strategy as a thin line.
    """
    lines, name, of = metrics(folder), Path(folder).name, _steps(folder)
    steps, loss, last, colour = [x["step"] for x in lines], [x["loss"] for x in lines], lines[-1], COLOURS.get(name, BLUE)
    heads = [f"{what}: {last.get(key) or 0:{form}}" + (f", MFU {last['mfu']:.0%}" if "mfu" in last and form[0] == "," else "") for key, (what, form, _) in SMALL.items()]
    fig = make_subplots(3, 2, figure=Figure(), specs=[[{"colspan": 2}, None], [{}, {}], [{}, {}]], row_heights=[0.5, 0.25, 0.25], vertical_spacing=0.11, horizontal_spacing=0.1, subplot_titles=["", *heads])
    tokens, targets, seconds = (sum(x[k] for x in lines) for k in ("tokens", "targets", "seconds"))
    took = f"{seconds / 60:,.1f} min" if seconds > 60 else f"{seconds:.0f} s"
    figure(NAMES.get(name, name), said=f"step {last['step']} of {of or last['step']}, loss {last['loss']:.3f}, {targets:,} targets of {tokens:,} tokens in {took}", height=680, fig=fig)
    draw = lambda x, y, row=1, col=1, name="", **how: fig.add_scatter(x=x, y=y, row=row, col=col, name=name, showlegend=bool(name), **{"mode": "lines" if len(lines) > 30 else "lines+markers", "marker_size": 4, **how})
    draw(steps, loss, line={"color": colour, "width": 1}, opacity=0.5, hoverinfo="skip")
    parts = [x.get("by", {}).get("strategy", {}) for x in lines]
    kinds = sorted({k for p in parts for k in p})
    for tint, kind in zip(cycle((ORANGE, PURPLE, SKY, GREEN, GREY, RED)), kinds if len(kinds) > 1 else []):
        at = [(s, p[kind][0] / p[kind][1]) for s, p in zip(steps, parts) if p.get(kind, (0, 0))[1]]
        draw([s for s, _ in at], _mean([v for _, v in at]), name=kind, line={"color": tint, "width": 1.3})
    draw(steps, _mean(loss), name="all, running mean", legendrank=1, line={"color": colour, "width": 3.5})
    looks = [x for x in lines if "held_out" in x]
    draw([x["step"] for x in looks], [x["held_out"] for x in looks], name="held out" if looks else "", legendrank=2, mode="markers", hovertext=[f"{x['stops']:.0%} of answers end" for x in looks], marker={"color": RED, "size": 9, "line": {"color": "white", "width": 1}}, marker_size=9)
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
            for shown in ({"text/html": '<div style="height:680px">'}, training(self.folder)._repr_mimebundle_()):  # JupyterLab's plotly draws once: something else must come between
                self.handle.update(shown, raw=True)  # as a bundle: a figure shows itself, past any handle
            self.next = time.time() + max(self.every, 10 * (time.time() - begun))


def memory(plans, measured=()):
    """Draw {name: {kind: GiB}} that runs are planned to take (`gib` of forecast.forecast) as bars, and {name: GiB} that they took as diamonds."""
    most = max(plans, key=lambda name: sum(plans[name].values()))
    fig = figure("Memory, planned by kind" + (" and measured" if measured else ""), "GiB", "", f"{most} needs most: {sum(plans[most].values()):.1f} GiB", height=190 + 46 * len(plans), barmode="stack")
    for kind in sorted({k for p in plans.values() for k in p}, key=list(MEMORY).index):
        fig.add_bar(x=[p.get(kind, 0) for p in plans.values()], y=list(plans), orientation="h", name=kind, marker_color=MEMORY[kind], hovertemplate="%{x:.2f} GiB")
    if measured:
        fig.add_scatter(x=list(measured.values()), y=list(measured), mode="markers", name="measured peak", marker={"symbol": "diamond", "size": 13, "color": "#777", "line": {"color": "white", "width": 1.5}})
    return fig.update_yaxes(autorange="reversed", showgrid=False).update_layout(legend={"traceorder": "normal", "yref": "container", "y": 0.01, "yanchor": "bottom"}, margin_b=100)


def lengths(groups, seq_len=0):
    """Draw histograms of example lengths: {name: lengths in tokens}."""
    half = {name: sorted(values)[len(values) // 2] for name, values in groups.items()}
    fig = figure("How long the examples are", "tokens", "examples", "half have at most: " + ", ".join(f"{name} {n}" for name, n in half.items()), barmode="overlay")
    for colour, (name, values) in zip(cycle((BLUE, GREEN, ORANGE, PURPLE, SKY, RED)), groups.items()):
        fig.add_histogram(x=list(values), name=NAMES.get(name, name), opacity=0.6, marker_color=colour, nbinsx=60)
    if seq_len:
        fig.add_vline(x=seq_len, line={"dash": "dot", "color": "#777"}, annotation_text=f"seq_len {seq_len}")
    return fig.update_yaxes(rangemode="tozero", autorangeoptions_include=4)  # no half examples


def packs(packed, rows=8):
    """Draw the first packs of a Packed: each example a shade, its targets green, padding empty."""
    shade = [[None if s < 0 else 0.9 if y >= 0 else 0.15 + 0.2 * (s % 2) for s, y in zip(seg, lab)] for seg, lab in zip(packed.segment[:rows].tolist(), packed.labels[:rows].tolist())]
    fig = figure("What is in a pack", "token", "pack", f"green: {packed.num_targets:,} targets; {packed.fill:.0%} full", height=130 + 34 * len(shade))
    fig.add_heatmap(z=shade, zmin=0, zmax=1, showscale=False, ygap=4, hovertemplate="pack %{y}, token %{x}<extra></extra>", colorscale=[[0, PALE], [0.25, PALE], [0.26, DARK], [0.5, DARK], [0.51, GREEN], [1, GREEN]])
    return fig.update_xaxes(showgrid=False).update_yaxes(autorange="reversed", dtick=1, showgrid=False, zeroline=False)


def pack(packed, number=0, text=str, losses=(), width=128):
    """Draw one pack of a Packed, `width` tokens a row; hovering tells of each token its text, its document, and whether it is a target or context.

    Args:    text: a function from an id to its text.  losses: nats of each target of this pack, in order; colours them, and tells them.
    """
    ids, labels, where = (a[number].tolist() for a in (packed.ids, packed.labels, packed.segment))
    left, z, told = iter(losses), [], []
    for i, target, document in zip(ids, [False, *(y >= 0 for y in labels)], where):  # a label stands where its target is predicted from, one before it
        lost = next(left, None) if target else None
        z.append(None if document < 0 else 0.28 + 0.72 * min(1, lost / 4) if lost is not None else 1 if target else 0.08 + 0.12 * (document % 2))
        told.append("padding" if document < 0 else f"{html.escape(repr(text(i)))}, id {i}<br>document {document}, {'target' if target else 'context'}" + (f"<br>{lost:.2f} nats" if lost is not None else ""))
    rows = lambda cells: [cells[r:r + width] for r in range(0, len(cells), width)]
    mean = f", {sum(losses) / len(losses):.2f} nats each: pale is sure, brown 4 nats or more" if len(losses) else " (green)"
    fig = figure(f"Pack {number}, token by token", f"{width} tokens in a row", "", f"{sum(y >= 0 for y in labels):,} targets{mean}; {max(where) + 1} documents", height=150 + 13 * -(-len(ids) // width))
    scale = [[0, PALE], [0.14, PALE], [0.15, DARK], [0.27, DARK], *([[0.28, "#FFF3C4"], [0.6, ORANGE], [1, "#8C2D04"]] if len(losses) else [[0.28, GREEN], [1, GREEN]])]
    fig.add_heatmap(z=rows(z), zmin=0, zmax=1, text=rows(told), hoverinfo="text", showscale=False, xgap=1, ygap=1, dy=width, colorscale=scale)
    return fig.update_xaxes(showgrid=False, zeroline=False).update_yaxes(autorange="reversed", tickformat=",", showgrid=False, zeroline=False)


def mixture(*cards):
    """Draw how many rows of each task are trained on, from the cards of prepared folders: one bar a stage."""
    tasks = sorted({t for c in cards for t in c["by"]["task"]}, reverse=True)
    name = cards[0]["config"]["name"]
    total = ", ".join(f"{c['config']['name']} {sum(c['by']['task'].values()):,.0f}" for c in cards)
    fig = figure("Rows trained on" if len(cards) > 1 else f"Rows trained on in {name}", "rows", "", f"in all: {total}", height=140 + (20 + 14 * len(cards)) * len(tasks), barmode="group", showlegend=len(cards) > 1)
    for c in cards:
        name = c["config"]["name"]
        fig.add_bar(x=[c["by"]["task"].get(t, 0) for t in tasks], y=tasks, orientation="h", name=NAMES.get(name, name), marker_color=COLOURS.get(name, BLUE))
    return fig.update_layout(legend={"traceorder": "normal", "y": -0.25 + 0.02 * len(tasks)})


def macro(scores):
    """Draw macro accuracy of each student under one message, with 95 % intervals."""
    fig = figure("Accuracy on held-out questions (mean over tasks)", "", "accuracy", _few([f"{s['student']} {s['macro']:.0%}" for s in scores]) + "; lines are intervals of 95 %", showlegend=False)
    fig.add_bar(x=[NAMES.get(s["student"], s["student"]).replace(": ", ":<br>") for s in scores], y=[s["macro"] for s in scores],
                marker_color=[COLOURS.get(s["student"], PURPLE) for s in scores], text=[f"{s['macro']:.0%}" for s in scores], textposition="inside", insidetextanchor="start", textfont_color="white", **_interval(scores, color="#777"))
    return fig.update_yaxes(range=[0, 1], tickformat=".0%")


def messages(scores):
    """Draw accuracy under each system message, a point with its 95 % interval for each student."""
    systems, students = (list(dict.fromkeys(s[k] for s in scores)) for k in ("system", "student"))
    spread = {n: [s["macro"] for s in scores if s["student"] == n] for n in students}
    fig = figure("How each student does, by what it is told", "", "accuracy (mean over tasks)", _few([f"{n} {min(v):.0%} to {max(v):.0%}" for n, v in spread.items()], 4), height=440, scattermode="group", scattergap=0.5)
    for name in students:
        own = [s for system in systems for s in scores if (s["student"], s["system"]) == (name, system)]
        fig.add_scatter(x=[NAMES.get(s["system"], s["system"]) for s in own], y=[s["macro"] for s in own], mode="markers", name=NAMES.get(name, name), offsetgroup=name, marker={"size": 12, "color": COLOURS.get(name, GREY)}, **_interval(own, thickness=1.5, width=5))
    return fig.update_yaxes(range=[0, 1], tickformat=".0%")


def _who(s, scores):
    """Return how a student under a message is named, its colour, and the number of the message among those of `scores`."""
    return ({"name": f"{NAMES.get(s['student'], s['student'])}, {NAMES.get(s['system'], s['system'])}", "offsetgroup": f"{s['student']} {s['system']}"},
            COLOURS.get(s["student"], PURPLE), list(dict.fromkeys(x["system"] for x in scores)).index(s["system"]))


def dots(scores, key="by_task", title="Where explaining helps, and where it does not"):
    """Draw accuracy per task with its 95 % interval, or another share that scores have by task: a point for each student and message."""
    tasks = list(scores[0][key]) if scores else []
    means = _few([f"{s['student']}, {s['system']} {sum(s[key].values()) / len(tasks):.0%}" for s in scores if tasks], 3)
    fig = figure(title, "share of answers", "", f"mean over tasks: {means}", height=100 + 20 * len(scores) + (14 + 9 * len(scores)) * len(tasks), scattermode="group", scattergap=0.4)
    for s in scores:
        how, colour, n = _who(s, scores)
        low, high = ([abs(s[key][t] - s["intervals"][t][i]) for t in tasks] for i in (0, 1))
        fig.add_scatter(x=list(s[key].values()), y=[t.split("/")[-1] for t in tasks], mode="markers", orientation="h", marker={"size": 8, "color": colour, "symbol": ("circle-open", "circle", "diamond", "square-open", "triangle-up", "cross", "x", "star")[n % 8]}, **how,
                        error_x={"type": "data", "symmetric": False, "array": high, "arrayminus": low, "thickness": 1, "width": 2, "visible": key == "by_task"})
    return fig.update_xaxes(range=[-0.02, 1.02], tickformat=".0%").update_yaxes(autorange="reversed").update_layout(legend={"y": 1, "yanchor": "bottom"}, margin_t=70 + 20 * len(scores), title={"y": 1, "yanchor": "top", "pad": {"t": 12}})


def beside(ours, paper):
    """Draw accuracy on each benchmark: the paper's models in grey, ours in colour with 95 % intervals, and what guessing gives.

    Args:
        ours: scores, each with its `benchmark`.  paper: {model: {benchmark: percent}}.
    """
    order = list(dict.fromkeys(s["benchmark"] for s in ours))
    fig = figure("Accuracy, mean over tasks; dotted: what guessing gives", "", "accuracy", _few([f"{s['benchmark']}: {s['student']}, {s['system']} {s['macro']:.0%}" for s in ours], 3), height=460, barmode="group")
    for n, (model, numbers) in enumerate(paper.items()):
        fig.add_bar(x=order, y=[numbers[b] / 100 if b in numbers else None for b in order], name=f"{model} (paper)", offsetgroup=model, marker={"color": f"rgba(128,128,128,{0.1 + 0.3 * n / len(paper)})", "line": {"color": GREY, "width": 1}})
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
    best = max(rows, key=lambda s: s["macro"])
    fig = figure(f"System message against task: {NAMES.get(student, student)}", "", "", f"best over all tasks: {'none' if rows[1:] and best['macro'] == min(s['macro'] for s in rows) else best['system']}, {best['macro']:.0%}", height=140 + 42 * len(rows))
    fig.add_heatmap(z=[[s["by_task"][t] for t in tasks] for s in rows], x=[t.replace("_", "_<br>") for t in tasks], y=[s["system"] for s in rows], colorscale="Viridis", zmin=0, zmax=1, texttemplate="%{z:.0%}", xgap=2, ygap=2, colorbar={"tickformat": ".0%"})
    return fig.update_yaxes(autorange="reversed")


def grid(known, colours, width=256):
    """Draw a vocabulary, a cell an id, in rows of `width` from the top.

    Args:    known: (text, kind) of every id.  colours: {kind: colour}, in the order of the legend.
    """
    kinds, cells = list(colours), lambda f: [[f(i) if i < len(known) else None for i in range(r, r + width)] for r in range(0, len(known), width)]
    kind = [k for _, k in known]
    fig = figure(f"{len(known):,} tokens, one cell each", f"{width} ids in a row", "", ", ".join(f"{kind.count(k):,} {k}" for k in kinds), height=180 + 4 * (len(known) // width))
    fig.add_heatmap(z=cells(lambda i: kinds.index(known[i][1])), zmin=-0.5, zmax=len(kinds) - 0.5, showscale=False, dy=width, hoverinfo="text",
                    text=cells(lambda i: html.escape(f"{i} {known[i][0]!r}")), colorscale=[[(k + e) / len(kinds), colours[n]] for k, n in enumerate(kinds) for e in (0, 1)])
    for name, colour in colours.items():
        fig.add_scatter(x=[None], y=[None], mode="markers", name=name, marker={"color": colour, "symbol": "square", "size": 11})
    return fig.update_layout(legend_y=-0.1, yaxis_autorange="reversed", yaxis_tickformat=",", xaxis_showticklabels=False)


def table(rows, head):
    """Return rows as an HTML table: words to the left, numbers to the right, long text wrapped, wherever it is shown."""
    right = _numeric(rows, len(head))
    style = lambda c, v: f' style="padding:.25em .7em;text-align:{"right" if right[c] else "left"}{";white-space:pre-wrap;min-width:11em" if len(str(v)) > 60 else ""}"'
    cells = lambda values, tag: "".join(f"<{tag}{style(c, v)}>{html.escape(str(v))}</{tag}>" for c, v in enumerate(values))
    return f"<table><tr>{cells(head, 'th')}</tr>{''.join(f'<tr>{cells(r, chr(116) + chr(100))}</tr>' for r in rows)}</table>"


def _numeric(rows, columns):
    """Tell for each column whether it holds numbers (or nothing) only."""
    texts = [[str(r[c]).strip() for r in rows] for c in range(columns)]
    return [any(column) and all(re.match(r"[-+±]?[\d.]|$", v) for v in column) for column in texts]


def text_table(rows, head, most=100):
    """Return rows as a plain-text table: words to the left, numbers to the right; one wider than `most` is folded at spaces, hyphens and underscores, heads first.

    >>> print(text_table([["bb", 22]], ["name", "how_many"], most=10))
          how_
    name  many
    bb      22
    """
    grid, number, columns, out = [[str(v) for v in r] for r in [head, *rows]], _numeric(rows, len(head)), range(len(head)), []
    wrapper = textwrap.TextWrapper(break_on_hyphens=False, break_long_words=False)
    wrapper.wordsep_simple_re, wrapper.width = re.compile("(?<=[a-z]{2}[_-])|( +)"), 1
    least = [max(len(x) for n, r in enumerate(grid) for x in [r[c][:20 * bool(n)], *wrapper.wrap(r[c])]) for c in columns]  # what is short stays whole
    body, wide = ([max(len(r[c]) for r in part) for c in columns] for part in (grid[1:] or grid, grid))
    while sum(wide) + 2 * len(wide) - 2 > most and wide != least:
        wide[max((c for c in columns if wide[c] > least[c]), key=lambda c: (wide[c] > body[c], wide[c]))] -= 1
    for r in grid:
        turn, cells = slice(None, None, 1 if out else -1), []  # heads stand on their columns
        for text, wrapper.width in zip(r, wide):
            cells.append((wrapper.wrap(text) if len(text) > wrapper.width else [text])[turn])
        out += [*zip_longest(*cells, fillvalue="")][turn]
    return "\n".join("  ".join(v.rjust(w) if n else v.ljust(w) for v, w, n in zip(line, wide, number)).rstrip() for line in out)


def score_rows(scores):
    """Return (rows, head) of the table of scores: student, message, macro with interval, length, format."""
    return [[NAMES.get(s["student"], s["student"]), s["system"], f"{s['macro']:.1%}", f"{s['low']:.1%} to {s['high']:.1%}", f"{s['tokens']:.0f}",
             f"{s['format_ok']:.0%}"] for s in scores], ["student", "message", "macro", "95 % interval", "tokens", "format ok"]


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
