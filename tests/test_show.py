"""show.py: figures from run folders and lists; nothing a model wrote becomes markup; the report needs no network."""

import base64
import gzip
import inspect
import json
import os
import re

import numpy as np
import pytest
from conftest import ROOT

from orcalab import chatml, packing, panels, recipes, report, show, strategies

SCORES = [{"student": s, "system": m, "macro": 0.5, "low": 0.4, "high": 0.7, "by_task": {"x": 0.25, "y": 0.75}, "tokens": 12.3,
           "format_ok": 0.9, "intervals": {"x": [0.0, 0.5], "y": [0.6, 0.9]}, "format_by_task": {"x": 1.0, "y": 0.5}} for s, m in (("base", "cautious"), ("stage3_gpt4", "cautious"), ("stage3_gpt4", "empty"))]


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "stage1_flan"
    folder.mkdir()
    rows = [{"step": n + 1, "loss": loss, "tokens": 100, "targets": 10, "seconds": 1.0} for n, loss in enumerate((4.0, 2.0, 3.0))]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return folder


def test_loss_curve_reads_a_run_folder(run):
    fig = show.loss_curve(run, run)
    raw, mean = fig.data[:2]
    assert list(raw.x) == [100, 200, 300] and list(raw.y) == [4.0, 2.0, 3.0] and len(fig.data) == 4
    assert list(mean.y) == pytest.approx([4.0, 3.6, 3.48]) and mean.name == "stage 1: short answers"


def test_figures_show_the_numbers_they_are_given():
    bars = show.macro(SCORES).data[0]
    assert list(bars.y) == [0.5] * 3 and list(bars.error_y.array) == pytest.approx([0.2] * 3) and list(bars.error_y.arrayminus) == pytest.approx([0.1] * 3)
    points = show.dots(SCORES[:2]).data
    assert [(list(b.x), list(b.y)) for b in points] == [([0.25, 0.75], ["x", "y"])] * 2 and [list(b.error_x.array) for b in points] == [pytest.approx([0.25, 0.15])] * 2
    assert [list(b.error_x.arrayminus) for b in points] == [pytest.approx([0.25, 0.15])] * 2 and all(b.error_x.visible for b in points)
    formed = show.dots(SCORES[:1], "format_by_task").data[0]
    assert list(formed.x) == [1.0, 0.5] and not formed.error_x.visible
    ours = [{**s, "benchmark": b, "chance": c} for s in SCORES[1:] for b, c in (("bbh", 0.2), ("race", 0.25))]
    fig = show.beside(ours, {"Orca-2-7B": {"bbh": 45.93}})
    assert [list(b.y) for b in fig.data] == [[0.4593, None], [0.5, 0.5], [0.5, 0.5]] and len({b.offsetgroup for b in fig.data}) == 3
    assert [(s.y0, s.x0, s.x1) for s in fig.layout.shapes] == [(0.2, -0.45, 0.45), (0.25, 0.55, 1.45)]
    (heat,) = show.heat(SCORES, "stage3_gpt4").data
    assert list(heat.y) == ["cautious", "empty"] and list(heat.x) == ["x", "y"] and [list(r) for r in heat.z] == [[0.25, 0.75]] * 2
    bar = show.mixture({"by": {"task": {"a": 3, "b": 5}}, "config": {"name": "s"}}).data[0]
    assert dict(zip(bar.y, bar.x)) == {"a": 3, "b": 5}
    two = show.mixture(*({"by": {"task": {t: n}}, "config": {"name": t}} for t, n in (("a", 3), ("b", 5))))
    assert [dict(zip(b.y, b.x)) for b in two.data] == [{"a": 3, "b": 0}, {"a": 0, "b": 5}]
    assert [list(h.x) for h in show.lengths({"stage1_flan": [3, 4], "other": np.array([5])}, seq_len=8).data] == [[3, 4], [5]]


def test_packs_draws_targets_examples_and_padding():
    packed = packing.pack([([1, 2, 3], [0, 0, 1]), ([4, 5], [0, 0])], [[0, 1]], 7)
    (heat,) = show.packs(packed).data
    assert [None if v is None or v != v else round(float(v), 2) for v in heat.z[0]] == [0.15, 0.9, 0.15, 0.35, 0.35, None, None]


def test_a_pack_tells_of_each_token_its_text_document_and_loss():
    packed = packing.pack([([1, 2, 3], [0, 0, 1]), ([4, 5], [0, 1])], [[0, 1]], 7)
    plain, coloured = show.pack(packed, text=lambda i: f"<{i}>", width=4).data[0], show.pack(packed, losses=[0.5, 8.0], width=4).data[0]
    assert [len(r) for r in plain.z] == [4, 3] and plain.text[0][0] == "&#x27;&lt;1&gt;&#x27;, id 1<br>document 0, context" and list(plain.text[1][1:]) == ["padding", "padding"]
    assert plain.text[0][1].endswith("context") and plain.text[0][2].endswith("document 0, target") and "document 1" in plain.text[0][3] and plain.text[1][0].endswith("document 1, target")
    assert "<br>0.50 nats" in coloured.text[0][2] and "<br>8.00 nats" in coloured.text[1][0] and sum("nats" in x for r in coloured.text for x in r) == 2
    assert coloured.z[0][2] < coloured.z[1][0] == 1 and coloured.z[0][0] != coloured.z[0][3]
    assert show.alt(show.pack(packed, losses=[0.5, 8.0])).startswith("Pack 0, token by token. 2 targets, 4.25 nats each: pale is sure, brown 4 nats or more; 2 documents.")


def test_every_figure_says_in_words_what_it_shows(run, watched):
    drawn = {"loss_curve": show.loss_curve(run), "training": show.training(watched), "memory": show.memory({"a": {"weights": 2.0}}), "lengths": show.lengths({"a": [3, 5, 9]}),
             "packs": show.packs(packing.pack([([1, 2], [0, 1])], [[0]], 4)), "mixture": show.mixture({"by": {"task": {"a": 3}}, "config": {"name": "s"}}), "macro": show.macro(SCORES),
             "messages": show.messages(SCORES), "dots": show.dots(SCORES), "heat": show.heat(SCORES, "base"), "beside": show.beside([{**SCORES[0], "benchmark": "bbh", "chance": 0.2}], {}),
             "grid": show.grid([("a", "piece")], {"piece": "#fff"}), "pack": show.pack(packing.pack([([1, 2], [0, 1])], [[0]], 4))}
    makes = {n for n, f in vars(show).items() if inspect.isfunction(f) and not n.startswith("_") and f.__doc__.startswith("Draw ")}
    assert makes == set(drawn)
    told = {"loss_curve": "4.00 to 3.48", "training": "15 targets of 300", "memory": "2.0 GiB", "lengths": "a 5", "packs": "1 targets; 50%", "mixture": "s 3", "macro": "base 50%", "messages": "50% to 50%",
            "dots": "base, cautious 50%", "heat": "cautious, 50%", "beside": "bbh: base, cautious 50%", "grid": "1 piece", "pack": "1 targets"}  # from the data
    for name, fig in drawn.items():
        assert told[name] in fig.layout.title.subtitle.text
        assert fig.layout.title.text in show.alt(fig) and show.alt(fig) == fig._repr_mimebundle_()["text/plain"] and isinstance(fig, show.Figure)
    tie = [{**SCORES[0], "system": m} for m in ("cautious", "empty")]
    assert "best over all tasks: none, 50%" in show.alt(show.heat(tie, "base")) and "…, base 50%, base 50%" in show.alt(show.macro(tie * 3))
    assert "3 to 4.00" not in show.alt(drawn["loss_curve"]) and "4.00 to 3.48" in show.alt(drawn["loss_curve"])


def test_tokens_are_escaped_and_marked(tokenizer):
    ids, mask = chatml.encode([{"role": "user", "content": "<b>&"}, {"role": "assistant", "content": "<script>x"}], tokenizer)
    page = panels.tokens(ids, mask, tokenizer)
    assert set(re.findall(r"</?\w+", page)) == {"<div", "</div", "<span", "</span", "<br", "<wbr"}
    assert page.count("title=") == len(ids) and page.count("target") == sum(mask) and page.count("context") == len(ids) - sum(mask)
    assert "&lt;" in page and "&amp;" in page and "⏎" in page and "</span><br>" in page


def test_tables_escape_what_a_model_wrote():
    page = show.table([["<img src=x>", 1]], ["a&b", "n"])
    assert page == ('<table><tr><th style="padding:.25em .7em;text-align:left">a&amp;b</th><th style="padding:.25em .7em;text-align:right">n</th></tr>'
                    '<tr><td style="padding:.25em .7em;text-align:left">&lt;img src=x&gt;</td><td style="padding:.25em .7em;text-align:right">1</td></tr></table>')


def test_rows_of_the_score_table():
    rows, head = show.score_rows(SCORES[:1])
    assert dict(zip(head, rows[0], strict=True)) == {"student": "base model", "message": "cautious", "macro": "50.0%", "95 % interval": "40.0% to 70.0%",
                                                     "tokens": "12", "format ok": "90%"}
    assert show.score_rows([])[0] == []


def test_a_wide_table_is_folded_and_a_narrow_one_is_left_alone():
    head, rows = ["best strategy", "how_many", *strategies.STRATEGIES], [["recall-reason-generate", 90, *(f"{n}%" for n in range(len(strategies.STRATEGIES)))]]
    narrow, wide = show.text_table(rows, head), show.text_table(rows, head, most=1000)
    assert len(wide.splitlines()[0]) > 103 >= max(map(len, narrow.splitlines())) and len(wide.splitlines()) == 2
    said = ["".join(line[a:b].strip() for line in narrow.splitlines()) for a, b in [(0, 22), (24, 32)]]
    assert said == ["best strategyrecall-reason-generate", "how_many90"] and "recall-reason-generate" in narrow  # heads are folded before what stands below them
    long = ["one two three four five six", "-1.5", "length 10, stop 2"]
    assert show.text_table([long], ["", "n", "ended"], most=1).splitlines()[1:] == ["one two three four    -1.5  length 10, stop 2", "five six"]  # numbers and what is short stay whole


def test_the_table_by_task_says_the_same_and_is_narrow():
    rows, head = show.task_rows(SCORES, recipes.laptop().tasks)
    assert head[2:] == [s["student"] for s in SCORES] and {r[0] for r in rows} >= set(SCORES[0]["by_task"])
    assert dict((r[0], r[2]) for r in rows)["mean over tasks"] == f"{SCORES[0]['macro']:.1%}"
    assert max(map(len, show.text_table(rows, head).splitlines())) <= 100


def test_the_report_opens_offline(tmp_path, run):
    page = report.page(tmp_path / "a" / "report.html", "a < b", "<b>lead</b>", [("One & two", [show.loss_curve(run), "<p>text</p>"]), ("Three", [])])
    text = page.read_text(encoding="utf-8")
    assert not list(page.parent.glob("*.part")) and text.startswith("<!doctype html>")
    assert text.count('class="plotly-graph-div"') == 1 and 'aria-label="Loss on the teacher&#x27;s tokens. running means: stage1_flan 4.00 to 3.48.' in text and "<h1>a &lt; b</h1>" in text and "<p>text</p>" in text
    assert '<a href="#s0">One &amp; two</a></div><div><a href="#s1">Three</a>' in text and '<h2 id="s1">Three</h2>' in text
    packed = re.search(r'atob\("([^"]+)"\)', text)[1]
    assert gzip.decompress(base64.b64decode(packed)).decode() == show_js() and len(text) < 0.5 * len(show_js())  # plotly itself is inside, packed
    assert report.page(tmp_path / "b.html", "", "", [("", [show.figure("</script><img src=x>")])]).read_text().count("</script>") == 2  # that of the figure's data, and of the code
    markup = re.sub(r"<script\b[^>]*>.*?</script>", "", text, flags=re.S)
    assert not re.search(r"""(src|href|url)\s*[=(]\s*["']?(https?:)?//""", markup) and "<link" not in markup
    assert not re.search(r"<script\b[^>]*\bsrc", text)


def show_js():
    from plotly.offline import get_plotlyjs
    return get_plotlyjs()


def test_pieces_are_coloured_by_kind_and_a_vocabulary_is_a_grid():
    known = [("<s>", "special"), ("<0A>", "byte"), ("7", "digit"), (" the", "piece"), ("<b>", "piece")]
    cells = lambda ids: [(known[i][0].replace(" ", "▁"), panels.KINDS[known[i][1]], i, f"id {i}, {known[i][1]}") for i in ids]
    page = panels.chips(cells([0, 1, 3, 4]))
    assert page.count("title=") == 4 and "▁the" in page and "&lt;b&gt;" in page and 'title="id 1, byte"' in page and "<b>" not in page
    assert panels.chips(cells([3, 2]), ansi=True) == "\x1b[39m▁the\x1b[0m \x1b[36m7\x1b[0m"
    heat, *legend = show.grid(known, {k: colour for k, (colour, _) in panels.KINDS.items()}, width=2).data
    assert [[None if v is None or v != v else int(v) for v in r] for r in heat.z] == [[0, 1], [2, 4], [4, None]] and heat.dy == 2
    assert [s.name for s in legend] == list(panels.KINDS)


def test_messages_has_a_point_and_an_interval_for_each_student_and_message():
    scores = [{"student": s, "system": m, "macro": 0.1 * i + 0.01 * j, "low": 0.1 * i, "high": 0.1 * i + 0.1} for i, s in enumerate(("bare_answers", "explained_erased", "another"), 1)
              for j, m in enumerate(("cautious", "wrong"))]
    fig = show.messages(scores)
    assert [t.name for t in fig.data] == ["answers only", "explained, strategy erased", "another"] and list(fig.data[1].x) == ["the cautious message", "a wrong strategy"]
    assert list(fig.data[1].y) == pytest.approx([0.2, 0.21]) and list(fig.data[1].error_y.array) == pytest.approx([0.1, 0.09]) and list(fig.data[1].error_y.arrayminus) == pytest.approx([0, 0.01])
    assert fig.data[0].marker.color == show.ORANGE and fig.data[2].marker.color == show.GREY


def test_choice_rows_names_what_was_chosen_and_by_how_much():
    found = {"word-problems": {"chosen": "guess-and-check", "own": "step-by-step", "tried": {"step-by-step": {"right": 1, "questions": 8, "tokens": 30.0, "p": 1.0},
                                                                                         "guess-and-check": {"right": 8, "questions": 8, "tokens": 41.5, "p": 0.0156}}}}
    rows, head = report.choice_rows(found)
    assert rows == [["word-problems", "step-by-step", "own", "1 of 8", "30", "", ""], ["", "guess-and-check", "", "8 of 8", "42", "0.016", "chosen"]] and len(head) == 7


@pytest.fixture
def watched(tmp_path):
    """A run at step 3 of 8, as train.train writes it: two strategies, one of them not in every step, and one look at held-out examples."""
    folder = tmp_path / "stage2_chatgpt"
    folder.mkdir()
    parts = [{"a": [4.0, 4], "b": [3.0, 1]}, {"a": [8.0, 4]}, {"a": [12.0, 4], "b": [4.0, 1]}]
    lines = [{"step": n, "loss": float(n), "lr": n * 1e-4, "grad_norm": n / 2, "tokens": 100, "targets": 5, "seconds": 2.0, "tokens_per_s": 50.0 + n, "targets_per_s": 2.5,
              "mfu": n / 10, "lost_updates": n / 100, "peak_gib": 1.0, "by": {"source": {"x": [1.0, 5]}, "strategy": p}} for n, p in enumerate(parts, 1)]
    lines[1] |= {"held_out": 2.5, "stops": 0.75, "answer": "4"}
    (folder / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    (folder / "config.json").write_text(json.dumps({"steps": 0, "planned": {"steps": 8}}))
    return folder


def test_a_step_that_fp16_left_out_is_drawn_as_a_gap(watched):
    file = watched / "metrics.jsonl"
    lines = [json.loads(x) for x in file.read_text().splitlines()]
    lines[-1] |= {"grad_norm": None, "lost_updates": None}
    file.write_text("".join(json.dumps(x) + "\n" for x in lines))
    norm, lost = (show.training(watched).data[i] for i in (5, 7))
    assert norm.y[-1] is None and lost.y[-1] is None and norm.y[0] == 0.5


def test_training_shows_loss_by_strategy_and_held_out_and_a_panel_for_each_of_the_rest(watched):
    fig = show.training(watched)
    each, a, b, mean, held, norm, lr, lost, speed = fig.data
    assert list(each.y) == [1, 2, 3] and list(mean.y) == pytest.approx([1, 1.2, 1.56]) and mean.line.color == show.COLOURS["stage2_chatgpt"]
    assert (a.name, list(a.y)) == ("a", pytest.approx([1, 1.2, 1.56])) and (b.name, list(b.x), list(b.y)) == ("b", [1, 3], pytest.approx([3, 3.2]))
    assert (list(held.x), list(held.y), held.hovertext[0]) == ([2], [2.5], "75% of answers end")
    assert [list(t.y) for t in (norm, lr, lost, speed)] == [[0.5, 1, 1.5], [1e-4, 2e-4, pytest.approx(3e-4)], [0.01, 0.02, 0.03], [51, 52, 53]] and speed.hovertext[2] == "MFU 30.0%"
    assert [t.text for t in fig.layout.annotations] == ["gradient norm before clipping: 1.5", "learning rate: 3.00e-04", "updates lost to rounding: 3.00%", "tokens a second: 53, MFU 30%"]
    assert (fig.layout.title.text, fig.layout.title.subtitle.text) == ("stage 2: explained", "step 3 of 8, loss 3.000, 15 targets of 300 tokens in 6 s") and fig.layout.xaxis.range == fig.layout.xaxis5.range == (0.5, 8.5)


def test_training_draws_a_run_of_one_strategy_or_of_few_columns(watched, run):
    assert "step 3 of 3, loss 3.000" in show.training(run).layout.title.subtitle.text and [t.name for t in show.training(run).data if t.showlegend] == ["all, running mean"]
    path = watched / "metrics.jsonl"
    path.write_text(path.read_text().replace('"b": ', '"a": '))
    assert [t.name for t in show.training(watched).data if t.showlegend] == ["all, running mean", "held out"]


def test_memory_stacks_what_was_planned_beside_what_was_measured():
    weights, grads, peak = show.memory({"big": {"gradients": 12.0, "weights": 12.0}, "small": {"weights": 3.0}}, {"small": 3.5}).data
    assert (weights.name, list(weights.x), list(weights.y)) == ("weights", [12, 3], ["big", "small"]) and list(grads.x) == [12, 0]
    assert (peak.name, list(peak.x), list(peak.y)) == ("measured peak", [3.5], ["small"])
    assert [t.name for t in show.memory({"big": {"weights": 12.0}}).data] == ["weights"]


def kernel(code, **environment):
    """Run code in a notebook's kernel and return its outputs."""
    import nbclient
    import nbformat
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    nbclient.NotebookClient(book, kernel_name="python3").execute(env={**os.environ, "PYTHONPATH": str(ROOT), **environment})
    return [o for o in book.cells[0].outputs if o.output_type != "stream" or o.name == "stdout"]


def test_live_redraws_one_figure_in_a_notebook_and_the_last_step_once_more(watched):
    code = f"""from orcalab import show
drawn, training = [], show.training
show.training = lambda folder: drawn.append(folder) or training(folder)
quick, slow = show.Live({str(watched)!r}, every=0), show.Live({str(watched)!r}, every=1e9)
for n in (1, 2, 3, 8):
    quick.next = 0  # it would rest nine tenths of the time
    quick({{"step": n}})
many = len(drawn)
for n in (1, 2, 3, 8):
    slow({{"step": n}})
print(many, len(drawn) - many)"""
    figures = kernel(code)
    assert [o.output_type for o in figures] == ["display_data", "display_data", "stream"] and figures[2].text == "4 2\n"
    assert all("step 3 of 8" in o.data["application/vnd.plotly.v1+json"]["layout"]["title"]["subtitle"]["text"] and "step 3 of 8" in o.data["text/plain"] for o in figures[:2])


def test_live_is_silent_where_no_front_end_listens(watched, tmp_path):
    assert kernel(f"from orcalab import show\nshow.Live({str(watched)!r})({{'step': 8}})", ORCALAB_PROGRESS=str(tmp_path / "progress")) == []
    live = show.Live(watched)
    live({"step": 8})
    assert live.handle is None
