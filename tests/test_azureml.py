"""azureml/: every YAML passes the schema of Azure's own SDK, offline; every job's command runs here as it is written, on the smoke recipe."""

import copy
import json
import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import yaml
from conftest import ROOT

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # marshmallow's, by the hundred, while the SDK is imported
    from azure.ai.ml import load_compute, load_environment, load_job, load_online_deployment, load_online_endpoint
    from azure.ai.ml._utils._asset_utils import get_ignore_file, get_upload_files_from_folder

FOLDER = ROOT / "azureml"
LOAD = {"environment": load_environment, "cluster": load_compute, "instance": load_compute, "train": load_job, "torchrun": load_job, "sweep": load_job, "pipeline": load_job,
        "endpoint": load_online_endpoint, "deployment": load_online_deployment}
SCHEMA = {"environment": "environment", "cluster": "amlCompute", "instance": "computeInstance", "train": "commandJob", "torchrun": "commandJob", "sweep": "sweepJob",
          "pipeline": "pipelineJob", "endpoint": "managedOnlineEndpoint", "deployment": "managedOnlineDeployment"}
JOBS = [n for n, load in LOAD.items() if load is load_job]
PLACE = re.compile(r"\$\{\{([\w.]+)\}\}")


@pytest.fixture(autouse=True)
def quiet():
    """The SDK says of half its classes that they are experimental."""
    logging.disable(logging.WARNING)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="marshmallow|azure")
        yield
    logging.disable(logging.NOTSET)


def read(name):
    return yaml.safe_load((FOLDER / f"{name}.yml").read_text(encoding="utf-8"))


def load(name, path):
    """Load a YAML with the SDK; a pipeline is validated when it is sent, so that is done here too."""
    made = LOAD[name](path)
    if name == "pipeline":
        assert made._validate().error_messages == {}
    return made


def commands(name):
    """The command jobs that a job's YAML holds, {name: job}; what a job does not say itself, the job around it does."""
    top = read(name)
    return top["jobs"] if name == "pipeline" else {name: {**top["trial"], "inputs": top["inputs"], "outputs": top["outputs"]} if name == "sweep" else top}


# ------------------------------------------------------------------------------------------------- the schema

def test_every_yaml_is_looked_at():
    assert {p.stem for p in FOLDER.glob("*.yml")} == {*LOAD, "serving"}  # serving.yml is conda's


@pytest.mark.parametrize("name", list(LOAD))
def test_a_yaml_loads_without_error(name):
    assert read(name)["$schema"].endswith(f"/{SCHEMA[name]}.schema.json")
    assert load(name, FOLDER / f"{name}.yml") is not None


def keys(value, path=()):
    for k, v in value.items() if isinstance(value, dict) else ():
        yield (*path, k)
        yield from keys(v, (*path, k))


@pytest.mark.parametrize("name", list(LOAD))
def test_every_misspelt_key_is_refused(name, tmp_path):
    whole, taken = read(name), []
    for path in keys(whole):
        if path[:2] in (("jobs", "stage1"), ("jobs", "stage3")):
            continue  # as stage2; a pipeline takes the SDK a while
        wrong = copy.deepcopy(whole)
        at = wrong
        for k in path[:-1]:
            at = at[k]
        at[path[-1] + "x"] = at.pop(path[-1])
        (tmp_path / "x.yml").write_text(yaml.safe_dump(wrong))
        try:
            load(name, tmp_path / "x.yml")
            taken.append(path)
        except Exception:
            continue
    assert [p for p in taken if p[-2] not in ("inputs", "outputs", "search_space", "jobs")] == []  # there names are ours to choose


@pytest.mark.parametrize("name", JOBS)
def test_what_a_command_is_given_is_there(name):
    top = read(name)
    for job in commands(name).values():
        given = {f"{kind}.{n}" for kind in ("inputs", "outputs") for n in job[kind]} | {f"search_space.{n}" for n in top.get("search_space", ())}
        assert set(PLACE.findall(job["command"])) == given
        assert ("--track mlflow" in job["command"]) == (" train " in job["command"])
        for path in PLACE.findall(json.dumps([job["inputs"], job["outputs"]])):
            at = top
            for k in path.removeprefix("parent.").split("."):
                at = at[k]  # a name that nothing has is a KeyError


# ------------------------------------------------------------------------------------------------- what is named

def sent(folder):
    """The files of a folder that Azure's SDK would upload, as paths relative to it."""
    return {str(Path(p).relative_to(folder)) for p, _ in get_upload_files_from_folder(folder, ignore_file=get_ignore_file(folder))}


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """A copy of what a job is sent, and nothing else."""
    folder = tmp_path_factory.mktemp("sent") / "repository"
    for name in sent(ROOT):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, folder / name)
    return folder


def test_what_is_sent_is_the_project_and_no_more(tmp_path):
    lines = lambda name: {x for x in (ROOT / name).read_text().splitlines() if x and not x.startswith("#")}
    assert lines(".gitignore") < lines(".amlignore")  # which is read in its place
    for name in ("pyproject.toml", "orcalab/train.py", "orcalab/__pycache__/x.pyc", ".git/config", "runs/x/model.bin", "tests/test_x.py", "azureml/train.yml", ".venv-ci/x"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    shutil.copy(ROOT / ".amlignore", tmp_path)
    assert sent(tmp_path) == {".amlignore", "pyproject.toml", "orcalab/train.py", "azureml/train.yml"}
    records = {name for path in (ROOT / "notebooks").glob("*.ipynb") for name in re.findall(r"benchmarks\W+(\w+\.json)", path.read_text())}  # that notebooks read
    assert {"ablation.json", "long.json"} <= records <= {name.removeprefix("benchmarks/") for name in sent(ROOT)}


def test_every_path_that_a_yaml_names_is_there(repository):
    for name in JOBS:
        assert all((FOLDER / job["code"]).resolve() == ROOT and job["environment"] == "azureml:orcalab@latest" for job in commands(name).values())
    build = read("environment")["build"]
    assert (FOLDER / build["path"]).resolve() == ROOT and read("environment")["name"] == "orcalab"
    docker = (repository / build["dockerfile_path"]).read_text()
    copied = [w for line in re.findall(r"^COPY (.*)$", docker, re.M) for w in line.split()[:-1]]
    assert copied and all((repository / w).exists() for w in copied) and set(re.findall(r"-f (\S+)", docker)) <= set(copied)
    assert set(re.findall(r"^ +- -[ce] (\S+)", (ROOT / "environment.yml").read_text(), re.M)) <= {*copied, "."}
    assert re.search(r"mlflow-skinny==([\d.]+)", docker)[0] in (ROOT / "constraints.txt").read_text().splitlines()
    assert read("deployment")["environment"]["image"] == re.search(r"^FROM (\S+)$", docker, re.M)[1]
    script = read("instance")["setup_scripts"]["creation_script"]["path"]
    assert re.fullmatch(r"Users/YOU/orcalab/(azureml/setup\.sh)", script) and os.access(FOLDER / "setup.sh", os.X_OK)


def test_the_readme_makes_what_the_jobs_ask_for():
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    files = re.findall(r"az ml [\w -]+ -f azureml/(\w+)\.yml", text)
    assert set(files) == set(LOAD)
    asked = {x for n in JOBS for x in re.findall(r"azureml:([\w-]+)", (FOLDER / f"{n}.yml").read_text())}
    made = {read(n)["name"] for n in ("environment", "cluster")} | set(re.findall(r"--name ([a-z][\w-]+)", text)) - {"orca"}
    assert asked == made and read("deployment")["endpoint_name"] == read("endpoint")["name"]
    for n in files:  # each file begins with its own command, too
        assert (FOLDER / f"{n}.yml").read_text().splitlines()[0].startswith("# az ml ") and f"-f azureml/{n}.yml" in (FOLDER / f"{n}.yml").read_text().splitlines()[0]


# ------------------------------------------------------------------------------------------------- the commands

@pytest.fixture(scope="module")
def assets(tmp_path_factory):
    """The data assets: a base model and an empty folder of corpora; the smoke recipe makes its own rows."""
    from orcalab import model
    here = tmp_path_factory.mktemp("assets")
    model.save(here / "base", *model.tiny_random())
    (here / "corpora").mkdir()
    return here


class Azure:
    """Does on this machine what AzureML does with a job: puts its code and inputs into fresh folders, fills the command, runs it in bash."""

    def __init__(self, here, repository, assets):
        self.here, self.repository, self.assets = here, repository, assets

    def start(self, name, job, given, number=0, **environ):
        """Start a command job; `given` has values for inputs, outputs and search_space that are none of the assets."""
        wd = self.here / f"{name}-{number}"
        shutil.copytree(self.repository, wd / "code")
        for n, value in job["inputs"].items():
            key = f"inputs.{n}"
            if key not in given:
                given[key] = shutil.copytree(self.assets / n, wd / f"INPUT_{n}") if (self.assets / n).exists() else value
        for n in job["outputs"]:
            given.setdefault(f"outputs.{n}", wd / f"OUTPUT_{n}").mkdir(exist_ok=True)
        line = PLACE.sub(lambda m: str(given[m[1]]), job["command"])
        assert "${{" not in line
        env = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "HOME": str(wd), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "ORCALAB_CACHE": os.environ["ORCALAB_CACHE"],
               "MLFLOW_TRACKING_URI": f"file:{self.here}/mlruns", "MLFLOW_ALLOW_FILE_STORE": "true", **environ}
        return subprocess.Popen(["bash", "-c", line], cwd=wd / "code", env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True), given

    def end(self, job):
        """Wait for a job; one that fails or hangs leaves no process behind."""
        try:
            said = job.communicate(timeout=500)[0]
            assert job.returncode == 0, said[-3000:]
        finally:
            if job.poll() is None:
                os.killpg(job.pid, signal.SIGTERM)  # torchrun then ends its processes
                job.wait(60)

    def run(self, name, job, given, **environ):
        """Run a command job; return where its outputs lie."""
        job, given = self.start(name, job, given, **environ)
        self.end(job)
        return {n.removeprefix("outputs."): path for n, path in given.items() if n.startswith("outputs.")}

    def mlflow_run(self):
        """Make a job's own run, whose number AzureML gives to the command as MLFLOW_RUN_ID."""
        from mlflow import MlflowClient
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
            return MlflowClient(f"file:{self.here}/mlruns").create_run("0").info.run_id

    def metrics(self, name, run="*"):
        """All values of a metric that MLflow was sent, by run: [[(step, value), ...], ...]."""
        files = sorted(self.here.glob(f"mlruns/*/{run}/metrics/{name}"))
        return [[(int(x.split()[2]), float(x.split()[1])) for x in f.read_text().splitlines()] for f in files]


@pytest.fixture
def azure(tmp_path, repository, assets):
    return Azure(tmp_path, repository, assets)


def steps(folder, stage):
    return [json.loads(x) for x in (folder / stage / "metrics.jsonl").read_text().splitlines()]


def test_the_job_for_one_node_runs_as_written(azure):
    run = azure.run("train", read("train"), {"inputs.recipe": "smoke"})["run"]
    names = ["stage1_flan", "stage2_chatgpt", "stage3_gpt4", "answer_only"]
    assert all((run / n / "model" / "config.json").exists() for n in names) and (run / "report.html").exists()
    assert sorted(azure.metrics("loss")) == sorted([(x["step"], x["loss"]) for x in steps(run, n)] for n in names)  # the workspace sees what the file says


def cluster(azure, given, **more):
    """Start the torchrun job on as many nodes as it asks for, as AzureML does: the same command on each, NODE_RANK apart."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    given = {"inputs.recipe": "smoke", **given}
    jobs = [azure.start("torchrun", read("torchrun"), {**given, **more}, number=n, NODE_RANK=str(n), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)) for n in range(given["inputs.nodes"])]
    for job, _ in jobs:
        azure.end(job)
    return jobs[0][1]["outputs.run"]


def test_the_cluster_s_job_runs_as_written_with_two_processes(azure):
    run = cluster(azure, {"inputs.nodes": 1, "inputs.gpus": 2, "inputs.accum": 2})
    assert (run / "answer_only" / "model" / "config.json").exists()
    made = json.loads((run / "stage1_flan" / "config.json").read_text())
    assert (made["versions"]["processes"], made["accum"]) == (2, 2) and len(azure.metrics("loss")) == 4  # one process speaks for all


@pytest.mark.long
def test_two_nodes_that_see_one_folder_train_together(azure, tmp_path):
    job = read("torchrun")
    assert job["inputs"]["nodes"] == job["resources"]["instance_count"] and job["distribution"]["process_count_per_instance"] == 1
    run = cluster(azure, {"inputs.nodes": 2, "inputs.gpus": 1, "inputs.accum": 2}, **{"outputs.run": tmp_path / "shared", "inputs.base": azure.assets / "base"})
    assert json.loads((run / "stage3_gpt4" / "config.json").read_text())["versions"]["processes"] == 2
    assert (run / "answer_only" / "model" / "config.json").exists()


def test_a_trial_of_the_sweep_runs_as_written_and_sends_what_it_is_judged_by(azure):
    whole, (job,), own = read("sweep"), commands("sweep").values(), azure.mlflow_run()
    lr, seed = (whole["search_space"][n]["values"][-1] for n in ("lr", "seed"))
    run = azure.run("sweep", job, {"inputs.recipe": "smoke", "search_space.lr": lr, "search_space.seed": seed}, MLFLOW_RUN_ID=own)["run"]
    made = json.loads((run / "stage1_flan" / "config.json").read_text())
    assert (made["lr"], made["seed"]) == (lr, seed) == (3e-5, 1)
    assert azure.metrics(whole["objective"]["primary_metric"], own) == [[(3, steps(run, "stage1_flan")[-1]["held_out"])]]
    assert len(azure.metrics("held_out")) == 1  # in the trial's own run, and in no other


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory, repository, assets):
    """The pipeline's steps in the order of their needs, the outputs of one handed to the next: {step: its outputs}, and what each was given."""
    azure, jobs, done = Azure(tmp_path_factory.mktemp("pipeline"), repository, assets), commands("pipeline"), {}
    while len(done) < len(jobs):
        name, job = next((n, j) for n, j in jobs.items() if n not in done and set(re.findall(r"parent\.jobs\.(\w+)", json.dumps(j["inputs"]))) <= set(done))
        given = {"inputs.recipe": "smoke", "inputs.scale": read("pipeline")["inputs"]["scale"]}
        for n, value in job["inputs"].items():
            if m := re.fullmatch(r"\$\{\{parent\.jobs\.(\w+)\.outputs\.(\w+)\}\}", value):
                given[f"inputs.{n}"] = done[m[1]][m[2]]
        held = lambda: {p: p.read_bytes() for f in given.values() if isinstance(f, Path) for p in f.rglob("*") if p.is_file()}
        before = held()
        done[name] = azure.run(name, job, dict(given))
        assert held() == before  # what another step wrote can only be read
    return done


def test_the_pipeline_s_three_stages_run_as_written_each_from_the_one_before(pipeline):
    assert list(pipeline) == ["stage1", "stage2", "stage3", "export"]
    run = pipeline["stage3"]["run"]
    for name, start in (("stage1_flan", None), ("stage2_chatgpt", "stage1_flan"), ("stage3_gpt4", "stage2_chatgpt")):
        origin = json.loads((run / name / "config.json").read_text())["origin"]["from"]
        assert (run / name / "results.json").exists() and (not start or origin.endswith(f"OUTPUT_run/{start}/model")), origin
    assert not (pipeline["stage2"]["run"] / "stage3_gpt4").exists()


def test_the_deployment_finds_what_the_export_wrote(pipeline, repository, tmp_path):
    whole = read("deployment")
    shutil.copytree(repository, tmp_path / "r")
    shutil.copytree(pipeline["export"]["exported"] / "orca", tmp_path / "r" / "runs" / "orca")
    here = tmp_path / "r" / "azureml"
    for path in (whole["model"]["path"], whole["code_configuration"]["code"], Path(whole["code_configuration"]["code"]) / whole["code_configuration"]["scoring_script"], whole["environment"]["conda_file"]):
        assert (here / path).exists(), path
    conda = yaml.safe_load((here / whole["environment"]["conda_file"]).read_text())
    assert conda["dependencies"][-1]["pip"] == (here / whole["code_configuration"]["code"] / "requirements.txt").read_text().split()
    assert Path(load("deployment", here / "deployment.yml").model.path).parts[-2:] == ("runs", "orca")


# ------------------------------------------------------------------------------------------------- the compute instance

SUDO = '#!/bin/bash\nwhile [[ $1 == -* ]]; do [[ $1 == -u ]] && shift; shift; done\nexec "$@"\n'
CONDA = '#!/bin/bash\n[[ "$*" == "create -q -y -p $HOME/orcalab-env python=3.11 pip" ]] || exit 9\n"{python}" -m venv "$HOME/orcalab-env"\nfor site in "$HOME"/orcalab-env/lib/python3*/site-packages; do echo "{ours}" > "$site/zz_ours.pth"; done\n'


def test_the_creation_script_leaves_a_kernel_and_may_run_again(repository, tmp_path):
    """Bash, pip and ipykernel are real. Stand-ins: sudo (the user is this one), conda (a venv that sees our packages); pip fetches no dependencies."""
    import sysconfig
    shutil.copytree(repository, tmp_path / "orcalab")
    (tmp_path / "bin").mkdir()
    for name, text in (("sudo", SUDO), ("conda", CONDA.format(python=sys.executable, ours=sysconfig.get_path("purelib")))):
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    env = {**os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "HOME": str(tmp_path), "PIP_NO_DEPS": "1"}
    run = lambda cwd: subprocess.run(["bash", tmp_path / "orcalab" / "azureml" / "setup.sh"], cwd=cwd, env=env, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    away = run(tmp_path)
    assert away.returncode == 1 and "must run in the folder azureml of the repository" in away.stderr
    for _ in range(2):
        job = run(tmp_path / "orcalab" / "azureml")
        assert job.returncode == 0 and "the kernel orcalab is there" in job.stdout, job.stdout + job.stderr
    spec = json.loads((tmp_path / ".local" / "share" / "jupyter" / "kernels" / "orcalab" / "kernel.json").read_text())
    said = subprocess.run([spec["argv"][0], "-c", "import ipykernel, orcalab; print(orcalab.__file__)"], capture_output=True, text=True, check=True, cwd=tmp_path / "bin").stdout
    assert said.strip() == str(tmp_path / "orcalab" / "orcalab" / "__init__.py") and spec["display_name"] == "orcalab"
