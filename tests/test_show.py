"""show.py: figures from run folders and lists; nothing a model wrote becomes markup; the report needs no network."""

import json
import re

import numpy as np
import pytest

from orcalab import chatml, packing, recipes, show

SCORES = [{"student": s, "system": m, "macro": 0.5, "low": 0.4, "high": 0.7, "by_task": {"x": 0.25, "y": 0.75}, "tokens": 12.3,
           "format_ok": 0.9} for s, m in (("base", "cautious"), ("stage3_gpt4", "cautious"), ("stage3_gpt4", "empty"))]


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
    assert [list(b.y) for b in show.by_task(SCORES[:2]).data] == [[0.25, 0.75]] * 2
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


def test_tokens_are_escaped_and_marked(tokenizer):
    ids, mask = chatml.encode([{"role": "user", "content": "<b>&"}, {"role": "assistant", "content": "<script>x"}], tokenizer)
    page = show.tokens(ids, mask, tokenizer)
    assert set(re.findall(r"</?\w+", page)) == {"<div", "</div", "<span", "</span", "<br"}
    assert page.count("<span") == len(ids) and page.count("target") == sum(mask) and page.count("context") == len(ids) - sum(mask)
    assert "&lt;" in page and "&amp;" in page and "⏎<br>" in page


def test_tables_escape_what_a_model_wrote():
    page = show.table([["<img src=x>", 1]], ["a&b", "n"])
    assert page == ('<table><tr><th class="word">a&amp;b</th><th>n</th></tr>'
                    '<tr><td class="word">&lt;img src=x&gt;</td><td>1</td></tr></table>')


def test_rows_of_the_score_table():
    rows, head = show.score_rows(SCORES[:1])
    assert dict(zip(head, rows[0], strict=True)) == {"student": "base model", "message": "cautious", "macro": "50.0%", "95 % interval": "40.0% to 70.0%",
                                                     "x": "25%", "y": "75%", "tokens": "12", "format ok": "90%"}
    assert show.score_rows([])[0] == []


def test_the_table_by_task_says_the_same_and_is_narrow():
    rows, head = show.task_rows(SCORES, recipes.laptop().tasks)
    assert head[2:] == [s["student"] for s in SCORES] and {r[0] for r in rows} >= set(SCORES[0]["by_task"])
    assert dict((r[0], r[2]) for r in rows)["mean over tasks"] == f"{SCORES[0]['macro']:.1%}"
    assert max(map(len, show.text_table(rows, head).splitlines())) <= 100


def test_the_painter_repaints_what_is_typed():
    pytest.importorskip("ipywidgets")
    box, out = show.painter(lambda text: f"<i>{text}</i>", "one").children
    assert out.value == "<i>one</i>"
    box.value = "two"
    assert out.value == "<i>two</i>"


def test_the_report_opens_offline(tmp_path, run):
    page = show.report(tmp_path / "a" / "report.html", "a < b", "<b>lead</b>", [("One & two", [show.loss_curve(run), "<p>text</p>"]), ("Three", [])])
    text = page.read_text(encoding="utf-8")
    assert not list(page.parent.glob("*.part")) and text.startswith("<!doctype html>")
    assert text.count("Plotly.newPlot(") >= 1 and "<h1>a &lt; b</h1>" in text and "<p>text</p>" in text
    assert '<a href="#s0">One &amp; two</a> <a href="#s1">Three</a>' in text and '<h2 id="s1">Three</h2>' in text
    assert len(text) > 1_000_000  # plotly itself is inside
    markup = re.sub(r"<script\b[^>]*>.*?</script>", "", text, flags=re.S)
    assert not re.search(r"""(src|href|url)\s*[=(]\s*["']?(https?:)?//""", markup) and "<link" not in markup
    assert not re.search(r"<script\b[^>]*\bsrc", text.replace(show_js(), ""))


def show_js():
    from plotly.offline import get_plotlyjs
    return get_plotlyjs()


def test_pieces_are_coloured_by_kind_and_a_vocabulary_is_a_grid():
    known = [("<s>", "special"), ("<0A>", "byte"), ("7", "digit"), (" the", "piece"), ("<b>", "piece")]
    page = show.pieces([0, 1, 3, 4], known)
    assert page.count("<span") == 4 and "▁the" in page and "&lt;b&gt;" in page and 'title="id 1, byte"' in page and "<b>" not in page
    assert show.pieces([3, 2], known, ansi=True) == "\x1b[90m▁the\x1b[0m \x1b[36m7\x1b[0m"
    heat, *legend = show.grid(known, width=2).data
    assert [[None if v is None or v != v else int(v) for v in r] for r in heat.z] == [[0, 1], [2, 4], [4, None]] and heat.dy == 2
    assert [s.name for s in legend] == list(show.KINDS)


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
    rows, head = show.choice_rows(found)
    assert rows == [["word-problems", "step-by-step", "own", "1 of 8", "30", "", ""], ["", "guess-and-check", "", "8 of 8", "42", "0.016", "chosen"]] and len(head) == 7
