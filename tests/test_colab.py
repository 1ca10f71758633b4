"""Notebooks on Colab: one set-up cell, the same in all; elsewhere it does nothing, there it installs what lacks and leaves torch and numpy as they are."""

import importlib.util
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
from conftest import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
ADDRESS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"].get("urls", {}).get("Repository", "")  # where the repository can be read by all, once there is such a place


def code_cells(path):
    return [c for c in json.loads(path.read_text(encoding="utf-8"))["cells"] if c["cell_type"] == "code"]


def the_cell():
    return "".join(code_cells(NOTEBOOKS[0])[1]["source"])


@pytest.fixture(scope="module")
def colab():
    """notebooks/colab.py as a module."""
    spec = importlib.util.spec_from_file_location("colab", ROOT / "notebooks" / "colab.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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
    if job.returncode:
        assert "choose Runtime > Restart session, then run all cells again" in job.stderr, job.stderr[-3000:]
        job = run()
    assert job.returncode == 0, job.stderr[-3000:]
    said = "".join("".join(o.get("text", "")) for c in code_cells(tmp_path / "out.ipynb") for o in c["outputs"])
    assert "torch 2.12.1 and numpy 2.4.5 are as they were" in said and "weights learned; the merged model says what the adapter said" in said
    assert state(site) == before
