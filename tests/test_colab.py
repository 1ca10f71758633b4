"""Notebooks on Colab: one set-up cell, the same in all; elsewhere it does nothing, there it installs what lacks and leaves torch and numpy as they are."""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

import pytest
from conftest import ROOT, script

NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
ADDRESS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"].get("urls", {}).get("Repository", "")  # where the repository can be read by all, once there is such a place


def code_cells(path):
    return [c for c in json.loads(path.read_text(encoding="utf-8"))["cells"] if c["cell_type"] == "code"]


def the_cell():
    return "".join(code_cells(NOTEBOOKS[0])[1]["source"])


@pytest.fixture(scope="module")
def colab():
    """notebooks/colab.py as a module."""
    return script("notebooks/colab.py")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_every_notebook_has_the_cell_behind_its_parameters(path):
    parameters, second, *others = code_cells(path)
    assert "parameters" in parameters["metadata"]["tags"] and "".join(second["source"]) == the_cell() and second["id"] == "cell-colab"
    assert not any("colab" in "".join(c["source"]) or re.search(r"^\s*[!%]\s*pip", "".join(c["source"]), re.M) for c in others)  # nothing else installs anything


def test_elsewhere_the_cell_does_nothing(tmp_path):
    code = f"import sys\nbefore = set(sys.modules)\n{the_cell()}\nprint(os.listdir(), sorted({{m.split('.')[0] for m in set(sys.modules) - before}} - set(sys.stdlib_module_names)))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True).stdout
    assert said == "[] []\n"


def test_badges_and_clone_say_the_address_or_are_not_there():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    place = ADDRESS.removeprefix("https://github.com/")
    badges = [f"https://colab.research.google.com/github/{place}/blob/main/notebooks/{p.name}" for p in NOTEBOOKS] if ADDRESS else []
    assert sorted(set(re.findall(r"https://colab\.research\.google\.com/[^)\s]+", readme))) == badges
    assert ("git clone" in the_cell()) == bool(ADDRESS) and ADDRESS in the_cell()


def test_what_will_do_stays_and_what_lacks_comes_as_tested(colab):
    wanted = ["torch>=2.11", "jupyterlab>=4", "transformers>=5.17,<6", "plotly>=7.0", "peft>=0.21", "huggingface_hub>=1"]
    pins = {"torch": "2.13.0", "numpy": "2.4.6", "transformers": "5.23.0", "peft": "0.21.2", "pandas": "3.1.1", "plotly": "7.1.0", "xxhash": "4.1.0", "huggingface-hub": "2.4.0"}
    has = {"torch": "2.9.0+cu126", "numpy": "2.0.2", "pandas": "2.2.2", "transformers": "4.57.1", "plotly": "7.0.1", "huggingface-hub": "1.0.0rc1"}
    need, limits = colab.plan(wanted, pins, has)
    assert need == ["transformers<6,>=5.17", "peft>=0.21", "huggingface_hub>=1"]  # a candidate comes before its release
    assert limits == ["huggingface-hub==2.4.0", "numpy==2.0.2", "peft==0.21.2", "torch==2.9.0+cu126", "transformers==5.23.0", "xxhash==4.1.0"]  # pandas and plotly are pip's to leave alone


def test_where_nothing_lacks_nothing_is_installed(colab):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert colab.plan(project["dependencies"], {}, colab.installed())[0] == []


# ------------------------------------------------------------------------------------------------- in miniature

WHEEL = '''"""Write the wheel of a package of one line; as a build backend, that of the project "small"."""
from pathlib import Path
from zipfile import ZipFile


def wheel(folder, name, version, needs=()):
    info = f"{name}-{version}.dist-info"
    files = {f"{name}.py": f"version = {version!r}", f"{info}/WHEEL": "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n",
             f"{info}/METADATA": "\\n".join(["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}", *(f"Requires-Dist: {n}" for n in needs)]) + "\\n"}
    with ZipFile(Path(folder, f"{name}-{version}-py3-none-any.whl"), "w") as out:
        for path, text in {**files, f"{info}/RECORD": "".join(f"{f},,\\n" for f in files)}.items():
            out.writestr(path, text)
    return f"{name}-{version}-py3-none-any.whl"


def build_editable(folder, settings=None, metadata=None):
    return wheel(folder, "small", "0.1")
'''
SMALL = """[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]

[project]
name = "small"
version = "0.1"
dependencies = [DEPENDENCIES]
"""


@pytest.fixture
def miniature(tmp_path):
    """(python, set_up) of an environment with torch, numpy and toy 1, all of one line, and an index of newer ones; set_up(dependencies) runs colab.py where toy and torch are loaded."""
    (tmp_path / "index").mkdir()
    (tmp_path / "small" / "notebooks").mkdir(parents=True)
    (tmp_path / "small" / "backend.py").write_text(WHEEL)
    shutil.copy(ROOT / "notebooks" / "colab.py", tmp_path / "small" / "notebooks")
    (tmp_path / "small" / "constraints.txt").write_text("torch==2\nnumpy==2\ntoy==2\n")
    make = {}
    exec(WHEEL, make)
    for name, version, *needs in (("torch", "1"), ("numpy", "1"), ("torch", "2"), ("numpy", "2"), ("toy", "1"), ("toy", "2"), ("toy", "3"), ("other", "1"), ("greedy", "1", "numpy>=2")):
        make["wheel"](tmp_path / "index", name, version, needs)
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "env"], check=True)
    python, (site,), env = tmp_path / "env" / "bin" / "python", (tmp_path / "env").glob("lib/python*/site-packages"), {**os.environ, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path / "index")}
    shutil.copytree(Path(sysconfig.get_path("purelib")) / "packaging", site / "packaging")
    subprocess.run([python, "-m", "pip", "install", "-q", "torch==1", "numpy==1", "toy==1"], check=True, env=env)

    def set_up(*dependencies):
        (tmp_path / "small" / "pyproject.toml").write_text(SMALL.replace("DEPENDENCIES", ", ".join(map(repr, dependencies))))
        code = "import runpy, torch, toy\nrunpy.run_path('colab.py', run_name='__main__')"
        return subprocess.run([python, "-c", code], cwd=tmp_path / "small" / "notebooks", env=env, capture_output=True, text=True)

    return python, set_up


def versions(python):
    code = "from importlib.metadata import distributions\nprint({d.metadata['Name']: d.version for d in distributions()})"
    return eval(subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout)


def test_what_lacks_is_installed_and_a_restart_asked_for_only_where_something_loaded_changed(miniature):
    python, set_up = miniature
    job = set_up("torch>=1", "numpy", "other")
    assert job.returncode == 0 and "1 packages were missing, torch 1 and numpy 1 are as they were" in job.stdout, job.stderr
    assert {"torch": "1", "numpy": "1", "toy": "1", "other": "1", "small": "0.1"}.items() <= versions(python).items()
    job = set_up("torch>=1", "toy>=2", "other")
    assert job.returncode and "RuntimeError: toy changed and had been loaded: choose Runtime > Restart session" in job.stderr
    assert {"torch": "1", "numpy": "1", "toy": "2"}.items() <= versions(python).items()  # the tested version, not the newest
    job = set_up("torch>=1", "toy>=2", "other")
    assert job.returncode == 0 and "0 packages were missing" in job.stdout


def test_neither_torch_nor_numpy_is_touched_whoever_asks_for_it(miniature):
    python, set_up = miniature
    job = set_up("torch>=2", "other")
    assert job.returncode == 0 and "torch is 1 here, and the project asks for torch>=2: some of it may not work" in job.stdout
    job = set_up("greedy")  # which needs another numpy
    assert job.returncode and "numpy" in job.stderr and "greedy" not in versions(python)
    assert {"torch": "1", "numpy": "1"}.items() <= versions(python).items()


# ------------------------------------------------------------------------------------------------- as on Colab

def like_torch(site, version):
    """Put the torch of this environment into another, under another version: its files are the real ones, as links, its label is not."""
    ours = Path(sysconfig.get_path("purelib"))
    for name in ("torch", "torchgen", "functorch"):
        if (ours / name).exists():
            shutil.copytree(ours / name, site / name, copy_function=link, ignore=shutil.ignore_patterns("__pycache__"))
    (info,) = ours.glob("torch-*.dist-info")
    shutil.copytree(info, site / f"torch-{version}.dist-info")
    note = site / f"torch-{version}.dist-info" / "METADATA"
    note.write_text(re.sub(r"^Version: .*$", f"Version: {version}", note.read_text(encoding="utf-8"), count=1, flags=re.M), encoding="utf-8")
    record = note.with_name("RECORD")
    record.write_text(record.read_text().replace(f"{info.name}/", f"torch-{version}.dist-info/"))


def link(source, target):
    try:
        os.link(source, target)
    except OSError:  # another disk
        shutil.copy2(source, target)


def state(site):
    """(path, size, time of the last change) of every file of torch and numpy."""
    return sorted((str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in site.rglob("*")
                  if p.is_file() and re.match(r"torch|numpy|functorch", str(p.relative_to(site))) and "__pycache__" not in p.parts)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_a_notebook_runs_from_its_first_cell_to_its_last_and_torch_and_numpy_stay(tmp_path):
    """An environment as Colab's: numpy and torch of other versions than ours, google.colab loaded when the kernel starts, none of our other packages."""
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "env"], check=True)
    python, (site,) = tmp_path / "env" / "bin" / "python", (tmp_path / "env").glob("lib/python*/site-packages")
    job = subprocess.run([python, "-m", "pip", "install", "-q", "ipykernel", "numpy==2.4.5", "packaging", "filelock", "typing-extensions", "sympy", "networkx", "jinja2", "fsspec", "setuptools"],
                         capture_output=True, text=True)
    if job.returncode and re.search("NewConnectionError|name resolution|timed out|ProxyError", job.stdout + job.stderr):
        pytest.skip("the package index cannot be reached")
    assert job.returncode == 0, job.stderr
    like_torch(site, "2.12.1")
    (site / "google" / "colab").mkdir(parents=True)
    (site / "google" / "colab" / "__init__.py").touch()
    (site / "zz_colab.pth").write_text("import google.colab\n")
    (tmp_path / "content").mkdir()
    shutil.copytree(ROOT, tmp_path / "content" / "orcalab", ignore=shutil.ignore_patterns(".git", "runs", "*.egg-info", "__pycache__", ".venv*", "tests", "benchmarks"))
    (tmp_path / "kernels" / "colab").mkdir(parents=True)
    (tmp_path / "kernels" / "colab" / "kernel.json").write_text(json.dumps({"argv": [str(python), "-m", "ipykernel_launcher", "-f", "{connection_file}"], "display_name": "colab", "language": "python"}))
    before, versions = state(site), [python, "-c", "from importlib.metadata import version; import numpy; print(version('torch'), version('numpy'), numpy.__version__)"]
    assert subprocess.run(versions, capture_output=True, text=True, check=True).stdout == "2.12.1 2.4.5 2.4.5\n" and len(before) > 5000
    run = lambda: subprocess.run([sys.executable, "-m", "papermill", ROOT / "notebooks" / "13_small_gpu.ipynb", tmp_path / "out.ipynb", "-k", "colab", "--cwd", tmp_path / "content", "--no-progress-bar", "-p", "recipe", "smoke"],
                                 capture_output=True, text=True, env={**os.environ, "JUPYTER_PATH": str(tmp_path), "OMP_NUM_THREADS": "1"})
    job = run()
    if "choose Runtime > Restart session, then run all cells again" in job.stderr:  # said only where it is so
        job = run()
    assert job.returncode == 0, job.stderr[-3000:]
    said = "".join("".join(o.get("text") or o.get("data", {}).get("text/markdown", "")) for c in code_cells(tmp_path / "out.ipynb") for o in c["outputs"])
    assert "torch 2.12.1 and numpy 2.4.5 are as they were" in said and "weights learned; the merged model says what the adapter said" in said
    assert state(site) == before
