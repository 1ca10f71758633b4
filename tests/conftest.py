"""Shared parts of the tests: no network, no hub, one thread, a random model that is made on the spot."""

import atexit
import importlib.util
import os
import shutil
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["ORCALAB_CACHE"] = tempfile.mkdtemp(prefix="orcalab-tests-")
atexit.register(shutil.rmtree, os.environ["ORCALAB_CACHE"], ignore_errors=True)
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.pop("ORCALAB_PROGRESS", None)

from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared" / "data"


def script(path):
    """Return a script of the repository as a module, by its path from the root."""
    spec = importlib.util.spec_from_file_location(Path(path).stem + "_", ROOT / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def tokenizer():
    """The tokenizer of tiny-random: one token a byte, and three special ones."""
    from orcalab import model
    return model.load_tokenizer("tiny-random")


@pytest.fixture
def tiny():
    """(model, tokenizer) of tiny-random in fp32, fresh for each test."""
    from orcalab import model
    return model.load("tiny-random", torch.float32, "cpu")[:2]


@pytest.fixture
def recipe(tmp_path):
    """The smoke recipe in fp32, its packs small, its folders under tmp_path."""
    from orcalab import recipes
    return recipes.get("smoke", out=str(tmp_path / "out"), dtype="fp32", device="cpu", seq_len=1024)


@pytest.fixture
def stage(recipe):
    """(cfg, prepared) of a stage with short packs; changes are given as keywords."""
    from orcalab import corpus, model
    def make(name="stage2_chatgpt", **changes):
        cfg = recipe.stage(name, **{"seq_len": 512, "start": "base", **changes})
        return cfg, corpus.prepare(recipe, cfg, model.load_tokenizer("tiny-random", cfg.template))
    return make


@pytest.fixture(scope="session")
def flan():
    """The folder of real FLAN CoT files; a test that needs it is skipped where it is missing."""
    folder = SHARED / "flan_cot"
    if not folder.is_dir():
        pytest.skip(f"the FLAN CoT files are not on this machine ({folder})")
    return folder


@pytest.fixture(scope="session")
def student(tmp_path_factory):
    """A student whose answers hang on every token that it sees, in fp32."""
    from orcalab import generate, model as models
    folder = tmp_path_factory.mktemp("wild") / "model"
    model, tokenizer, _ = models.load("tiny-random")
    models.save(folder, wild(model), tokenizer)
    return generate.Student(folder, "cpu", "fp32")


def talk(*pairs, system=None):
    """Return messages: talk(("user", "2+2"), ("assistant", "4"), system="Be brief.")."""
    head = [] if system is None else [{"role": "system", "content": system}]
    return head + [{"role": role, "content": content} for role, content in pairs]


def wild(model, factor=8.0):
    """Scale a random model's inner weights, so that what it says hangs on every token that it sees.

    As it is made, tiny-random repeats its last token: its attention hardly matters, and a test of it would prove little.
    """
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim > 1 and "embed" not in name:
                p.mul_(factor)
    return model
