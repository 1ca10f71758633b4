"""watch.py: the loss told apart, held-out examples, spikes, the pack that did it, and trackers."""

import gc
import json
import math

import numpy as np
import pytest
import torch

from orcalab import attention, config, corpus, model as models, train, watch
from orcalab.config import Config


def lines(cfg):
    return [json.loads(x) for x in (cfg.folder / "metrics.jsonl").read_text().splitlines()]


def test_losses_by_source_and_strategy_are_those_of_the_examples(stage):
    cfg, prepared = stage(seq_len=1024, steps=2, batch_size=2)
    members = [list(p) for p in prepared.plan[0:4]]
    packed = prepared.packs(0, 4)
    fake = np.concatenate([np.full(int(np.asarray(prepared.examples[i][1])[1:].sum()), float(i + 1)) for m in members for i in m])
    by, per_pack = watch.by_tag(prepared, members, packed, fake)
    want = {}
    for i in (i for m in members for i in m):
        n = int(np.asarray(prepared.examples[i][1])[1:].sum())
        total, number = want.get(prepared.rows[i].strategy, (0, 0))
        want[prepared.rows[i].strategy] = (total + n * (i + 1.0), number + n)
    assert {k: tuple(v) for k, v in by["strategy"].items()} == want and len(want) > 2
    assert {prepared.rows[i].source for m in members for i in m} == set(by["source"])
    assert sum(n for _, n in by["source"].values()) == packed.num_targets
    at = 0
    for m, mean in zip(members, per_pack, strict=True):
        n = sum(int(np.asarray(prepared.examples[i][1])[1:].sum()) for i in m)
        assert mean == pytest.approx(fake[at : at + n].mean())
        at += n


def test_a_run_tells_its_loss_apart(stage):
    cfg, prepared = stage(steps=3, batch_size=2, accum=2)
    train.train(cfg, prepared)
    for line in lines(cfg):
        for parts in line["by"].values():
            assert sum(s for s, _ in parts.values()) == pytest.approx(line["loss"] * line["targets"], rel=1e-4)
            assert sum(n for _, n in parts.values()) == line["targets"]


# ------------------------------------------------------------------------------------------------- held out

def test_held_out_examples_are_in_no_pack_and_cost_no_other_run_anything(stage):
    cfg, prepared = stage(held_out=7, eval_every=2, steps=4)
    assert len(prepared.held_out) == 7 and not set(prepared.held_out.tolist()) & {i for p in prepared.plan for i in p}
    results = train.train(cfg, prepared)
    rows = lines(cfg)
    assert [("held_out" in r) for r in rows] == [False, True, False, True] and results["held_out"] == rows[-1]["held_out"]
    student = models.load(str(cfg.folder / "model"))[0]
    total, targets = 0.0, 0
    for i in prepared.held_out:  # one at a time, full logits, transformers' own attention
        ids, mask = (torch.tensor(x.tolist()) for x in prepared.examples[int(i)])
        with torch.no_grad():
            logits = student(input_ids=ids[None]).logits[0, :-1]
        total += (torch.nn.functional.cross_entropy(logits, ids[1:], reduction="none") * mask[1:]).sum().item()
        targets += int(mask[1:].sum())
    assert rows[-1]["held_out"] == pytest.approx(total / targets, rel=1e-5)
    plain, other = stage(steps=4)
    assert len(other.held_out) == 0 and other.folder != prepared.folder


def test_a_model_that_stops_and_one_that_does_not(stage, tiny):
    cfg, prepared = stage(held_out=4, eval_every=1)
    model, tokenizer = tiny
    seen = watch.look(attention.isolate(model), prepared, tokenizer, cfg, "documents", longest=6)
    assert seen["stops"] == 0 and len(tokenizer(seen["answer"], add_special_tokens=False)["input_ids"]) <= 6 and model.training
    assert seen["held_out"] == pytest.approx(math.log(len(tokenizer)), abs=0.1)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    with torch.no_grad():  # every last state points at the end token
        model.model.norm.weight.zero_()
    class Always(torch.nn.Linear):
        def forward(self, x):
            out = super().forward(x)
            out[..., end] += 9
            return out
    model.lm_head.__class__ = Always
    assert watch.look(model, prepared, tokenizer, cfg, "documents", longest=6)["stops"] == 1


def test_the_best_weights_are_those_of_the_lowest_held_out_loss(stage):
    cfg, prepared = stage(held_out=8, eval_every=1, steps=4, lr=0.3, warmup=6, schedule="constant", final="best", clip=0.0)
    train.train(cfg, prepared)
    seen = [r["held_out"] for r in lines(cfg)]
    assert min(seen) < seen[-1]  # a wild learning rate made it worse again
    model, tokenizer, _ = models.load(str(cfg.folder / "model"))
    done = config.read_json(cfg.folder / "results.json")
    assert (done["held_out"], done["held_out_step"]) == (min(seen), seen.index(min(seen)) + 1)
    assert watch.look(attention.isolate(model), prepared, tokenizer, cfg, "documents", asked=0)["held_out"] == pytest.approx(min(seen), rel=1e-5)


def test_more_held_out_than_there_are(tmp_path, recipe):
    path = tmp_path / "t.jsonl"
    path.write_text("".join(json.dumps({"question": f"{i}?", "response": "Yes."}) + "\n" for i in range(5)))
    cfg = recipe.stage("stage1_flan", rows=str(path), held_out=5, eval_every=1)
    with pytest.raises(ValueError, match="held_out is 5, and there are 5 examples in all"):
        corpus.prepare(recipe, cfg, models.load_tokenizer("tiny-random"))


# --------------------------------------------------------------------------------------------------- trouble

def test_what_is_trouble():
    cfg = Config(spike=3.0)
    assert watch.trouble(cfg, float("nan"), []) == "is nan" and watch.trouble(cfg, float("inf"), []) == "is inf"
    assert watch.trouble(cfg, 100.0, [1.0] * 9) == "" and watch.trouble(cfg, 3.0, [1.0] * 10) == ""
    assert watch.trouble(cfg, 3.1, [9.0] * 5 + [1.0] * 20) == "is 3.10, over 3 times the median of the last 20 steps (1.00)"
    assert watch.trouble(Config(spike=0.0), 1e9, [1.0] * 30) == ""


def test_a_spike_ends_the_run_and_names_the_rows(stage, tmp_path, recipe):
    good = [json.dumps({"question": "Say it.", "response": "aaaaaaaa" * 6}) for _ in range(400)]
    odd = json.dumps({"id": "odd", "question": "Say it.", "response": "".join(chr(33 + (7 * i) % 90) for i in range(150))})
    path = tmp_path / "t.jsonl"
    path.write_text("\n".join(good[:200] + [odd] + good[200:]) + "\n")
    cfg = recipe.stage("stage1_flan", rows=str(path), drop="nothing", seq_len=256, steps=0, epochs=1, lr=1e-2, warmup=0, schedule="constant", spike=2.5, save_every=1, keep=3)
    prepared = corpus.prepare(recipe, cfg, models.load_tokenizer("tiny-random"))
    at = next(n for n, p in enumerate(prepared.plan) if any(prepared.rows[i].id == "odd" for i in p))
    assert at >= 12  # behind the steps that a median takes
    with pytest.raises(ValueError, match=rf"the loss is .*, over 2\.5 times the median .* at step {at + 1}: pack {at} lost .* a target; its rows: .*Look at these rows; lower lr \(0\.01\) in another out, or raise spike \(2\.5\) and start again"):
        train.train(cfg, prepared)
    assert not (cfg.folder / "model").exists() and len(lines(cfg)) == at
    assert config.read_json(sorted((cfg.folder / "checkpoints").glob("step-*/state.json"))[-1])["note"]["step"] == at  # the last good one


def test_the_suspects_are_the_rows_of_the_worst_pack(stage):
    cfg, prepared = stage()
    members = [list(p) for p in prepared.plan[0:3]]
    said = watch.suspects(prepared, members, [1.0, float("nan"), 5.0], first=6)
    rows = [prepared.rows[i] for i in members[1]]
    assert said.startswith(f"pack 7 lost nan a target; its rows: {rows[0].where or rows[0].id}: ") and (f"and {len(rows) - 3} more" in said) == (len(rows) > 3)


def test_a_full_gpu_is_told_what_was_planned_and_holds_nothing(stage):
    from transformers import LlamaForCausalLM
    cfg, prepared = stage()
    models_alive = lambda: sum(type(o) is LlamaForCausalLM for o in gc.get_objects())
    gc.collect()
    before = models_alive()

    def full(line):  # there is no GPU to fill here
        assert models_alive() == before + 1
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has")

    with pytest.raises(MemoryError, match=r"^CUDA out of memory\. For stage2_chatgpt 0\.\d GiB were planned \(weights .*batch_size 1 \(now 1\), update backward \(now step\), method qlora \(now full\)") as caught:
        train.train(cfg, prepared, watching=full)
    gc.collect()
    assert models_alive() == before and "GPU 0" not in str(caught.value)  # though the error is still there, as in a notebook
    assert train.train(cfg, prepared)["steps"] == cfg.steps


# -------------------------------------------------------------------------------------------------- trackers

def test_tensorboard_gets_every_number(stage):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    cfg, prepared = stage(steps=3, track="tensorboard")
    train.train(cfg, prepared)
    events = EventAccumulator(str(cfg.folder / "tensorboard"))
    events.Reload()
    assert {"loss", "lr", "grad_norm", "tokens_per_s", "mfu", "lost_updates", "peak_gib"} <= set(events.Tags()["scalars"])
    assert [round(e.value, 4) for e in events.Scalars("loss")] == [round(r["loss"], 4) for r in lines(cfg)]
    assert [e.step for e in events.Scalars("loss")] == [1, 2, 3] and any(t.startswith("loss/strategy/") for t in events.Tags()["scalars"])


def test_a_tracker_that_is_not_installed(stage):
    cfg, prepared = stage(track="trackio")
    try:
        import trackio  # noqa: F401
        pytest.skip("trackio is installed")
    except ImportError:
        pass
    with pytest.raises(ValueError, match="track is 'trackio', which is not installed: pip install trackio"):
        train.train(cfg, prepared)
