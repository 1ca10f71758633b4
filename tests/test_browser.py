"""The notebooks as somebody meets them: JupyterLab by its own command, a real browser, run all. Figures are drawn, views answer to the hand, nothing goes wrong
in the page, and nothing is asked of the internet.

Screenshots at 1280 x 800, light and dark, are kept in the folder that ORCALAB_SCREENSHOTS names, else among pytest's temporary files.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest
from conftest import ROOT

sync_api = pytest.importorskip("playwright.sync_api", reason="no playwright here: pip install -c constraints.txt -e '.[test]'")
expect = sync_api.expect
expect.set_options(timeout=60_000)  # milliseconds; other work may keep the machine busy
pytestmark = pytest.mark.skipif(not shutil.which("chromium"), reason="no chromium on this machine")

NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
FIGURE, VIEW, PAGE, DRAWING = "application/vnd.plotly.v1+json", "application/vnd.jupyter.widget-view+json", "text/html", "image/svg+xml"
PLAYS = {}  # {notebook: [what a hand does in it, once it has run]}

PANEL = "const panel = jupyterapp.shell.currentWidget, cells = panel.content.widgets;"  # JupyterLab's own objects, as --LabApp.expose_app_in_browser hands them out
READY = PANEL + "return panel.content.model && panel.sessionContext.session?.kernel?.status === 'idle'"
DONE = PANEL + """const code = cells.filter(c => c.model.type === 'code').map(c => c.model)
    return code.some(c => c.executionCount && c.outputs.toJSON().some(o => o.output_type === 'error')) || panel.sessionContext.session.kernel.status === 'idle' && code.every(c => c.executionCount)"""
PAINT = PANEL + """panel.content.activeCellIndex = cells.length - 1
    await jupyterapp.commands.execute('notebook:insert-cell-below')
    const cell = panel.content.activeCell, begun = performance.now()
    cell.model.sharedModel.setSource(given[0])
    jupyterapp.commands.execute('notebook:run-cell')
    while (!cell.node.querySelector('.main-svg .hm')) await new Promise(requestAnimationFrame)
    const shown = performance.now(), {data, layout} = cell.node.querySelector('.js-plotly-plot'), place = cell.node.appendChild(document.createElement('div')), copies = structuredClone([data, layout])
    const drawing = performance.now()
    await Plotly.newPlot(place, ...copies)
    const drawn = performance.now()
    place.remove()
    await jupyterapp.commands.execute('notebook:delete-cell')
    return {cell: shown - begun, plot: drawn - drawing, tokens: data[0].z.flat().length}"""
HOVER = """(plot, words) => { const {xaxis, yaxis} = plot._fullLayout, {text, dy} = plot.data[0], at = plot.getBoundingClientRect()
    const row = text.findIndex(r => r.some(t => t.includes(words))), column = text[row].findIndex(t => t.includes(words))
    return [at.left + xaxis._offset + xaxis.d2p(column), at.top + yaxis._offset + yaxis.d2p(row * (dy ?? 1))] }"""
FAULTS = """area => { const found = []  // what is wider than its place; words of figures that are cut off, lie on each other, or are hard to read on the ground that they stand on
    const light = s => s.match(/[\\d.]+/g).slice(0, 3).map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4).reduce((sum, v, n) => sum + v * [0.2126, 0.7152, 0.0722][n], 0)
    const probe = document.body.appendChild(document.createElement('i'))
    probe.style.color = 'var(--jp-layout-color0)'
    const ground = light(getComputedStyle(probe).color)
    probe.remove()
    for (const made of area.querySelectorAll('.jp-OutputArea-output'))
        if (made.scrollWidth > made.clientWidth + 1) found.push('wider than its place: ' + made.innerText.slice(0, 40))
    for (const plot of area.querySelectorAll('.js-plotly-plot')) {
        const frame = plot.getBoundingClientRect(), words = [...plot.querySelectorAll('.xtick text, .ytick text, .gtitle, .gtitle-subtitle, .g-xtitle text, .g-ytitle text, .legendtext, .annotation-text')]
        const places = words.map(text => [text, text.getBoundingClientRect(), text.closest('.xtick, .ytick')]).filter(([text, box]) => box.width)
        places.forEach(([text, box, tick], n) => {
            const ink = light(getComputedStyle(text).fill), contrast = (Math.max(ink, ground) + 0.05) / (Math.min(ink, ground) + 0.05)
            if (box.left < frame.left - 1 || box.right > frame.right + 1 || box.top < frame.top - 1 || box.bottom > frame.bottom + 1) found.push('cut off: ' + text.textContent)
            if (contrast < 3) found.push(`contrast ${contrast.toFixed(1)}: ${text.textContent}`)
            for (const [other, its, mark] of places.slice(n + 1))
                if (!(tick && mark) && Math.min(box.right, its.right) - Math.max(box.left, its.left) > 2 && Math.min(box.bottom, its.bottom) - Math.max(box.top, its.top) > 4) found.push(`on each other: ${text.textContent}, ${other.textContent}`)
        })
    }
    return found }"""


def plays(*names):
    """Note what a hand does in some notebooks, once all their cells have run."""
    def note(play):
        for name in names:
            PLAYS.setdefault(name, []).append(play)
        return play
    return note


class Book:
    """A notebook that is open in JupyterLab: what can be done in it, what can be seen, and what goes wrong meanwhile."""

    def __init__(self, page, path, shots):
        self.page, self.path, self.shots, self.wrong, self.hosts = page, path, shots, [], set()
        page.on("pageerror", lambda e: self.wrong.append(f"uncaught: {e}"))
        page.on("console", lambda m: m.type == "error" and self.wrong.append(f"console: {m.text}"))
        page.on("request", lambda r: self.hosts.add(urlsplit(r.url).hostname))  # None for data: and blob:
        page.on("websocket", lambda w: self.hosts.add(urlsplit(w.url).hostname))

    def js(self, body, *given):
        """Run the body of a function in the page and return what it returns; `given` is its array of arguments."""
        return self.page.evaluate(f"async given => {{ {body} }}", given)

    def until(self, body, seconds=120):
        """Wait until the body of a function in the page returns something true."""
        self.page.wait_for_function(f"() => {{ {body} }}", timeout=1000 * seconds, polling=100)

    def run(self):
        """Run all cells and wait until they are done, or one of them failed."""
        self.js("jupyterapp.commands.execute('notebook:run-all-cells')")  # not awaited
        self.until(DONE, seconds=400)

    def cells(self):
        """Return the code cells: number, id, source, execution count, outputs."""
        return self.js(PANEL + "return cells.map((c, n) => ({n, ...c.model.toJSON()})).filter(c => c.cell_type === 'code')")

    def errors(self):
        """Return what cells ended with an error, and those that never ran."""
        return [f"{c['id']}: {o['ename']}: {o['evalue']}" for c in self.cells() for o in c["outputs"] if o["output_type"] == "error"] + [c["id"] for c in self.cells() if not c["execution_count"]]

    def output(self, n):
        """Bring the output of a cell to the eye, by the cell's number, and return it."""
        self.js(PANEL + "await panel.content.scrollToCell(cells[given[0]])", n)  # a cell far away may not be drawn
        area = self.page.locator(f'.jp-Notebook [data-windowed-list-index="{n}"] .jp-Cell-outputArea')
        area.evaluate("e => e.scrollIntoView({block: e.offsetHeight > 600 ? 'start' : 'center'})")
        return area

    def made_by(self, words):
        """Bring the output of the one code cell whose source holds `words` to the eye, and return it."""
        (n,) = [c["n"] for c in self.cells() if words in c["source"]]
        return self.output(n)

    def hover(self, area, words):
        """Put the mouse on the first cell of a heatmap whose text holds `words`, and return what comes up when it says so."""
        self.page.mouse.move(*area.locator(".js-plotly-plot").evaluate(HOVER, words))
        expect(area.locator(".hovertext text")).to_contain_text(words)  # what stood there before goes a moment later
        return area.locator(".hovertext text").text_content()

    def shot(self, what):
        """Keep what is on the screen."""
        self.page.screenshot(path=self.shots / f"{self.path.stem}-{what}.png", animations="disabled")

    def theme(self, name):
        self.js("await jupyterapp.commands.execute('apputils:change-theme', {theme: given[0]})", f"JupyterLab {name}")
        expect(self.page.locator("body")).to_have_attribute("data-jp-theme-light", str(name == "Light").lower())

    def look(self, suffix=""):
        """Look at all that is not plain text: figures and views are drawn; return what cannot be read."""
        faults = []
        for cell in self.cells():
            kinds = [kind for o in cell["outputs"] for kind in (FIGURE, VIEW, PAGE, DRAWING) if kind in o.get("data", {})]
            if kinds:
                area = self.output(cell["n"])
                expect(area.locator(".js-plotly-plot:has(.main-svg .trace, .main-svg .hm)")).to_have_count(kinds.count(FIGURE))
                expect(area.locator(".jp-OutputArea-output > .jupyter-widgets")).to_have_count(kinds.count(VIEW))
                self.shot(cell["id"] + suffix)
                faults += [f"{cell['id']}{suffix}: {fault}" for fault in area.evaluate(FAULTS)]
        return faults


class Lab:
    """JupyterLab in a page of a browser, where one notebook at a time is opened."""

    def __init__(self, url, token, context, folder, shots):
        self.url, self.token, self.context, self.folder, self.shots, self.page = url, token, context, folder, shots, None

    @contextmanager
    def open(self, path):
        """Open a notebook and give a Book; its kernel is gone afterwards, and so is the page if anything failed in it."""
        page, self.page = self.page or self.context.new_page(), None
        try:
            book = Book(page, path, self.shots)
            if page.url == "about:blank":
                page.goto(f"{self.url}lab?token={self.token}&reset")
                page.wait_for_function("() => window.jupyterapp?.restored.then(() => true)")
            book.js("await jupyterapp.commands.execute('docmanager:open', {path: given[0], factory: 'Notebook'})", path.relative_to(self.folder).as_posix())
            book.until(READY)
            yield book
            self.page = page
        finally:
            page.evaluate("async () => { const panel = window.jupyterapp?.shell.currentWidget; await panel?.sessionContext?.shutdown(); panel?.dispose() }")
            if not self.page:
                page.close()


def copy(path, folder):
    """Copy a notebook with two of its parameters edited, as somebody would by hand."""
    text = path.read_text(encoding="utf-8")
    for old, new in (('recipe = "laptop"', 'recipe = "smoke"'), ("out = None", f'out = "{(folder / "run").as_posix()}"')):
        assert text.count(json.dumps(old)[1:-1]) == 1
        text = text.replace(json.dumps(old)[1:-1], json.dumps(new)[1:-1])
    (folder / "notebooks" / path.name).write_text(text, encoding="utf-8")


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A Lab on a folder with copies of the notebooks; what it starts is ended by its process ids."""
    folder = tmp_path_factory.mktemp("lab")
    shots = Path(os.environ.get("ORCALAB_SCREENSHOTS") or folder / "screenshots")
    own = {name: str(folder / "settings" / name) for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "JUPYTERLAB_SETTINGS_DIR", "JUPYTERLAB_WORKSPACES_DIR", "IPYTHONDIR")}
    settings = Path(own["JUPYTERLAB_SETTINGS_DIR"]) / "@jupyterlab" / "apputils-extension"
    for made in (folder / "notebooks", shots, settings):
        made.mkdir(parents=True, exist_ok=True)
    (settings / "notification.jupyterlab-settings").write_text('{"fetchNews": "false"}')  # who has answered JupyterLab's question about news
    (folder / "benchmarks").symlink_to(ROOT / "benchmarks")  # records that notebooks read
    for path in NOTEBOOKS:
        copy(path, folder)
    with open(folder / "log", "w", encoding="utf-8") as log:
        server = psutil.Popen([Path(sys.executable).with_name("jupyter"), "lab", "--no-browser", "--allow-root", f"--ServerApp.root_dir={folder}", "--LabApp.expose_app_in_browser=True"],
                              stdout=log, stderr=log, env={**os.environ, **own, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)})
    try:
        begun, known = time.time(), []
        while not known:
            assert server.poll() is None and time.time() - begun < 60, (folder / "log").read_text(encoding="utf-8")[-3000:]
            time.sleep(0.1)
            known = list(Path(own["JUPYTER_RUNTIME_DIR"]).glob("jpserver-*.json"))  # a free port and a token are Jupyter's own choice
        told = json.loads(known[0].read_text(encoding="utf-8"))
        with sync_api.sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            context = browser.new_context(viewport={"width": 1280, "height": 800})
            context.set_default_timeout(60_000)
            yield Lab(told["url"], told["token"], context, folder, shots)
            browser.close()
    finally:
        started = [server, *server.children(recursive=True)]
        server.terminate()
        for p in psutil.wait_procs(started, timeout=30)[1]:
            p.kill()


# ------------------------------------------------------------------------------------- what a hand does

@plays("01_tokenization")
def what_is_typed_is_repainted(book):
    view = book.made_by("panels.play(")
    view.locator("textarea").fill("7𒀀")
    expect(view.locator("span[title$=digit]")).to_have_count(2)  # one in each tokenizer
    expect(view.locator("span[title$=byte]")).to_have_count(4 + 4 + 1)  # a cuneiform sign has four bytes, and is a piece of neither; in one of them a line's end is a byte too
    book.shot("typed")


@plays("02_chatml_and_masks")
def a_typed_marker_is_text(book):
    view = book.made_by("panels.play(")
    special, context = view.locator("span[title*=special]"), view.locator("span[title$=context]")
    before, marks = context.count(), special.count()
    view.locator("textarea").fill("2+2?<|im_end|>" * 2)
    expect(context).to_have_count(before + len("2+2?<|im_end|>"))  # a byte each
    assert special.count() == marks
    book.shot("typed")


@plays("03_data")
def the_counts_follow_the_sliders(book):
    view = book.made_by("panels.play(")
    row = lambda: view.locator("tr:has-text('zero_shot')").inner_text().split()[:3]
    before = row()
    view.get_by_role("slider").nth(1).press("Home")
    expect(view.locator("tr:has-text('zero_shot')")).to_contain_text("0.0%")
    assert before[1:] == ["602", "602"] and row() == ["zero_shot", "0", "0"]
    book.shot("slid")


@plays("04_packing")
def a_token_tells_of_itself(book):
    area = book.made_by("show.pack(")
    assert re.fullmatch(r"'.+', id \d+document 0, context", book.hover(area, "document 0, context"))
    assert re.fullmatch(r"'.+', id \d+document 1, target", book.hover(area, "document 1, target"))
    book.shot("hovered")


@plays("04_packing")
def a_long_pack_is_painted_within_a_second(book):
    code, took = "show.pack(packing.pack([([5] * 512, [0, 1] * 256)] * 8, [list(range(8))], 4096, 0), text=lambda i: tokenizer.decode([i]))", []
    while len(took) < 8 and not any(t["cell"] < 1000 for t in took):  # milliseconds from running the cell to seeing the pack; others may use the machine
        took.append(book.js(PAINT, code))
    assert took[-1]["tokens"] == 4096 and min(t["cell"] for t in took) < 1000, took
    print("a pack of 4,096 tokens:", took)


@plays("06_stage1_flan", "07_stage2_chatgpt", "08_stage3_gpt4", "13_small_gpu")
def the_live_figure_comes_to_its_end(book):
    plots = book.made_by("watching=show.Live(").locator(".js-plotly-plot")
    expect(plots).to_have_count(2 if book.path.stem == "08_stage3_gpt4" else 1)
    for plot in plots.all():
        expect(plot).to_contain_text(re.compile(r"step (\d+) of \1,"))


@plays("07_stage2_chatgpt")
def a_target_tells_its_loss(book):
    area = book.made_by("after.update_layout(")
    assert re.fullmatch(r"'.+', id \d+document \d+, target\d+\.\d\d nats", book.hover(area, "nats"))
    book.shot("hovered")


@plays("06_stage1_flan", "07_stage2_chatgpt", "08_stage3_gpt4")
def an_answer_tells_its_losses(book):
    token = book.made_by("HTML(panels.loss_map(").locator("span[title*=target]").first
    token.hover()
    assert re.fullmatch(r"id \d+, .+, target, \d+\.\d\d nats", token.get_attribute("title"))


@plays("09_inference")
def a_question_is_answered(book):
    view = book.made_by("panels.chat(")
    view.locator("textarea").fill("What is 2 + 2?")
    view.get_by_role("button", name="Send").click()
    expect(view).to_contain_text("tokens, ended by")
    assert view.locator("[title=user]").all_inner_texts() == ["What is 2 + 2?"] and view.locator("[title=assistant]").count() == 1
    book.shot("answered")


@plays("10_strategies")
def everybody_answers_at_the_switchboard(book):
    view = book.made_by("panels.switchboard(")
    view.locator("textarea").fill("What is 2 + 2?")
    view.get_by_role("button", name="Ask").click()
    answers = view.locator("td")
    expect(answers.first).to_contain_text(re.compile(r"\[\d+ tokens, \w+\]"))
    expect(answers.filter(has_not_text=re.compile(r"\[\d+ tokens, \w+\]"))).to_have_count(0)
    assert answers.count() >= 4
    book.shot("asked")


@plays("11_evaluation")
def other_answers_are_chosen(book):
    view = book.made_by("panels.explorer(")
    said, task = view.locator(".widget-html"), view.get_by_label("task")
    before = said.inner_text()
    task.select_option(index=2)
    expect(said).not_to_have_text(before)
    assert said.locator("b").count() and {b.split()[0] for b in said.locator("b").all_inner_texts()} == {task.evaluate("e => e.selectedOptions[0].text")}
    book.shot("chosen")


# ----------------------------------------------------------------------------------------------- tests

@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_runs_in_jupyterlab_and_answers_to_the_hand(path, lab):
    with lab.open(lab.folder / "notebooks" / path.name) as book:
        book.shot("top")
        book.run()
        assert book.errors() == []
        faults = book.look()
        for play in PLAYS.get(path.stem, ()):
            play(book)
        try:
            book.theme("Dark")
            faults += book.look("-dark")
        finally:
            book.theme("Light")
        assert (faults, book.wrong, book.hosts - {None}) == ([], [], {urlsplit(lab.url).hostname})


def test_what_goes_wrong_in_a_page_would_be_seen(lab):
    """The test above could pass because it is blind: here is a notebook in which everything is wrong."""
    sources = ["from IPython.display import HTML, Javascript\nHTML('<img src=\"http://nowhere.invalid/x.png\">')", "Javascript('console.error(\"one\"); setTimeout(() => { throw Error(\"two\") })')",
               "import plotly.graph_objects as go\ngo.Figure(layout={'title': {'text': 'long' * 200, 'font': {'color': '#eee'}}}).add_scatter(y=[1, 2])", "1 / 0", "'never'"]
    cells = [{"cell_type": "code", "id": f"c{n}", "metadata": {}, "execution_count": None, "outputs": [], "source": s} for n, s in enumerate(sources)]
    path = lab.folder / "wrong.ipynb"
    path.write_text(json.dumps({"cells": cells, "metadata": {"kernelspec": {"display_name": "Python 3", "name": "python3"}}, "nbformat": 4, "nbformat_minor": 5}))
    with lab.open(path) as book:
        book.run()
        assert book.errors() == ["c3: ZeroDivisionError: division by zero", "c4"]
        assert [f.split(":")[:2] for f in book.look()] == [["c2", " cut off"], ["c2", " contrast 1.2"]]
        assert {"console: one", "uncaught: two"} <= set(book.wrong) and "nowhere.invalid" in book.hosts
