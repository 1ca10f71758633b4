"""Keeps the sources of the notebooks clean, and writes what is made from others: times and memory at their heads, and README.md.

    python notebooks/tidy.py            # makes clean what is not, and says what it changed
    python notebooks/tidy.py --check    # changes nothing; ends with status 1 if anything would change

Questions come from the map in the project's README, knobs from the notebooks, times from benchmarks/notebooks.json (`python benchmarks/laptop.py smoke 0`).
"""

import ast
import json
import re
import sys
from collections import Counter
from dataclasses import fields
from pathlib import Path

import nbformat
from papermill import inspect_notebook

from orcalab import config, execute, recipes
from orcalab.progress import clock

HERE = Path(__file__).resolve().parent
ABOUT, MAP, RECORD = HERE / "README.md", HERE.parent / "README.md", HERE.parent / "benchmarks" / "notebooks.json"
MADE_WITH = ("smoke", "laptop")  # recipes whose times and values are shown
KEPT = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}, "language_info": {"name": "python"}}
HEAD = re.compile(r"^(\| reads \| writes \| `smoke` \| `laptop` \|\n\|---\|---\|---\|---\|\n\| .*? \| .*?) \| [^|\n]* \| [^|\n]* \|$", re.M)


def notebooks():
    """Return the paths of the notebooks, in order."""
    return sorted(HERE.glob("[0-9][0-9]_*.ipynb"))


def clean(book):
    """Take from a notebook what running or editing it left behind; ids, tags and attachments stay.

    Args:    book: a notebook as JSON has it.
    Returns: (a clean one, Counter of what was taken away).
    """
    taken, cells = Counter({"metadata of the notebook": int(book["metadata"] != KEPT)}), []
    for cell in book["cells"]:
        tags = {k: v for k, v in cell["metadata"].items() if k == "tags" and v}
        code = {"outputs": [], "execution_count": None} if cell["cell_type"] == "code" else {}
        taken.update({"outputs": len(cell.get("outputs", ())), "execution counts": int(cell.get("execution_count") is not None),
                      "metadata of cells": int(cell["metadata"] != tags)})
        cells.append({**cell, **code, "metadata": tags, "source": "".join(cell["source"])})
    return {**book, "metadata": KEPT, "cells": cells}, +taken


def layout(book):
    """Return a notebook's text: one blank a level, names in order, letters as they are, each cell's source in one string."""
    return json.dumps(book, indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def knobs(path):
    """Return a notebook's knobs as papermill shows them: [{name, default, help}].

    Raises:  ValueError: a line of its cell is not `name = literal  # help` with one equals sign, which papermill would pass over.
    """
    shown = list(inspect_notebook(path).values())
    for name in set(execute.knobs(path)) ^ {k["name"] for k in shown} | {k["name"] for k in shown if len(k["help"]) < 8}:
        raise ValueError(f"{path.name}: the line of {name!r} is not `name = literal  # help`, with one equals sign")
    for k in shown:
        ast.literal_eval(k["default"])
    return shown


def keeps(path, name, recipe):
    """Return what a knob keeps of a recipe where it is None: its own value, of the notebook's stage if it has one; "" where that is no plain setting."""
    rec = recipes.get(recipe)
    stage = next((s for s in rec.stages if s.name in path.stem), None)
    of = next((c for c in (rec, stage) if c and name in {f.name for f in fields(c)} - {"out"}), None)
    return f"`{getattr(of, name)}`" if of else ""


def measured(stem, recipe):
    """Return a notebook's time and peak memory as they were recorded, such as 1:24, 2.3 GiB."""
    found = config.read_json(RECORD).get(recipe, {}).get("notebooks", {}).get(stem)
    if not found:
        return "not measured"
    time = clock(found["seconds"]) if found["seconds"] >= 60 else f"{found['seconds']:.0f} s"
    return f"{time}, {found['gib']:.1f} GiB" if found["gib"] else time


def headed(path, book):
    """Return a notebook with its times and memory in the table of its first cell, from the record."""
    first, *others = book["cells"]
    if len(HEAD.findall(first["source"])) != 1:
        raise ValueError(f"{path.name}: its first cell has no table | reads | writes | `smoke` | `laptop` | with one row")
    said = HEAD.sub(lambda m: " | ".join([m[1], *(measured(path.stem, r) for r in MADE_WITH)]) + " |", first["source"])
    return {**book, "cells": [{**first, "source": said}, *others]}


def question(path):
    """Return the question that a notebook answers, from the map in the project's README."""
    found = re.findall(rf"^\| \[(.*?)\]\(notebooks/{path.name}\) \| (.*?) \|$", MAP.read_text(encoding="utf-8"), re.M)
    if len(found) != 1:
        raise ValueError(f"{path.name} needs one line in the map of {MAP.name}, and has {len(found)}")
    return found[0]


def table(head, rows):
    return "\n".join(["| " + " | ".join(head) + " |", "|" + "---|" * len(head), *("| " + " | ".join(r) + " |" for r in rows)])


def all_knobs():
    """Return the table of all knobs, those that are the same in several notebooks in one row: [[name, in, default, smoke, laptop, help]]."""
    where = {}
    for path in notebooks():
        for k in knobs(path):
            kept = [keeps(path, k["name"], r) if k["default"] == "None" else "" for r in MADE_WITH]
            row = (f"`{k['name']}`", f"`{k['default']}`", *kept, re.sub(r"([|<])", r"\\\1", k["help"]))
            where.setdefault(row, []).append(path.stem[:2])
    every = [p.stem[:2] for p in notebooks()]
    told = lambda had: "all" if had == every else ", ".join(had) if 2 * len(had) < len(every) else f"all but {', '.join(sorted({*every} - {*had}))}"
    return [[name, told(had), *others] for (name, *others), had in where.items()]


def about():
    """Return README.md of the notebooks: the list with questions, times and memory, and the table of all knobs."""
    record = config.read_json(RECORD)
    runs = "; ".join(f"`{r}`, seed {record[r]['seed']}, on {record[r]['cores']} cores" + (f" ({record[r]['note']})" if record[r].get("note") else "") for r in MADE_WITH)
    rows = [[f"[{title}]({path.name})", asks, *(measured(path.stem, r) for r in MADE_WITH)] for path in notebooks() for title, asks in [question(path)]]
    return f"""# The notebooks

Written by `python notebooks/tidy.py`. In a clone of this repository, after `pip install -c constraints.txt -e .`:

```
jupyter lab notebooks/00_tour.ipynb
orcalab run --recipe smoke
papermill --help-notebook notebooks/06_stage1_flan.ipynb
papermill notebooks/06_stage1_flan.ipynb executed.ipynb -p recipe smoke -p steps 2
```

{table(["notebook", "question", *(f"`{r}`" for r in MADE_WITH)], rows)}

Time (seconds, or minutes and seconds) and peak memory of each notebook's processes, from one `orcalab run` of each recipe:
{runs}. A second time is shorter: what was trained or asked is not done again.

## All knobs

Each notebook's second cell has its parameters, one a line. Change them there, or by papermill's `-p NAME VALUE`; `orcalab run` takes those that the notebooks of all stages have, as
`--lr 1e-4`. A name that a notebook does not have is refused. Where `smoke` and `laptop` have a value here, `None` keeps that one.

{table(["knob", "notebooks", "default", *(f"`{r}`" for r in MADE_WITH), "what it is"], all_knobs())}
"""


def tidy(check=False):
    """Make every notebook clean, and write heads and README.md; return [what was changed, or with `check` would be]."""
    said = []
    for path in [*notebooks(), ABOUT]:
        before, why = path.read_text(encoding="utf-8") if path.exists() else "", "made anew"
        if path == ABOUT:
            after = about()
        else:
            book, taken = clean(json.loads(before))
            made = headed(path, book)
            nbformat.validate(made)
            why = ", ".join([f"{n} {what}" for what, n in taken.items()] + ["times and memory at its head"] * (made != book)) or "layout"
            after = layout(made)
        if after != before:
            said.append(f"{path.name}: {why}")
            if not check:
                path.write_text(after, encoding="utf-8")
    return said


def main(*words):
    if set(words) - {"--check"}:
        raise SystemExit(f"either no word or --check, got {' '.join(words)}")
    said = tidy("--check" in words)
    print("\n".join(said) if said else "nothing to change")
    if "--check" in words and said:
        raise SystemExit("python notebooks/tidy.py would change these")


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except ValueError as e:
        raise SystemExit(f"tidy: {e}")
