"""Runs that were killed, or met a full disk or a torn checkpoint, end with the same bytes; a run never goes on with other inputs than it began with.

As a program (`python test_kills.py JOB.json`) this file is the killer: one process that has imported everything, and forks each run that is to be killed.
"""

import json
import mmap
import os
import random
import re
import signal
import subprocess
import sys
import time
import traceback
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import ROOT

from orcalab import adapter, checkpoint, config, corpus, model as models, recipes, train

STAGES = ("stage1_flan", "stage2_chatgpt")
SMALL = dict(device="cpu", dtype="fp32", seq_len=512, steps=9, save_every=2, processes=1)
WAYS = {
    "full": {},
    "lora": dict(method="lora", lora_rank=4, lora_dropout=0.1),
    "chance": dict(optimizer="adamw_bf16_sr", dtype="bf16"),
    "backward": dict(update="backward", clip=0.0),
    "best": dict(held_out=4, eval_every=4, final="best", keep=1),
}
PHASES = ("prepare", "load", "steps", "checkpoint", "finish", "between")
# in the order in which a run comes by; the number: checkpoints that this process began in this stage
PLACES = [(0, "prepare", 0), *((stage, phase, begun) for stage in (0, 1) for phase, begun in (
    ("load", 0), ("steps", 0), ("checkpoint", 1), ("steps", 1), ("checkpoint", 2), ("steps", 2), ("finish", 0), ("between", 0)))]
CLOCKS = {"seconds", "tokens_per_s", "targets_per_s", "mfu", "peak_gib"}  # what no two runs share


def journey(out, **changes):
    """Prepare and train one stage, then the next, as the notebooks do."""
    rec = recipes.get("smoke", out=str(out), **{**SMALL, **changes})
    for name in STAGES:
        cfg = rec.stage(name)
        prepared = corpus.prepare(rec, cfg, models.load_tokenizer(rec.base))
        train.train(cfg, prepared, None if cfg.start == "base" else rec.stage(cfg.start).folder / "model")


def result(folder):
    """Return all that a run leaves and no other may leave otherwise: {file: bytes} of the model and of an adapter, and the metrics without clocks."""
    assert not (folder / "checkpoints").exists()
    kinds = ("model/*", "adapter/*.safetensors")  # not the adapter's JSON: peft writes sets into it, in any order
    found = {str(p.relative_to(folder)): p.read_bytes() for kind in kinds for p in folder.glob(kind)}
    assert "model/model.safetensors" in found
    return found | {"metrics": [{k: v for k, v in json.loads(line).items() if k not in CLOCKS} for line in (folder / "metrics.jsonl").read_text().splitlines()]}


def differing(a, b):
    """Return the names of the parts of two results that differ."""
    return {k for k in {**a, **b} if a.get(k) != b.get(k)}


# ------------------------------------------------------------------------------------------------ the killer

def told(seen):
    """Let the rooms' doors write into `seen`, bytes that two processes share: the phase, the stage, and how many of the stage's checkpoints were begun."""
    def tell(module, name, phase, after):
        door = getattr(module, name)

        def opened(*args, **given):
            outer = PHASES[seen[0]]
            if name == "train":
                seen[1:] = bytes((STAGES.index(args[0].name), 0))
            seen[2] += phase == "checkpoint"
            seen[0] = PHASES.index(phase)
            try:
                return door(*args, **given)
            finally:
                seen[0] = PHASES.index(phase if outer == phase == "finish" else after)  # an adapter's end has a model's within
        setattr(module, name, opened)
    for door in ((train, "train", "load", "between"), (checkpoint, "last", "load", "steps"), (checkpoint, "save", "checkpoint", "steps"),
                 (models, "save", "finish", "between"), (adapter, "finish", "finish", "between")):
        tell(*door)


def fork(out, changes, aim, delay):
    """Run a journey in a process of its own, and kill that `delay` seconds after it came to `aim`; return [stage, phase] where it died, or None if it was done."""
    seen = mmap.mmap(-1, 3)
    child = os.fork()
    if not child:
        try:
            told(seen)
            journey(out, **changes)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    ended = lambda: os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    while aim and not ended():
        if (seen[1], PHASES[seen[0]]) == aim[:2] and seen[2] >= aim[2]:
            time.sleep(delay)
            os.kill(child, signal.SIGKILL)
            break
        time.sleep(0.0002)
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        return [seen[1], PHASES[seen[0]]]
    assert status == 0, f"the run {out} failed by itself"


def killer(folder, wanted, seed):
    """Kill runs, of each way as many times as `wanted` says and at most four times each, and let each end; write kills.json."""
    draw, struck = random.Random(seed), []
    for method in ("full", "lora"):
        journey(folder / f"warm-{method}", steps=1, **WAYS[method])  # all is imported before the first fork
    for way, number in wanted.items():
        left, run = number, 0
        while left:
            run += 1
            for aim in [*sorted(draw.sample(PLACES, min(4, left)), key=PLACES.index), None]:
                at = fork(folder / f"{way}-{run}", WAYS[way], aim, 10 ** draw.uniform(-4, -1))
                if at is None:
                    break
                left -= 1
                struck.append([way, run, *at, any(folder.glob(f"{way}-{run}/**/*.part")), any(checkpoint.kept(folder / f"{way}-{run}" / STAGES[at[0]]))])
    config.write_json(folder / "kills.json", struck)


def kill(folder, wanted, seed):
    """Let the killer work, and beside it run each way undisturbed; all must end alike. Return the kills, each [way, run, stage, phase, whether anything was
    half written, whether there was a whole checkpoint]."""
    command = [sys.executable, __file__, folder, json.dumps(wanted), str(seed)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT) as job:
        for way in wanted:
            journey(folder / way, **WAYS[way])
        said, _ = job.communicate()
    assert job.returncode == 0, said[-3000:]
    struck = config.read_json(folder / "kills.json")
    for way, run in {(k[0], k[1]) for k in struck}:
        for stage in STAGES:
            assert differing(result(folder / way / stage), result(folder / f"{way}-{run}" / stage)) == set(), (way, run, stage, struck)
    return struck


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")


@needs_fork
def test_killed_runs_end_with_the_same_bytes(tmp_path):
    struck = kill(tmp_path, {"full": 4, "lora": 2}, seed=3)
    assert Counter(k[0] for k in struck) == {"full": 4, "lora": 2} and len({k[3] for k in struck}) >= 3
    assert {k[0] for k in struck if k[5]} == {"full", "lora"}  # which both went on from one


@needs_fork
@pytest.mark.long
def test_fifty_kills(tmp_path, capsys):
    begun = time.time()
    struck = kill(tmp_path, {"full": 12, "lora": 12, "chance": 10, "backward": 10, "best": 6}, seed=0)
    phases = Counter(k[3] for k in struck)
    with capsys.disabled():
        print(f"\n{len(struck)} kills in {time.time() - begun:.0f} s, by phase {dict(phases)}, by stage {dict(Counter(k[2] for k in struck))}; "
              f"{sum(k[4] for k in struck)} left something half written, {sum(k[5] for k in struck)} a whole checkpoint; {len({(k[0], k[1]) for k in struck})} runs")
    assert len(struck) == 50 and set(phases) == set(PHASES) and sum(k[4] for k in struck) >= 5
    assert {k[0] for k in struck if k[5]} == set(WAYS)  # runs of each way went on from a checkpoint


# ------------------------------------------------------------------------------------ disks, torn checkpoints

@pytest.fixture
def whole(stage, tmp_path):
    """(cfg, prepared, what an uninterrupted run of it leaves)."""
    cfg, prepared = stage(**{k: v for k, v in SMALL.items() if k != "seq_len"})
    undisturbed = replace(cfg, out=str(tmp_path / "undisturbed"))
    train.train(undisturbed, prepared)
    return cfg, prepared, result(undisturbed.folder)


def broken_off(cfg, prepared, step):
    """Train until the line of `step` is written, and leave as Ctrl-C does."""
    def stop(line):
        if line["step"] == step:
            raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        train.train(cfg, prepared, watching=stop)
    return sorted(p.name for p in (cfg.folder / "checkpoints").iterdir())


def test_after_a_full_disk_the_run_goes_on_to_the_same_bytes(whole):
    resource = pytest.importorskip("resource", reason="file sizes can be limited on Unix alone")
    cfg, prepared, want = whole
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    fill = lambda line: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000 if line["step"] == 6 else soft, hard))  # the disk takes no larger file
    try:
        with pytest.raises(OSError, match=r"no disk space left for the checkpoint at step 6, or the disk failed \(.*\); the run goes on from"):
            train.train(cfg, prepared, watching=fill)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [p.name for p in checkpoint.kept(cfg.folder)] == ["step-000002", "step-000004"] and not (cfg.folder / "model").exists()
    train.train(cfg, prepared)
    assert differing(result(cfg.folder), want) == set()


def test_after_a_torn_checkpoint_the_run_goes_on_from_the_one_before_to_the_same_bytes(whole, capsys):
    cfg, prepared, want = whole
    assert broken_off(cfg, prepared, 7) == ["step-000004", "step-000006"]
    file = cfg.folder / "checkpoints" / "step-000006" / "state.safetensors"
    os.truncate(file, size := file.stat().st_size // 2)
    seen = []
    train.train(cfg, prepared, watching=lambda line: seen.append(line["step"]))
    assert seen == [5, 6, 7, 8, 9] and f"{file.parent} is passed over: state.safetensors has {size} of " in capsys.readouterr().out
    assert differing(result(cfg.folder), want) == set()


def test_what_a_kill_at_the_very_end_left_goes_with_the_next_start(whole):
    cfg, prepared, want = whole
    train.train(cfg, prepared)
    checkpoint.save(cfg.folder, 8, {}, {})  # killed behind results.json, before the checkpoints were removed
    train.train(cfg, prepared)
    assert differing(result(cfg.folder), want) == set()


# --------------------------------------------------------------------------------------------- other inputs

def test_other_inputs_are_refused_with_the_difference_and_the_run_goes_on_with_its_own(whole, recipe, tokenizer, tiny, tmp_path):
    cfg, prepared, want = whole
    assert broken_off(cfg, prepared, 5) == ["step-000002", "step-000004"]
    said = rf"^{re.escape(str(cfg.folder))} holds a run with other inputs \(%s\); choose another out, or delete that folder$"
    refused = lambda what: pytest.raises(ValueError, match=said % what)
    with refused(r"lr: 0.0003 -> 0.001, lora_rank: 64 -> 8"):
        train.train(replace(cfg, lr=1e-3, lora_rank=8), prepared)
    with refused(rf"data: '{prepared.folder.name}' -> 'stage2_chatgpt-\w+'"):
        train.train(cfg, corpus.prepare(recipe, replace(cfg, answers="gold"), tokenizer))
    tiny[1].add_tokens(["<|new|>"])
    models.save(tmp_path / "other", *tiny)
    with refused(r"data: '\S+' -> '\S+', tokenizer: '\w+' -> '\w+', weights: 'seed 0' -> '\w+'"):
        train.train(cfg, corpus.prepare(recipe, cfg, models.load_tokenizer(tmp_path / "other")), tmp_path / "other")
    train.train(replace(cfg, save_every=5, keep=1), prepared)  # what changes no number is no other run
    assert differing(result(cfg.folder), want) == set()


def test_a_checkpoint_alone_knows_its_run(whole):
    cfg, prepared, _ = whole
    broken_off(cfg, prepared, 5)
    (cfg.folder / "config.json").unlink()
    with pytest.raises(ValueError, match=r"step-000004 belongs to a run with other inputs \(lr: 0.0003 -> 0.001\); choose another out, or delete that folder"):
        train.train(replace(cfg, lr=1e-3), prepared)


if __name__ == "__main__":
    killer(Path(sys.argv[1]), json.loads(sys.argv[2]), int(sys.argv[3]))
