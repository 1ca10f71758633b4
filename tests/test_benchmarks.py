"""benchmarks/train_gpu.py and train_cpu.py: every part runs on a CPU with a small shape, measures what it says, and finds what is wrong."""

import json
import math
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import train_gpu

from orcalab import attention


def run(part, **changes):
    """Run a part in this process on the small shape; return its rows."""
    rows = []
    a = SimpleNamespace(device="cpu", shape="tiny", rate=1e12, seconds=0.1, until=0, **changes)  # no time: as few steps and profiles as there can be
    {"rate": train_gpu.rate, "correct": train_gpu.correct, "small": train_gpu.small}.get(part, train_gpu.profiles)(part, a, rows.append)
    return rows


def script(name, *words):
    job = subprocess.run([sys.executable, ROOT / "benchmarks" / name, *words], capture_output=True, text=True)
    assert job.returncode == 0, job.stdout + job.stderr
    return json.loads(job.stdout.splitlines()[-1])


def test_rows_are_spread_as_orcas_are_and_fill_their_packs():
    packed = train_gpu.packs(40, 4096, 32_000)
    lengths = [n for row in packed.segment for n in np.unique(row[row >= 0], return_counts=True)[1]]
    assert packed.ids.shape == (40, 4096) and packed.fill > 0.99 and packed.ids.max() < 32_000
    assert abs(np.median(lengths) - 450) < 50 and abs(packed.num_targets / sum(lengths) - 0.6) < 0.01


def test_packed_is_alone_and_a_model_that_sees_its_neighbour_is_found_out(monkeypatch):
    alone, packed = run("correct")
    assert alone["ok"] and packed["attention"] == "documents" and packed["ok"] and packed["leak"] == 0 and packed["states"] < 1e-5 and packed["gradient"] < 1e-5
    monkeypatch.setattr(attention, "_one", lambda q, k, v, scale: torch.nn.functional.scaled_dot_product_attention(q[None], k[None], v[None], scale=scale, enable_gqa=True)[0])
    assert not run("correct")[1]["ok"]  # no longer causal
    monkeypatch.undo()
    whole = lambda module, q, k, v, *_, scaling, **__: (attention._one(q[0], k[0], v[0], scaling).transpose(0, 1)[None], None)
    monkeypatch.setitem(attention.KINDS, "documents", whole)
    bad = run("correct")[1]
    assert not bad["ok"] and bad["leak"] > 0.01


@pytest.mark.parametrize("part", ["full", "plain", "low"])
def test_a_profile_is_measured(part):
    first, *rest = run(part)
    assert first["tokens_per_s"] > 0 and 0 < first["mfu"] < 1 and first["step_s"] > 0 and first["planned_gb"] > 0 and all(map(math.isfinite, first["losses"]))
    assert first["side"] == ("plain" if part == "plain" else "ours") and all(r["skipped"] == "no time left" for r in rest)


def test_both_sides_lose_the_same_where_a_pack_holds_one_example(monkeypatch):
    made, alone = train_gpu.packs, np.arange(256, dtype=np.int32)
    monkeypatch.setattr(train_gpu, "packs", lambda *what: (p := made(*what))._replace(segment=0 * p.segment, position=0 * p.position + alone))
    monkeypatch.setitem(train_gpu.PROFILES, "full", [{}])
    ours, plain = run("full")[0], run("plain")[0]
    assert ours["losses"] == pytest.approx(plain["losses"], rel=1e-4)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # what peft uses of transformers
@pytest.mark.parametrize("part", ["lora", "qlora"])
def test_adapters_are_measured_on_both_sides(part):
    pytest.importorskip("peft")
    if part == "qlora":
        pytest.importorskip("bitsandbytes")
    ours, plain = run(part)[:2]
    assert (ours["side"], plain["side"]) == ("ours", "plain") and ours["tokens_per_s"] > 0 and plain["tokens_per_s"] > 0
    assert ours["losses"][0] == pytest.approx(plain["losses"][0], rel=0.02)


def test_what_lacks_a_library_says_so(monkeypatch):
    monkeypatch.setattr(train_gpu, "find_spec", lambda name: None)
    assert train_gpu.lacking({"optimizer": "adamw"}) == ""
    assert run("13b")[0]["skipped"] == run("qlora")[0]["skipped"] == "needs bitsandbytes, which is not installed"


@pytest.mark.long
def test_nothing_needs_datasets(tmp_path):
    (tmp_path / "gone.py").write_text("import sys\nfor name in ('datasets', 'pyarrow', 'trl', 'plotly'):\n    sys.modules[name] = None\n"
                                      "sys.argv = ['x', '--child', 'full', '--device', 'cpu', '--shape', 'tiny', '--seconds', '0']\nimport runpy\n"
                                      f"runpy.run_path({str(ROOT / 'benchmarks' / 'train_gpu.py')!r}, run_name='__main__')\n")
    job = subprocess.run([sys.executable, tmp_path / "gone.py"], capture_output=True, text=True)
    assert job.returncode == 0 and json.loads(job.stdout.splitlines()[0])["tokens_per_s"] > 0, job.stderr


def test_an_unknown_part_is_refused():
    job = subprocess.run([sys.executable, ROOT / "benchmarks" / "train_gpu.py", "--parts", "ful"], capture_output=True, text=True)
    assert job.returncode == 1 and "no part named ful; known: rate, correct" in job.stderr


@pytest.mark.long
def test_the_whole_file_for_gpus():
    pytest.importorskip("bitsandbytes")
    said = script("train_gpu.py", "--device", "cpu", "--shape", "tiny", "--seconds", "4000")
    assert {r["part"] for r in said["rows"]} == set(train_gpu.SECONDS) and said["failed"] == [] and said["ratio"] > 0 and set(said["ratios"]) == {"full", "lora", "qlora"}
    small = {r["optimizer"]: r for r in said["rows"] if r["part"] == "small"}
    assert set(small) == set(train_gpu.OPTIMIZERS) and all(r["resumed_differs_by"] == 0 for r in small.values())
    assert small["adamw_bf16"]["lost_updates_at_lr_1e-5"] > 0.5 > 0.1 > small["adamw_bf16_sr"]["lost_updates_at_lr_1e-5"]


@pytest.mark.long
def test_trl_learns_the_same_as_we_do():
    pytest.importorskip("trl")
    said = script("train_cpu.py", "2", "tiny-random", "fp32", "ours,ships,best,plain,alone")  # ends with an error where masks are equal and losses are not
    assert said["ratio"] > 0 and said["ratio_as_it_ships"] > 0 and 0 < said["share_of_matmul_rate"] < 1
    assert said["losses"]["ours"] == pytest.approx(said["losses"]["ships"], abs=2e-4) and abs(said["losses"]["ours"][0] - said["losses"]["plain"][0]) > 1e-4


def test_answers_side_by_side_are_measured_and_have_to_be_the_same():
    said = script("generate.py", "6", "4", "4", "fp32", "tiny-random")
    assert said["ratio"] > 0 and said["same_ids"] == {"ships": 1, "sorted": 1, "wide": 1} and set(said["tokens_per_s"]) == {"ours", "ships", "sorted", "wide"}
    turn = said["second_turn"]
    assert turn["same_ids"] and turn["ids"] - turn["there_before"] < 60 < turn["ids"]
