"""What the README says is so: its numbers come from the recorded run, its map is that of the folders, its commands exist."""

import re
import shlex
import subprocess

import pytest
from conftest import ROOT, script

from orcalab import __main__ as cli, config, fetch, recipes

README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def laptop():
    """benchmarks/laptop.py as a module."""
    return script("benchmarks/laptop.py")


def test_the_recorded_run_is_told_as_it_was(laptop):
    runs = config.read_json(laptop.RECORD)
    assert laptop.put(README, runs) == README
    assert laptop.figure(runs) == laptop.FIGURE.read_text(encoding="utf-8")


def test_the_recorded_run_is_of_this_recipe_and_holds_what_is_claimed(laptop):
    recipe, runs = recipes.laptop(), config.read_json(laptop.RECORD)
    assert len(runs) >= 2 and len({r["seed"] for r in runs}) == len(runs)
    assert all(r["minutes"] <= 25 or r["beside_other_work"] for r in runs)
    for r in runs:
        assert [(s["name"], s["steps"]) for s in r["stages"]] == [(s.name, s.steps) for s in recipe.stages]
        assert set(r["difference"]["by_task"]) == {t.name for t in recipe.tasks} and r["scores"][0]["questions"] == 50 * len(recipe.tasks)
        assert r["recipe"] == laptop.recipe_digest(), "the recipe has changed since: record it again (benchmarks/laptop.py)"
        assert r["difference"]["macro"] >= 0.15 and r["difference"]["low"] > 0 and r["over_base"]["macro"] > r["difference"]["macro"]
        assert r["peak_gib"] < 8
        score = {s["student"]: s for s in r["scores"]}
        for t, d in r["difference"]["by_task"].items():
            assert d == pytest.approx(score["stage3_gpt4"]["by_task"][t] - score["answer_only"]["by_task"][t])


def test_as_many_families_as_are_told():
    from orcalab import families
    assert README.count(f"{len(families.FAMILIES)} families of tasks") == 1


def test_what_is_fetched_has_the_size_that_is_told():
    for _, _, size in (fetch.SMOLLM2, fetch.MISTRAL):
        assert f"({size / 1e6:.0f} MB)" in README


def test_the_two_commands_stand_on_lines_of_their_own():
    assert re.findall(r"^(pip install -c .*)$", README, re.M) == [
        'pip install -c constraints.txt -e . && orcalab run', 'pip install -c constraints.txt -e ".[test]" && pytest']


def test_the_readmes_python_runs(student, tmp_path, capsys):
    (code,) = re.findall(r"```python\n(from orcalab.generate import .*?)```", README, re.S)
    code = code.replace('"runs/laptop-0/stage3_gpt4/model"', repr(student.origin["from"])).replace("range(100)", "range(3)")
    said = {}
    exec(code, said)
    assert len(said["chat"].messages) == 5 and len(said["several"]) == 3 and said["student"].ask("What is 12 + 30?", "step-by-step").text in capsys.readouterr().out


def test_every_command_of_the_readme_is_one_that_the_package_knows():
    found = [shlex.split(line, comments=True) for line in re.findall(r"^(?:\$ )?(orcalab \w+.*)$", README, re.M)]
    assert len(found) >= 4
    for words in found:
        given = cli.arguments(words[2:], words[1])  # raises for a parameter that does not exist
        assert words[1] in cli.VERBS and given.get("recipe", "laptop") in recipes.RECIPES


def planned(words, device):
    """Peak and hours of a recipe's stages on a device, as the README writes them."""
    from orcalab import forecast
    stages = recipes.get(**cli.arguments(words.split(), "train")).stages
    told = [forecast.forecast(s, forecast.shape_of(s.base), device=device, rows=round(recipes.EXPECTED[s.rows] * s.scale)) for s in stages]
    return f"{max(t['peak_gib'] for t in told):.1f}", f"{sum(t['hours'] for t in told):,.0f}"


def test_the_planned_peaks_and_hours_are_those_of_the_forecast():
    rows = re.findall(r"^\| `(--recipe [^`]+)` \| .* \| ([\w-]+) \| ([\d.?]+) GiB \| ([\d,?]+) h \| not measured \|$", README, re.M)
    assert len(rows) == 4 and [r[2:] for r in rows] == [planned(*r[:2]) for r in rows]


def test_the_map_names_every_notebook_and_every_room():
    assert set(re.findall(r"notebooks/(\w+\.ipynb)", README)) == {p.name for p in (ROOT / "notebooks").glob("*.ipynb")}
    assert {f"`{p.stem}`" for p in (ROOT / "orcalab").glob("[a-z]*.py")} <= set(re.findall(r"`\w+`", README))


def test_ci_runs_the_readmes_test_command():
    pattern = re.search(r"command=\$\(sed -n '(.*)' README\.md\)", (ROOT / ".ci" / "run").read_text())[1]
    said = subprocess.run(["sed", "-n", pattern, str(ROOT / "README.md")], capture_output=True, text=True, check=True).stdout
    assert said == 'pip install -c constraints.txt -e ".[test]" && pytest\n'


# ------------------------------------------------------------------------------------------------- the ablation

def test_the_log_tells_the_recorded_ablation_as_it_was():
    from orcalab import evaluate, scores
    ablation = script("benchmarks/ablation.py")
    made, log = config.read_json(ablation.RECORD), (ROOT / "LOG.md").read_text(encoding="utf-8")
    records, recipe = evaluate.unpack_records(made["records"]), recipes.get("ablation")
    assert len(made["runs"]) == 3 and made["questions"] == recipe.questions and made["tasks"] == [t.name for t in recipe.tasks]
    assert set(records) == {(s, m) for s, said in recipe.students.items() for m in said}
    assert all(len(r) == 3 * recipe.questions * len(recipe.tasks) for r in records.values())
    for run in made["runs"]:
        assert {n: s["steps"] for n, s in run["stages"].items()} == {s.name: s.steps for s in recipe.stages}
    for arm in ablation.ARMS:
        scored = [scores.score(records[arm, m]) for m in ablation.MESSAGES]
        assert " | ".join(f"{100 * s['macro']:.1f} % [{100 * s['low']:.0f}, {100 * s['high']:.0f}]" for s in scored) in log
    for _, a, b in ablation.CONTRASTS:
        found, *seeds = ablation.contrast(records, a, b)
        assert f"| {found} | {', '.join(seeds)} |" in log


# ------------------------------------------------------------------------------------------------- the benchmarks

def test_the_block_on_benchmarks_is_what_was_recorded():
    bench = script("benchmarks/exam.py")
    made = config.read_json(bench.RECORD)
    assert README.count(bench.block(made)) == 1 and bench.put(README, made) == README
    assert {(s["student"], s["system"]) for s in made["scores"]} == {(n, m) for n in ("base", "stage3_gpt4") for m in ("empty", "cautious")}
    assert all(s["questions"] == 50 * len(s["by_task"]) == 500 for s in made["scores"])


def test_the_plan_for_the_papers_size_is_what_the_command_prints(capsys):
    words, block = re.search(r"<!-- plan: orcalab (.*?) -->\n```\n(.*?)\n```", README, re.S).groups()
    assert cli.main(words.split()) == 0
    printed = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert block.splitlines() == printed[printed.index(block.splitlines()[0]):][:len(block.splitlines())] and "the paper's" in block
