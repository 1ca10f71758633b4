"""The README's pictures, of a run of the laptop recipe: `python benchmarks/pictures.py runs/laptop-0`. Needs playwright, and chromium on the machine.

What is drawn are the views of notebooks 08 and 10, by the same functions, on the row that all notebooks follow and on one held-out question; light and dark.
"""

import html
import shutil
import sys
from pathlib import Path
from random import Random

import numpy as np

from orcalab import chatml, corpus, data, generate, long, panels, procedural, recipes, report

HERE = Path(__file__).resolve().parent
MESSAGES, STUDENTS = ("cautious", "direct-answer", "step-by-step"), ("base", "stage3_gpt4", "answer_only")


def views(rec):
    """Return {name of the picture: HTML}: the loss map of the followed row, and the switchboard's answers to a held-out question of its task."""
    cfg = rec.stage("stage3_gpt4")
    row = next(corpus.rows_of(rec, cfg)[0])
    question, losses, texts = procedural.held_out(rec.tasks, 1)[row.task][0]["question"].strip(), {}, {}
    for name in ("base", *(s.name for s in rec.stages)):
        student = generate.Student(rec.base if name == "base" else rec.stage(name).folder / "model")
        ids, mask = chatml.encode(data.dress(row, cfg, Random(rec.seed)).messages, student.tokenizer)
        losses[name] = long.read(student.model, ids, np.arange(len(ids)))[0]
        if name in STUDENTS:
            answers = student.answer([student.prompt(question, m) for m in MESSAGES], rec.max_new_tokens)
            texts |= {(name, m): f"{a.text.strip()}\n[{a.tokens} tokens, {a.reason}]" for m, a in zip(MESSAGES, answers)}
    return {"loss_map": panels.loss_map(ids, mask, student.tokenizer, losses), "switchboard": f"<p>{html.escape(question)}</p>{panels.board(texts)}"}


def main(out):
    from playwright.sync_api import sync_playwright
    page = report.page(HERE / "page.html", "views", "", [(name, [f'<div id="{name}" style="padding:12px">{view}</div>']) for name, view in views(recipes.get("laptop", out=out)).items()])
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for scheme in ("light", "dark"):
            shown = browser.new_page(viewport={"width": 1000, "height": 800}, color_scheme=scheme)
            shown.goto(page.as_uri())
            for name in ("loss_map", "switchboard"):
                shown.locator(f"#{name}").screenshot(path=HERE / f"{name}-{scheme}.png")
        browser.close()
    page.unlink()


if __name__ == "__main__":
    main(*sys.argv[1:])
