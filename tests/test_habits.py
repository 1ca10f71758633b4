"""Habits: sources of notebooks are clean and can be edited as text, every notebook has its parts, and every link, name and command in prose leads to what is there."""

import ast
import importlib
import json
import re
import shlex
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from conftest import ROOT, script
from markdown_it import MarkdownIt

from orcalab import __main__ as cli, config, execute, families, procedural, recipes, sources, strategies

tidy = script("notebooks/tidy.py")
NOTEBOOKS = tidy.notebooks()
PAGES = [ROOT / p for p in ("README.md", "CONTRIBUTING.md", "azureml/README.md", "notebooks/README.md")]
PROSE = [*PAGES, *NOTEBOOKS]  # says what is so now; the log and the list of changes say what was
ROOMS = {p.stem for p in (ROOT / "orcalab").glob("[a-z]*.py")}
each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)


@cache
def book(path):
    return json.loads(path.read_text(encoding="utf-8"))


def markdown(path):
    """A page's Markdown, or that of a notebook's cells one under the other."""
    return path.read_text(encoding="utf-8") if path.suffix == ".md" else "\n\n".join(c["source"] for c in book(path)["cells"] if c["cell_type"] == "markdown")


def code(path):
    return [c["source"] for c in book(path)["cells"] if c["cell_type"] == "code"]


@cache
def pieces(text):
    """Every piece of a Markdown text, those inside lines too."""
    return [t for block in MarkdownIt("commonmark").enable("table").parse(text) for t in [block, *(block.children or ())]]


# ------------------------------------------------------------------------------------------------- clean sources

def test_sources_are_clean_and_what_is_made_of_them_is_up_to_date():
    assert tidy.tidy(check=True) == []  # else: python notebooks/tidy.py


def test_what_running_leaves_behind_is_taken_away(tmp_path):
    """A kernel runs a small notebook with a widget, which leaves all that a source should not have; then it is as it was."""
    import nbformat
    from nbclient import NotebookClient
    source = tidy.layout({"cells": [
        {"cell_type": "markdown", "id": "cell-00", "metadata": {}, "source": "# 99 · Ünterwegs"},
        {"cell_type": "code", "execution_count": None, "id": "cell-01", "metadata": {"tags": ["parameters", "mine"]}, "outputs": [],
         "source": "n = 3  # how many sliders there are"},
        {"cell_type": "code", "execution_count": None, "id": "cell-x", "metadata": {}, "outputs": [], "source": "import ipywidgets\n\nprint(n)\nipywidgets.IntSlider()"}],
        "metadata": tidy.KEPT, "nbformat": 4, "nbformat_minor": 5})
    path = tmp_path / "run.ipynb"
    path.write_text(source, encoding="utf-8")
    ran = nbformat.read(path, 4)
    NotebookClient(ran, store_widget_state=True, resources={"metadata": {"path": tmp_path}}).execute()
    nbformat.write(ran, path)
    dirty = json.loads(path.read_text(encoding="utf-8"))
    assert dirty["metadata"]["widgets"] and dirty["metadata"]["language_info"]["version"] and dirty["cells"][2]["outputs"] and isinstance(dirty["cells"][2]["source"], list)
    made, taken = tidy.clean(dirty)
    assert tidy.layout(made) == source and taken == {"outputs": 2, "execution counts": 2, "metadata of the notebook": 1, "metadata of cells": 2}


def test_the_command_says_what_it_would_change_and_changes_it(tmp_path, capsys):
    for name in ("notebooks", "benchmarks/notebooks.json", "README.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, tmp_path / name)
    left, about = tmp_path / "notebooks" / "04_packing.ipynb", tmp_path / "notebooks" / "README.md"
    copy, was = script(tmp_path / "notebooks" / "tidy.py"), left.read_text(encoding="utf-8")
    dirty = json.loads(was)
    dirty["cells"][1]["execution_count"] = 7
    dirty["cells"][0]["source"] = dirty["cells"][0]["source"].replace(f"| {tidy.measured('04_packing', 'laptop')} |", "| 9:59 |")
    left.write_text(tidy.layout(dirty), encoding="utf-8")
    about.write_text(about.read_text(encoding="utf-8").replace("`grid`", "`gird`"), encoding="utf-8")
    job = subprocess.run([sys.executable, tmp_path / "notebooks" / "tidy.py", "--check"], capture_output=True, text=True)
    assert (job.returncode, job.stdout) == (1, "04_packing.ipynb: 1 execution counts, times and memory at its head\nREADME.md: made anew\n")
    assert json.loads(left.read_text(encoding="utf-8")) == dirty and "`gird`" in about.read_text(encoding="utf-8")
    copy.main()
    assert left.read_text(encoding="utf-8") == was and copy.tidy(check=True) == [] and capsys.readouterr().out == job.stdout
    with pytest.raises(SystemExit, match="either no word or --check, got --chek"):
        copy.main("--chek")


def test_a_knob_that_papermill_would_pass_over_is_refused(tmp_path):
    path = tmp_path / "06_x.ipynb"
    for line in ("lr = None  # peak learning rate, lr = None keeps the recipe's", "lr = None", "lr = None  # rate"):
        cells = [{**c, "source": c["source"].replace("lr = None  # peak learning rate of this stage (None keeps the recipe's)", line)} for c in book(NOTEBOOKS[6])["cells"]]
        path.write_text(tidy.layout({**book(NOTEBOOKS[6]), "cells": cells}), encoding="utf-8")
        with pytest.raises(ValueError, match="06_x.ipynb: the line of 'lr' is not `name = literal  # help`, with one equals sign"):
            tidy.knobs(path)


# ------------------------------------------------------------------------------------------------- knobs

def cell_of_knobs(path):
    """(name, default, help) of each line of the cell tagged `parameters`, read without papermill."""
    (source,) = [c["source"] for c in book(path)["cells"] if "parameters" in c["metadata"].get("tags", ())]
    return [re.fullmatch(r"(\w+) = (.*?)  # (.*)", line).groups() for line in source.splitlines()]


def shown(text):
    """{name: (default, help)} as `papermill --help-notebook` prints them."""
    return {name: (default, said) for name, default, said in re.findall(r"^  (\w+): .*? \(default (.*?)\)\s+(\S.*)$", text, re.M)}


@each
def test_papermill_shows_every_knob_with_its_help(path):
    from click.testing import CliRunner
    from papermill.cli import papermill
    job = CliRunner().invoke(papermill, ["--help-notebook", str(path)])
    assert job.exit_code == 0 and shown(job.output) == {name: (default, said) for name, default, said in cell_of_knobs(path)}


def test_so_does_the_command():
    job = subprocess.run([sys.executable, "-m", "papermill", "--help-notebook", "notebooks/06_stage1_flan.ipynb"], capture_output=True, text=True, cwd=ROOT)
    assert job.returncode == 0 and shown(job.stdout)["lr"] == ("None", "peak learning rate of this stage (None keeps the recipe's)") and len(shown(job.stdout)) == 6


def test_the_table_of_knobs_has_every_knob_of_every_notebook():
    lines = re.findall(r"^\| `(\w+)` \| (.*?) \| `(.*?)` \| (.*?) \| (.*?) \| (.*) \|$", (ROOT / "notebooks" / "README.md").read_text(encoding="utf-8"), re.M)
    every, told = [p.stem[:2] for p in NOTEBOOKS], {}
    for name, where, default, *kept, said in lines:
        given = re.findall(r"\d\d", where)
        for number in [n for n in every if n not in given] if where.startswith("all") else given:
            assert (number, name) not in told
            told[number, name] = default, re.sub(r"\\(.)", r"\1", said), *kept
    assert {k: v[:2] for k, v in told.items()} == {(p.stem[:2], name): (default, said) for p in NOTEBOOKS for name, default, said in cell_of_knobs(p)}
    for (number, name), (default, said, *kept) in told.items():
        assert all(kept) == ("keeps the recipe's" in said) and any(kept) == all(kept), (number, name)
    for number, stage in (("06", "stage1_flan"), ("07", "stage2_chatgpt"), ("08", "stage3_gpt4"), ("08", "answer_only")):
        for knob in ("lr", "steps"):
            assert told[number, knob][2:] == tuple(f"`{getattr(recipes.get(r).stage(stage), knob)}`" for r in ("smoke", "laptop"))
    assert told["10", "grid"][2:] == ("`1`", "`10`") and told["00", "base"][2:] == ("`tiny-random`", "`smollm2-135m`")


@each
def test_every_notebook_refuses_a_misspelt_knob_before_it_works(path):
    """As papermill would put it in: a cell that begins with `# Parameters`, behind the one with the defaults."""
    setup = next(s for s in code(path) if "config.parameters(" in s)
    before = ast.parse(setup[: setup.index("given = config.parameters(")]).body
    assert all(isinstance(s, (ast.Import, ast.ImportFrom)) for s in before)
    name = cell_of_knobs(path)[-1][0]
    wrong = name[:1] + name[2:] if len(name) > 2 else name * 2
    with pytest.raises(ValueError, match=f"no parameter of this notebook named '{wrong}'; did you mean '{name}'"):
        exec(setup, {"In": ["", f"# Parameters\n{wrong} = 1\n"], wrong: 1} | {n: ast.literal_eval(v) for n, v, _ in cell_of_knobs(path)})


# ------------------------------------------------------------------------------------------------- recipes

@pytest.mark.parametrize("name", recipes.RECIPES)
def test_a_recipe_is_whole(name):
    """What CONTRIBUTING.md asks of one: its docstring, where its stages start, questions that no earlier stage had, tasks that can be taught."""
    rec = recipes.get(name)
    assert rec.name == name and not [w for w in ("Departs:", "Cost", "Result:") if w not in rec.doc] and re.search(r"(Paper|Source):", rec.doc)
    before = {"base": set()}
    for s in rec.stages:
        assert s.start in before and s.name not in before, f"{s.name} starts from {s.start}, which is no earlier stage"
        mine = {(s.rows, s.stream)} if s.rows.startswith("procedural") else set()
        assert not mine & before[s.start], f"{s.name} reads the questions that {s.start} has learned"
        before[s.name] = before[s.start] | mine
        assert s.rows.startswith("procedural") or s.rows in {m.name for m in rec.mixes} | set(sources.SOURCES)
    for t in rec.tasks:
        assert families.family_of(t.name).strategy == t.strategy in strategies.STRATEGIES and t.why
        assert t.strategy == "direct-answer" or t.name in procedural.WRITERS and t.strategy in procedural.MARKS


# ------------------------------------------------------------------------------------------------- as text

def test_a_notebook_goes_to_text_and_back(tmp_path):
    """The commands of CONTRIBUTING.md, on all notebooks: nothing changes but what was edited; ids and tags stay."""
    pytest.importorskip("jupytext", reason="jupytext is not installed (pip install jupytext)")
    there, back = re.findall(r"^(jupytext .*)$", markdown(ROOT / "CONTRIBUTING.md"), re.M)
    for path in NOTEBOOKS:
        shutil.copy(path, tmp_path)
    run = lambda line, ending: subprocess.run([sys.executable, "-m", *shlex.split(line)[:-1], *sorted(tmp_path.glob(f"*{ending}"))], check=True, capture_output=True)
    run(there, ".ipynb")
    text = tmp_path / "06_stage1_flan.py"
    for old, new in (("# # 06 · Stage 1", "# # 06 · Étage 1"), ("seed = None  # seeds", "seed = 3  # seeds"), ("assert drift < 1e-4", "assert drift < 1e-5")):
        assert text.read_text(encoding="utf-8").count(old) == 1
        text.write_text(text.read_text(encoding="utf-8").replace(old, new), encoding="utf-8")
    run(back, ".py")
    for path in NOTEBOOKS:
        made = tidy.layout(tidy.clean(json.loads((tmp_path / path.name).read_text(encoding="utf-8")))[0])
        was = path.read_text(encoding="utf-8")
        if path.stem == text.stem:
            assert made != was
            was = was.replace("# 06 · Stage 1", "# 06 · Étage 1").replace("seed = None  # seeds", "seed = 3  # seeds").replace("assert drift < 1e-4", "assert drift < 1e-5")
        assert made == was


# ------------------------------------------------------------------------------------------------- the parts of a notebook

@each
def test_a_notebook_has_its_parts(path):
    cells = book(path)["cells"]
    kinds, text = [c["cell_type"] for c in cells], [c["source"] for c in cells]
    head, knobs, colab, setup = text[:4]
    assert kinds[:4] == ["markdown", "code", "code", "code"] and [c["id"] for c in cells[:4]] == ["cell-00", "cell-01", "cell-colab", "cell-02"]
    title, promise, table, *more = head.split("\n\n")
    assert re.fullmatch(rf"# {path.stem[:2]} · \S.*", title) and re.match(r"[A-Z0-9][^|]+[.?]$", promise, re.S) and table.startswith("| reads | writes | `smoke` | `laptop` |\n")
    assert re.search(r"\bst(and|ands|anding) in\b", "\n".join(more)), "the head says what stands in for what"
    assert [i for i, c in enumerate(cells) if c["metadata"]] == [1] and cells[1]["metadata"] == {"tags": ["parameters"]} and len(knobs.splitlines()) <= 6
    assert "given = config.parameters(globals()" in setup and "recipes.get(**given)" in setup and "print(" in setup
    sections = re.findall(r"^## (.+)$", "\n".join(t for t, k in zip(text, kinds) if k == "markdown"), re.M)
    *asked, saw, exercises, following = sections
    assert [saw, exercises, following] == ["What you saw", "Exercises", "Next"]
    for n, s in enumerate(asked, 1):
        assert s.startswith(f"{n} · ") and s.endswith("?"), f"section {n} of {path.stem} is no question: {s}"
    everything = "\n".join(text)
    assert re.search(r"(?i)\bby[ _]hand\b|naive", everything) and "assert " in everything
    assert re.search(r"\brow that (every notebook|all notebooks|we) follow|\bfollowed row\b|\brow goes through all\b", everything), "the same row from first to last"


@each
def test_a_notebook_needs_no_working_folder(path):
    """JupyterLab and `orcalab run` work in the folder of the notebooks, papermill where it is called."""
    assert not [line for cell in code(path) for line in cell.splitlines() if re.search(r"""["']\.\.?/""", line)]


@each
def test_what_you_saw_is_three_or_more_bullets_with_numbers_from_variables(path):
    cells = book(path)["cells"]
    at = next(i for i, c in enumerate(cells) if c["source"].endswith("## What you saw"))
    last = ast.parse(cells[at + 1]["source"]).body[-1]
    assert ast.unparse(last).startswith("Markdown('\\n'.join((")  # prose: a front end breaks its lines at words
    bullets = last.value.args[0].args[0].elts
    assert len(bullets) >= 3
    for b in bullets:
        assert ast.unparse(b).lstrip("f'\"(").startswith("- ") and any(isinstance(n, ast.FormattedValue) for n in ast.walk(b)), ast.unparse(b)


@each
def test_three_exercises_with_folded_solutions_and_one_link_onwards(path):
    last = book(path)["cells"][-1]["source"]
    exercises, onwards = re.fullmatch(r"## Exercises\n(.*)\n\n## Next\n(.*)", last, re.S).groups()
    asked, solved = re.fullmatch(r"(.*)\n\n<details><summary>Solution</summary>\n\n(.*)\n\n</details>", exercises, re.S).groups()
    starts = [re.match(r"\d\. \*\*(.*?)\.\*\* ", line)[1] for line in asked.split("\n")]
    assert starts == ["Turn a knob", "Change a line", "Design a run"] and re.findall(r"^(\d)\. ", solved, re.M) == ["1", "2", "3"]
    links = re.findall(r"\]\((.*?)\)", onwards)
    after = NOTEBOOKS[NOTEBOOKS.index(path) + 1].name if path != NOTEBOOKS[-1] else "../azureml/README.md"
    assert links == [after] and (path == NOTEBOOKS[-1] or onwards == f"[{book(path.with_name(after))['cells'][0]['source'].splitlines()[0][2:]}]({after})")


def test_the_heads_say_what_was_recorded():
    record = config.read_json(ROOT / "benchmarks" / "notebooks.json")
    assert record["smoke"]["minutes"] < 2  # what "under two minutes" stands on
    assert set(record) == set(tidy.MADE_WITH) and set(record["smoke"]["notebooks"]) == {p.stem for p in NOTEBOOKS} >= set(record["laptop"]["notebooks"])
    for run in record.values():  # a notebook is a part of its run
        made = run["notebooks"].values()
        assert sum(n["seconds"] for n in made) <= 60 * run["minutes"] + 3 and all(n["seconds"] > 0 and 0 <= n["gib"] <= run["peak_gib"] + 0.05 for n in made)
    for path in NOTEBOOKS:
        *_, line = re.search(r"(?:^\|.*\|\n?)+", book(path)["cells"][0]["source"], re.M)[0].splitlines()
        for recipe, said in zip(tidy.MADE_WITH, line.strip("| ").split(" | ")[-2:]):
            made = record[recipe]["notebooks"].get(path.stem)
            if said == "not measured":
                assert made is None
                continue
            minutes, seconds, gib = re.fullmatch(r"(?:(\d+):)?(\d+)(?: s)?(?:, ([\d.]+) GiB)?", said).groups()
            assert abs(60 * int(minutes or 0) + int(seconds) - made["seconds"]) <= 1 and abs(float(gib or 0) - made["gib"]) <= 0.051


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_time_and_memory_of_every_notebook_are_measured(tmp_path):
    printed, made = script("benchmarks/laptop.py").timed(tmp_path / "smoke", "--recipe", "smoke")
    told = {name: 60 * int(m) + int(s) for name, m, s in re.findall(r"\] (\w+) +(\d+):(\d\d) .*so far$", printed, re.M)}
    assert list(made["notebooks"]) == [p.stem for p in NOTEBOOKS] and all(abs(made["notebooks"][n]["seconds"] - s) <= 1 for n, s in told.items())
    assert all(0.2 < n["gib"] <= made["peak_gib"] + 0.05 for n in made["notebooks"].values()) and made["peak_gib"] < 4


# ------------------------------------------------------------------------------------------------- links

def slug(heading):
    """A heading's anchor, by GitHub's rule."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def anchors(text):
    """The anchors of a text's headings; the second of one name ends in -1."""
    names, parts = [], pieces(text)
    for opened, inline in zip(parts, parts[1:]):
        if opened.type == "heading_open":
            names.append(slug("".join(t.content for t in inline.children if t.type in ("text", "code_inline"))))
    return [f"{n}-{names[:i].count(n)}" if n in names[:i] else n for i, n in enumerate(names)]


def links(text):
    """Where a text's links and pictures lead, also those in HTML."""
    for t in pieces(text):
        if to := t.attrGet("href") or t.attrGet("src"):
            yield to
        elif t.type in ("html_inline", "html_block"):
            yield from re.findall(r"""(?:href|src|srcset)=["'](.*?)["']""", t.content)


def lead_nowhere(path, text):
    """The links of a page that lead nowhere. There is no network here: of an address outside only the form is looked at."""
    for to in links(text):
        at = urlsplit(unquote(to))
        if at.scheme:
            good = at.scheme == "https" and re.fullmatch(r"([a-z0-9-]+\.)+[a-z]{2,}", at.netloc)
            if at.netloc.endswith("arxiv.org"):
                good = good and re.fullmatch(r"/(abs|pdf)/\d{2}(0[1-9]|1[0-2])\.\d{4,5}(v\d+)?", at.path)
        else:
            target = (path.parent / at.path).resolve() if at.path else path
            good = target.is_relative_to(ROOT) and target.exists() and (not at.fragment or at.fragment in anchors(text if target == path else markdown(target)))
        if not good:
            yield to


@pytest.mark.parametrize("path", [*PAGES, ROOT / "CHANGELOG.md", ROOT / "LOG.md", *NOTEBOOKS], ids=lambda p: str(p.relative_to(ROOT)))
def test_every_link_leads_somewhere(path):
    assert list(lead_nowhere(path, markdown(path))) == []
    for said in re.findall(r"(?i)\barxiv[: ]\s*([\w./-]*\d)", markdown(path)):
        assert re.fullmatch(r"\d{2}(0[1-9]|1[0-2])\.\d{4,5}(v\d+)?", said), said


def test_there_are_links_to_look_at():
    assert len(list(links(markdown(ROOT / "README.md")))) >= 18 and sum(len(list(links(markdown(p)))) for p in PROSE) > 70


def test_a_link_that_leads_nowhere_is_found():
    wrong = ["gone.md", "README.md#gone", "#all-the-knobs", "http://example.org", "https://example", "https://arxiv.org/abs/2313.00001", "https://arxiv.org/abs/230.02707",
             "/etc/passwd", "../../elsewhere"]
    right = ["#all-knobs", "#all-knobs-1", "../CONTRIBUTING.md#before-a-commit", "00_tour.ipynb", "https://arxiv.org/abs/2306.02707", "../azureml/README.md"]
    text = "## All `knobs`\n## All knobs\n" + "\n".join(f"[x]({to})" for to in wrong + right) + "\n<a href='lost.md'>x</a> ![x](lost.png) `[x](code.md)`\n"
    assert list(lead_nowhere(ROOT / "notebooks" / "README.md", text)) == [*wrong, "lost.md", "lost.png"]


def test_papers_are_cited_in_the_right_form_in_the_package_too():
    found = [(p.name, said) for p in (ROOT / "orcalab").glob("*.py") for said in re.findall(r"(?i)\barxiv[: ]\s*([\w./-]*\d)", p.read_text(encoding="utf-8"))]
    assert len(found) > 5 and [f for f in found if not re.fullmatch(r"\d{2}(0[1-9]|1[0-2])\.\d{4,5}(v\d+)?", f[1])] == []


def test_a_list_of_notebooks_lacks_none():
    """A table with the head `notebook` has a line for each, in order; the one that it stands in needs no link."""
    found = []
    for path in PROSE:
        for table in re.findall(r"^\| notebook \|.*\n\|[-|]+\n((?:\|.*\n?)+)", markdown(path), re.M):
            named = [m[1] if (m := re.match(r"\| \[[^]]+\]\((?:notebooks/)?(\w+\.ipynb)\) \|", line)) else path.name for line in table.splitlines()]
            assert named == [p.name for p in NOTEBOOKS]
            found.append(path)
    assert found == [ROOT / "README.md", ROOT / "notebooks" / "README.md", NOTEBOOKS[0]]


def test_each_view_that_the_readme_names_is_in_each_notebook_that_it_links():
    (table,) = re.findall(r"^\| view \|.*\n\|[-|]+\n((?:\|.*\n?)+)", markdown(ROOT / "README.md"), re.M)
    views = {}
    for line in table.splitlines():
        what, where, _ = line.strip("| ").split(" | ")
        for name in re.findall(r"`([\w.]+)`", what):
            views[name] = [ROOT / to for to in links(where)]
    assert len(views) > 8 and sum(map(len, views.values())) > 12
    for name, linked in views.items():
        module, function = name.split(".")
        assert callable(getattr(importlib.import_module(f"orcalab.{module}"), function))
        shown = [path for path in linked if f"{name}(" in "\n".join(code(path))]
        assert shown == linked or name in ("panels.chips", "panels.tokens") and shown, name  # the painters differ in how they paint


# ------------------------------------------------------------------------------------------------- names

def spans(path):
    """What stands in backticks."""
    return [t.content for t in pieces(markdown(path)) if t.type == "code_inline"]


def fenced(path):
    """The lines of a page's blocks of code."""
    return [line for t in pieces(markdown(path)) if t.type == "fence" for line in t.content.splitlines()]


ENDINGS = "py md ipynb yml yaml json jsonl txt toml sh html tsv svg csv".split()
FOREIGN = {"run_example.py", "convert_hf_to_gguf.py", "score.py"}  # FLAN's, llama.cpp's, and the one that an export writes


def missing(text):
    """Yield the names of rooms' contents in a piece of code that are not there."""
    for room, rest in re.findall(rf"(?<![\w./\"'-])({'|'.join(ROOMS)})\.([A-Za-z_][\w.]*)", text):
        if rest.split(".")[-1] in ENDINGS:
            continue
        here = importlib.import_module(f"orcalab.{room}")
        for name in rest.rstrip(".").split("."):
            if not hasattr(here, name):
                yield f"{room}.{rest}"
                break
            here = getattr(here, name)


@pytest.mark.parametrize("path", PROSE, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_name_in_backticks_is_there(path):
    tests = "\n".join(p.read_text(encoding="utf-8") for p in (ROOT / "tests").glob("*.py"))
    for said in spans(path):
        assert list(missing(said)) == [], said
        for name in re.findall(r"(?<![\w/])test_\w+(?!\w|\.)", said):
            assert f"def {name}(" in tests or (ROOT / "tests" / f"{name}.py").exists(), name
        if re.fullmatch(r"[\w./-]+\.(py|md|ipynb|yml|sh|toml)", said) and said not in FOREIGN:
            assert any((ROOT / folder / said).exists() for folder in (".", "orcalab", "notebooks", "azureml", "benchmarks")), said


def test_a_name_that_is_not_there_is_found():
    assert list(missing('`train.train(cfg, corpus.prepar(rec))`, `optim.Optimizer.stat`, `config.json`, `data/packing.fill`')) == ["corpus.prepar", "optim.Optimizer.stat"]


def commands(path):
    """Every `orcalab …`, `papermill …`, `pytest …` and `python …` of a page, as words, from backticks and from blocks."""
    for line in [s for s in spans(path) if " " in s] + fenced(path):
        line = re.sub(r"^\$ |^cd \w+ && ", "", line.strip()).split(" && ")[-1]
        if line.split(" ")[0] in ("orcalab", "papermill", "pytest", "python", "torchrun"):
            yield [w for w in shlex.split(line, comments=True) if w != "…"]


def refused(words):
    """Say what is wrong with a command, "" for nothing: verbs, names of settings, recipes, stages, files, tests, knobs."""
    first, *rest = words
    if first == "torchrun":
        rest = rest[rest.index("orcalab") + 1:]
    if first in ("orcalab", "torchrun") and rest and not rest[0].startswith("-"):
        config.choose(rest[0], cli.VERBS, "verb")
        given = cli.arguments(rest[1:] + ["x"] * (len(rest) > 1 and rest[-1].startswith("--") and rest[-1] != "--status"), rest[0])
        name = given.get("recipe", "laptop")
        rec = recipes.get("laptop" if name.isupper() or name == "x" else name)  # NAME is somebody's own
        if "stage" in given:
            rec.stage(given["stage"])
    elif first == "papermill":
        (source,) = [w for w in rest if re.fullmatch(r"(notebooks/)?\d\d_\w+\.ipynb", w)][:1]
        known = execute.knobs(ROOT / "notebooks" / Path(source).name)
        for flag, name in zip(rest, rest[1:]):
            if flag == "-p":
                config.choose(name, known, f"knob of {source}")
    else:
        files = [w for w in rest if re.fullmatch(r"[\w./]+\.py", w)]
        if gone := [f for f in files if not (ROOT / f).exists()]:
            return f"no {gone[0]}"
        if "-k" in rest and not any(rest[rest.index("-k") + 1] in (ROOT / f).read_text(encoding="utf-8") for f in files):
            return f"no test {rest[rest.index('-k') + 1]}"
    return ""


@pytest.mark.parametrize("path", PROSE, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_command_is_one_that_there_is(path):
    for words in commands(path):
        try:
            assert refused(words) == "", words
        except ValueError as e:
            pytest.fail(f"{' '.join(words)}: {e}")


def test_a_command_that_is_none_is_found():
    for line, word in (("orcalab trian", "train"), ("orcalab train --recipe laptop --stage stage2", "stage2_chatgpt"), ("orcalab plan --nodse 2", "nodes"),
                       ("papermill 06_stage1_flan.ipynb out.ipynb -p stpes 3", "steps"), ("torchrun --nproc_per_node 2 -m orcalab train --recpie laptop", "recipe")):
        with pytest.raises(ValueError, match=f"did you mean '{word}'"):
            refused(line.split())
    assert refused("pytest tests/test_gone.py".split()) == "no tests/test_gone.py" and refused("pytest tests/test_tiny.py -k nothing_like_it".split())
    assert sum(len(list(commands(p))) for p in PROSE) > 40


@each
def test_sections_that_are_named_are_there(path):
    """`section 4` is one of this notebook, or of the one that is linked just before."""
    for cell in book(path)["cells"]:
        for before, words in re.findall(r"(.{0,80})\b(section \d+|sections \d+(?:(?:, | and | to )\d+)*)", cell["source"], re.S):
            linked = re.findall(r"\]\((\d\d_\w+\.ipynb)\)\)?,\s*$", before)
            sections = re.findall(r"^## (\d+) · ", markdown(path.with_name(linked[0]) if linked else path), re.M)
            assert set(re.findall(r"\d+", words)) <= set(sections), (words, before)


@each
def test_a_line_to_change_is_one_of_the_room(path):
    """Exercise 2 names something of a room, and the names in the code that it quotes stand in that room."""
    asked = next(line for line in book(path)["cells"][-1]["source"].splitlines() if line.startswith("2. **Change a line.**"))
    place, *quoted = re.findall(r"`([^`]+)`", re.split(r"\. ", asked.split("** ")[1])[0])
    room = re.match(rf"({'|'.join(ROOMS)})\.", place)[1]
    names = {n for q in quoted for n in re.findall(r"[A-Za-z_]\w*", q)}
    assert names <= set(re.findall(r"\w+", (ROOT / "orcalab" / f"{room}.py").read_text(encoding="utf-8")))
