"""The law of the corridor, one door for each heavy guest, clean notebooks, and set-up files that agree."""

import ast
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from conftest import ROOT, script
from packaging.requirements import Requirement
from packaging.version import Version

ROOMS = {p.stem: p for p in sorted((ROOT / "orcalab").glob("*.py"))}
tidy = script("notebooks/tidy.py")  # the one that says what a clean notebook is
NOTEBOOKS = tidy.notebooks()


def law():
    """Which of our rooms a room may import, from the table in CONTRIBUTING.md: {room: {rooms}}."""
    rows = re.findall(r"^\| ([\w, ]+) \| ([\w, ]+) \|$", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.M)
    return {"__init__": set()} | {room: set() if may == "nothing of ours" else set(may.split(", "))
                                  for names, may in rows if may != "may import" for room in names.split(", ")}


GUESTS = {
    "torch": {"model", "train", "generate", "attention", "loss", "optim", "checkpoint", "adapter", "forecast", "watch", "preflight", "ranks", "long"}, "transformers": {"model", "adapter", "attention"},
    "tokenizers": {"model"}, "sentencepiece": set(), "peft": {"adapter"}, "bitsandbytes": {"adapter", "optim"}, "tensorboard": {"watch"}, "wandb": {"watch"}, "trackio": {"watch"},
    "safetensors": {"model", "checkpoint", "adapter"}, "datasets": {"sources"}, "pyarrow": {"sources", "prepared", "tasks"}, "rensa": {"hygiene"}, "openai": {"endpoint"}, "plotly": {"show", "report"}, "ipywidgets": {"panels"}, "azure": {"safety"}, "mlflow": {"serve", "watch"},
    "papermill": {"execute"}, "lm_eval": {"harness"}, "sacrebleu": {"judge"}, "rouge_score": {"judge"}, "math_verify": {"parser"}, "scipy": set(), "statsmodels": set(), "reasoning_gym": {"procedural", "evaluate"}, "filelock": {"ledger", "sweep"}, "tqdm": {"progress"}, "pandas": set(), "fsspec": {"sources"}, "huggingface_hub": {"sources", "tasks"},
}


def imports(path):
    """Every module that a file imports, also inside functions: {"orcalab.config", "torch", ...}."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} has a relative import"
            found |= {f"orcalab.{a.name}" for a in node.names} if node.module == "orcalab" else {node.module}
    return found


def lint(tmp_path, rules):
    """What import-linter says of each rule: an import that the table does not allow, also inside a function, breaks it."""
    lines = ["[importlinter]", "root_package = orcalab"]
    for room, may in rules.items():
        banned = sorted(f"orcalab.{r}" for r in set(ROOMS) - may - {room, "__init__"})
        lines += [f"[importlinter:contract:{room}]", f"name = {room}", "type = forbidden", f"source_modules = orcalab.{room}",
                  "allow_indirect_imports = True", "forbidden_modules =", *(f"    {b}" for b in banned)]
    (tmp_path / "law.ini").write_text("\n".join(lines))
    return subprocess.run([Path(sys.executable).with_name("lint-imports"), "--config", tmp_path / "law.ini", "--no-cache"],
                          capture_output=True, text=True, cwd=ROOT)


def test_the_law_of_the_corridor(tmp_path):
    rules = {room: may for room, may in law().items() if room not in ("__main__", "__init__")}
    job = lint(tmp_path, rules)
    assert job.returncode == 0 and f"{len(rules)} kept, 0 broken" in job.stdout, job.stdout + job.stderr
    tighter = lint(tmp_path, {**rules, "model": rules["model"] - {"chatml"}})
    assert tighter.returncode == 1 and "1 broken" in tighter.stdout and "orcalab.model is not allowed to import orcalab.chatml" in tighter.stdout


def test_the_law_itself_keeps_the_house_in_order():
    rules = law()
    assert set(rules) >= set(ROOMS) - {"__main__"}
    assert all("recipes" not in may and ("show" not in may or room == "report") for room, may in rules.items())  # for the corridor, and what it reports
    order = []
    while len(order) < len(rules):  # no two rooms need each other, not even in a round
        free = [r for r, may in rules.items() if r not in order and may <= set(order)]
        assert free, f"a circle among {sorted(set(rules) - set(order))}"
        order += free


@pytest.mark.parametrize("room", list(ROOMS))
def test_heavy_guests_come_in_by_their_own_door(room):
    guests = {m.split(".")[0] for m in imports(ROOMS[room])}
    assert {g for g in guests if room not in GUESTS.get(g, {room})} == set()


def test_the_check_itself_finds_what_is_hidden(tmp_path):
    hidden = tmp_path / "x.py"
    hidden.write_text("import a.b\ndef f():\n    from orcalab.model import save\n    from orcalab import data as d, show\n    import torch.nn as nn\n")
    assert imports(hidden) == {"a.b", "orcalab.model", "orcalab.data", "orcalab.show", "torch.nn"}


def test_light_rooms_load_no_heavy_guest():
    code = ("import sys\nfrom orcalab import chatml, config, packing, progress, recipes, strategies, __main__\n"
            "print(sorted({m.split('.')[0] for m in sys.modules} & set(sys.argv[1:])))")
    job = subprocess.run([sys.executable, "-c", code, *GUESTS], capture_output=True, text=True, cwd=ROOT, check=True)
    assert job.stdout == "[]\n"


def test_rooms_of_text_and_numbers_load_no_torch():
    code = ("import sys\nfrom orcalab import data, exam\n"
            "print(sorted({m.split('.')[0] for m in sys.modules} & {'torch', 'transformers', 'plotly', 'datasets', 'pyarrow', 'reasoning_gym', 'rensa', 'lm_eval', 'math_verify', 'sacrebleu'}))")
    job = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert job.stdout == "[]\n"


def test_the_map_of_the_package_names_every_room():
    import orcalab
    assert set(re.findall(r"\w+", re.sub(r"- [\w ]+:", "", orcalab.__doc__.split("\n\n")[1]))) >= {p.stem for p in (ROOT / "orcalab").glob("*.py")} - {"__init__"}


def test_the_package_stays_small():
    lines = {room: len(path.read_text(encoding="utf-8").splitlines()) for room, path in ROOMS.items()}
    assert sum(lines.values()) < 10800 and max(lines.values()) <= 350


def test_nothing_in_the_package_names_a_machine():
    for path in [*ROOMS.values(), *NOTEBOOKS]:
        assert not re.search(r"/(work|root|tmp)/|/home/\w", path.read_text(encoding="utf-8")), path.name


# ---------------------------------------------------------------------------------------------- notebooks

@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_s_cells_have_ids(path):
    book = json.loads(path.read_text(encoding="utf-8"))
    assert (book["nbformat"], book["nbformat_minor"] >= 5) == (4, True)
    ids = [c["id"] for c in book["cells"]]
    assert len(set(ids)) == len(ids) and all(re.fullmatch(r"[\w-]{1,64}", i) for i in ids)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_every_knob_is_one_line_with_help(path):
    names = [k["name"] for k in tidy.knobs(path)]  # raises for a line that is not
    assert names[:3] == ["recipe", "seed", "out"] and len(names) <= 6
    source = "\n".join(c["source"] for c in json.loads(path.read_text(encoding="utf-8"))["cells"] if c["cell_type"] == "code")
    (known,) = re.findall(r"config\.parameters\(globals\(\), (\[.*?\])\)", source, re.S)
    assert ast.literal_eval(known) == names  # the cell after refuses what is not in the list


def test_the_notebooks_are_those_of_the_map():
    assert [p.stem for p in NOTEBOOKS] == [
        "00_tour", "01_tokenization", "02_chatml_and_masks", "03_data", "04_packing", "05_teacher", "06_stage1_flan", "07_stage2_chatgpt",
        "08_stage3_gpt4", "09_inference", "10_strategies", "11_evaluation", "12_long_context", "13_small_gpu", "14_scale_out"]


# ------------------------------------------------------------------------------------------- set-up files

def pins():
    lines = [x.split("#")[0].strip() for x in (ROOT / "constraints.txt").read_text().splitlines()]
    assert all(re.fullmatch(r"[\w.\-]+==[\w.]+", x) for x in lines if x)
    return {canonical(n): Version(v) for n, v in (x.split("==") for x in lines if x)}


def canonical(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_every_range_holds_the_pinned_version():
    pinned, extras = pins(), project()["optional-dependencies"]
    for text in [*project()["dependencies"], *extras["test"], *extras["bench"]]:
        wanted = Requirement(text)
        if canonical(wanted.name) == "pip":
            continue  # the installer itself is nobody's to pin
        assert canonical(wanted.name) in pinned, f"{wanted.name} has no line in constraints.txt"
        assert pinned[canonical(wanted.name)] in wanted.specifier, f"{text} does not allow {pinned[canonical(wanted.name)]}"


def test_the_pins_agree_with_each_other():
    from importlib.metadata import PackageNotFoundError, requires
    pinned = pins()
    for name in pinned:
        try:
            needs = requires(name) or []
        except PackageNotFoundError:
            continue
        for need in map(Requirement, needs):
            if canonical(need.name) in pinned and (need.marker is None or need.marker.evaluate({"extra": ""})):
                assert need.specifier.contains(pinned[canonical(need.name)], prereleases=True), f"{name} needs {need}"


def test_the_core_is_as_the_issue_has_it():
    core = {canonical(Requirement(t).name) for t in project()["dependencies"]}
    assert core >= {"jupyterlab", "torch", "transformers", "peft", "bitsandbytes", "datasets", "ipywidgets", "plotly", "papermill", "reasoning-gym"}
    assert set(project()["optional-dependencies"]) == {"test", "bench", "track", "azure", "serve", "eval"}
    assert project()["scripts"] == {"orcalab": "orcalab.__main__:main"} and str(pins()["torch"]) == "2.13.0"


def test_conda_installs_the_same_package_with_the_same_constraints():
    lines = [x.strip() for x in (ROOT / "environment.yml").read_text().splitlines() if not x.startswith("#")]
    assert lines[lines.index("- pip:") + 1:] == ["- -c constraints.txt", "- -e ."]
    (python,) = [x.removeprefix("- python=") for x in lines if x.startswith("- python")]
    assert Requirement(f"x{project()['requires-python']}").specifier.contains(python) and "- pip" in lines


def test_the_version_is_said_once():
    import orcalab
    assert project()["version"] == orcalab.__version__
