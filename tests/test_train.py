"""train.py: a step is the plain step, a broken-off run goes on bit for bit, wrong inputs are refused."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from orcalab import config, corpus, generate, model as models, recipes, train
from orcalab.config import Config


def lines(cfg):
    return [json.loads(x) for x in (cfg.folder / "metrics.jsonl").read_text().splitlines()]


def weights(folder):
    from safetensors.torch import load_file
    return load_file(folder / "model" / "model.safetensors")


# ------------------------------------------------------------------------------------------------- steps

PADDING = 256  # the id of tiny-random's [PAD], whose row gets no gradient


def reference(cfg, prepared):
    """Train with a plain loop: one example at a time, full logits, transformers' attention, torch's AdamW."""
    model, _, _ = models.load("tiny-random", torch.float32)
    decay = [{"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": cfg.weight_decay},
             {"params": [p for p in model.parameters() if p.ndim == 1], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(decay, lr=1.0, betas=(0.9, 0.95), eps=1e-8, fused=False, foreach=False)
    out = []
    for step in range(cfg.steps):
        members = [i for p in prepared.plan[step * cfg.packs_per_step : (step + 1) * cfg.packs_per_step] for i in p]
        total, targets = 0.0, 0
        for i in members:
            ids, mask = (torch.tensor(a.tolist()) for a in prepared.examples[i])
            logits = model(input_ids=ids[None]).logits[0, :-1]
            total = total + (F.cross_entropy(logits, ids[1:], reduction="none") * mask[1:]).sum()
            targets += int(mask[1:].sum())
        (total / targets).backward()
        model.get_input_embeddings().weight.grad[PADDING] = 0
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), cfg.clip).item()
        share = (step - cfg.warmup) / (cfg.steps - cfg.warmup)
        lr = cfg.lr * ((step + 1) / cfg.warmup if step < cfg.warmup else 0.55 + 0.45 * math.cos(math.pi * share))
        for group in optimizer.param_groups:
            group["lr"] = lr
        kept = model.get_input_embeddings().weight[PADDING].clone()
        optimizer.step()
        with torch.no_grad():
            model.get_input_embeddings().weight[PADDING] = kept
        optimizer.zero_grad()
        out.append({"loss": total.item() / targets, "targets": targets, "lr": lr, "grad_norm": norm,
                    "tokens": sum(len(prepared.examples[i][0]) for i in members)})
    return out, model


def test_steps_equal_a_plain_loop(stage):
    cfg, prepared = stage(batch_size=2, accum=2, steps=4, warmup=2, weight_decay=0.1, clip=0.5)
    train.train(cfg, prepared)
    want, model = reference(cfg, prepared)
    for got, w in zip(lines(cfg), want, strict=True):
        assert (got["targets"], got["tokens"]) == (w["targets"], w["tokens"])
        assert got["loss"] == pytest.approx(w["loss"], rel=2e-6) and got["grad_norm"] == pytest.approx(w["grad_norm"], rel=1e-4)
        assert got["lr"] == pytest.approx(w["lr"], rel=1e-12)
    theirs, mine = model.state_dict(), weights(cfg.folder)
    for name, w in mine.items():
        torch.testing.assert_close(w, theirs[name], rtol=0, atol=2e-5, msg=lambda m: f"{name}: {m}")
    assert want[-1]["grad_norm"] > cfg.clip  # so that clipping was at work


@pytest.mark.parametrize("packs", [4, 1])
def test_accumulation_changes_nothing(stage, packs):
    one, prepared = stage(name="stage1_flan", batch_size=8, accum=1, seq_len=256)
    two = replace(one, batch_size=packs, accum=8 // packs, out=one.out + "b")
    train.train(one, prepared)
    train.train(two, replace(prepared))
    for a, b in zip(lines(one), lines(two), strict=True):
        assert a["targets"] == b["targets"] and a["loss"] == pytest.approx(b["loss"], rel=2e-6)
    for name, w in weights(one.folder).items():
        torch.testing.assert_close(w, weights(two.folder)[name], rtol=0, atol=1e-5)


def test_metrics_and_results_and_config_tell_what_happened(stage):
    cfg, prepared = stage(steps=5, save_every=2)
    results = train.train(cfg, prepared)
    rows = lines(cfg)
    assert [r["step"] for r in rows] == [1, 2, 3, 4, 5]
    assert set(rows[0]) == {"step", "loss", "lr", "grad_norm", "tokens", "targets", "seconds", "tokens_per_s", "targets_per_s", "mfu", "lost_updates", "peak_gib", "by"}
    assert all(0 < r["mfu"] < 1.5 and 0.1 < r["peak_gib"] < 16 and abs(r["lost_updates"]) < 0.01 for r in rows)
    packed = prepared.packs()
    assert results["targets"] == sum(r["targets"] for r in rows) == packed.num_targets
    assert results["tokens"] == sum(r["tokens"] for r in rows) == int((packed.segment >= 0).sum())
    assert results["first_loss"] == pytest.approx(sum(r["loss"] for r in rows[:2]) / 2)  # five steps: the two ends share none
    assert results["last_loss"] == pytest.approx(sum(r["loss"] for r in rows[-2:]) / 2) and results["steps"] == 5
    card = config.read_json(cfg.folder / "config.json")
    assert card["origin"]["from"] == "tiny-random" and card["seal"]["data"] == prepared.folder.name and card["dtype_used"] == "torch.float32"
    assert {k: card[k] for k in config.to_json(cfg)} == config.to_json(cfg) and set(card["versions"]) == {"orcalab", "torch", "transformers", "python", "attention", "compile", "processes"}
    assert not (cfg.folder / "checkpoints").exists()


def test_masters_go_on_where_the_stage_before_left_them(stage):
    """A model that computes in bf16 is saved in fp32, and its masters begin there: on bf16's grid small updates would be lost at first."""
    cfg, prepared = stage(dtype="bf16", steps=6, lr=1e-6, warmup=0, schedule="constant")
    start = {n: p.detach().clone() for n, p in models.load("tiny-random")[0].named_parameters()}
    train.train(cfg, prepared)
    after = weights(cfg.folder)
    assert {w.dtype for w in after.values()} == {torch.float32} and any(not torch.equal(w, w.bfloat16().float()) for w in after.values())
    moved = after["model.layers.0.mlp.up_proj.weight"] - start["model.layers.0.mlp.up_proj.weight"]
    assert 0 < moved.abs().max() < 3e-5 and (moved != 0).float().mean() > 0.99  # from the file's weights, not from their nearest in bf16 (which are twice as far)
    still, _ = stage(dtype="bf16", name="stage3_gpt4", steps=2, lr=0.0, warmup=0, schedule="constant")
    train.train(still, corpus.prepare(recipes.get("smoke", out=still.out, seq_len=512), still, models.load_tokenizer("tiny-random")), cfg.folder / "model")
    for name, w in weights(still.folder).items():
        assert torch.equal(w, after[name]), name


def test_the_loss_goes_down(stage):
    cfg, prepared = stage(steps=30, lr=5e-3, schedule="constant", batch_size=2)
    results = train.train(cfg, prepared)
    assert results["first_loss"] > 4.5 and results["last_loss"] < 3.5


# ------------------------------------------------------------------------------------------------ resume

def test_a_finished_run_is_read_and_not_repeated(stage):
    cfg, prepared = stage()
    results = train.train(cfg, prepared)
    stamp = (cfg.folder / "model" / "model.safetensors").stat().st_mtime_ns
    assert train.train(cfg, prepared) == results
    assert (cfg.folder / "model" / "model.safetensors").stat().st_mtime_ns == stamp


def test_a_changed_setting_is_refused_by_name(stage, recipe, tokenizer):
    cfg, prepared = stage()
    train.train(cfg, prepared)
    with pytest.raises(ValueError, match=rf"holds a run with other inputs \(lr: {cfg.lr} -> 0.001\); choose another out, or delete that folder"):
        train.train(replace(cfg, lr=1e-3), prepared)
    other = corpus.prepare(recipe, replace(cfg, answers="gold"), tokenizer)
    with pytest.raises(ValueError, match="data: 'stage2_chatgpt-.*' -> 'stage2_chatgpt-"):
        train.train(cfg, other)
    train.train(replace(cfg, save_every=9), prepared)  # what changes no number is no other run


def test_another_start_is_refused(stage, tmp_path, tiny):
    cfg, prepared = stage()
    train.train(cfg, prepared)
    models.save(tmp_path / "other", models.tiny_random(seed=1)[0], tiny[1])
    with pytest.raises(ValueError, match=r"other inputs \(weights: 'seed 0' -> '[0-9a-f]{16}'\)"):
        train.train(cfg, prepared, tmp_path / "other")


def test_a_changed_tokenizer_is_refused(stage, tmp_path, tiny):
    cfg, prepared = stage()
    tiny[1].add_tokens(["<|new|>"])
    models.save(tmp_path / "other", *tiny)
    with pytest.raises(ValueError, match="was made with another tokenizer .*; prepare the rows again with this model"):
        train.train(cfg, prepared, tmp_path / "other")
    assert not (cfg.folder / "config.json").exists()


# --------------------------------------------------------------------------------------------- bad numbers

def test_a_learning_rate_that_is_not_a_number():
    with pytest.raises(ValueError, match="lr must be a number of at least 0, got nan"):
        Config(lr=float("nan"))


def test_a_loss_that_is_not_a_number_stops_the_run(stage):
    cfg, prepared = stage(lr=1e30, clip=1e30, warmup=0, steps=6)
    with pytest.raises(ValueError, match=r"the loss is .*(nan|inf) at step \d: pack \d lost .* a target; its rows: .* Look at these rows; lower lr \(1e\+30\)"):
        train.train(cfg, prepared)
    assert not (cfg.folder / "model").exists() and all(math.isfinite(x["loss"]) for x in lines(cfg))


def test_lost_metrics_are_not_passed_over(stage):
    cfg, prepared = stage(steps=4, save_every=2)
    kept, train.models.save = train.models.save, None  # the run breaks off at its end, behind a checkpoint
    try:
        with pytest.raises(TypeError):
            train.train(cfg, prepared)
    finally:
        train.models.save = kept
    (cfg.folder / "metrics.jsonl").write_text("")
    with pytest.raises(ValueError, match="metrics.jsonl has 0 lines, the checkpoint is of step 2"):
        train.train(cfg, prepared)


# --------------------------------------------------------------------------------------- tokens and templates

def test_the_padding_row_that_we_added_never_moves(stage):
    cfg, prepared = stage(steps=4, lr=1e-2, weight_decay=0.5)
    before, tokenizer, _ = models.load("tiny-random")
    assert tokenizer.pad_token_id == PADDING
    train.train(cfg, prepared)
    was, now = before.get_input_embeddings().weight, weights(cfg.folder)["model.embed_tokens.weight"]
    assert torch.equal(was[PADDING], now[PADDING]) and not torch.equal(was[PADDING - 1], now[PADDING - 1])
    tokenizer.pad_token = "a"  # a padding that texts hold is trained like any other token
    assert models.pad_rows(before, tokenizer) == []


def test_a_student_is_trained_and_asked_in_openassistants_template(stage):
    cfg, prepared = stage(template="openassistant", steps=2)
    train.train(cfg, prepared)
    student = generate.Student(cfg.folder / "model", "cpu", "fp32")
    marks = student.tokenizer.convert_tokens_to_ids(["<|prompter|>", "<|assistant|>", "</s>"])
    prompt = student.prompt("2+2", None)
    assert prompt[0] == marks[0] and prompt[-2:] == marks[:0:-1] and student.ends == [marks[2]]
    assert config.read_json(cfg.folder / "model" / "orcalab.json")["template"] == "openassistant"
    with pytest.raises(ValueError, match="was trained with the template 'openassistant', not 'chatml'"):
        train.train(replace(cfg, name="next", template="chatml"), prepared, cfg.folder / "model")
    answer = student.ask("2+2", max_new_tokens=5)
    assert answer.tokens <= 5 and student.encoder.tokens.bytes_of(answer.ids).decode(errors="replace").startswith(answer.text)


def test_plain_text_is_trained_as_well(tmp_path, recipe):
    path = tmp_path / "t.jsonl"
    path.write_text("".join(json.dumps({"text": f"A page about {i}, and nothing else. " * 3}) + "\n" for i in range(60)))
    cfg = recipe.stage("stage1_flan", rows=str(path), system="keep", steps=2)
    prepared = corpus.prepare(recipe, cfg, models.load_tokenizer("tiny-random"))
    results = train.train(cfg, prepared)
    assert results["steps"] == 2 and results["targets"] == prepared.packs().num_targets > 0.9 * results["tokens"]
    assert json.loads((cfg.folder / "preflight.json").read_text())["difference"] < 1e-4


def test_epochs_decide_how_many_steps_there_are(tmp_path, recipe):
    path = tmp_path / "r.jsonl"
    path.write_text("".join(json.dumps({"question": f"{i}?", "response": "Yes."}) + "\n" for i in range(60)))
    cfg = recipe.stage("stage1_flan", rows=str(path), steps=0, epochs=2, accum=3)
    prepared = corpus.prepare(recipe, cfg, models.load_tokenizer("tiny-random"))
    assert len(prepared.plan) == 3 * prepared.steps and np.bincount(prepared.plan.members).min() >= 2
    assert train.train(cfg, prepared)["steps"] == prepared.steps > 1


# ------------------------------------------------------------------------------------------------- adapters

@pytest.mark.parametrize("how", [{"method": "qlora", "lora_dropout": 0.2, "recompute": 1, "dtype": "bf16"}, {"method": "lora", "dtype": "fp16", "accum": 2}, {"optimizer": "adamw_8bit", "dtype": "bf16"}])
def test_a_broken_off_run_of_any_kind_goes_on_to_the_same_bytes(stage, tmp_path, how, capsys):
    whole, prepared = stage(steps=6, save_every=2, lora_rank=4, warmup=0, lr=1e-3, **how)
    results = train.train(whole, prepared)
    broken = replace(whole, out=str(tmp_path / "broken"))

    def stop(line):
        if line["step"] == 5:
            raise KeyboardInterrupt  # as a person would, in the middle

    with pytest.raises(KeyboardInterrupt):
        train.train(broken, prepared, watching=stop)
    assert not broken.finished
    torch.manual_seed(99)  # what is drawn hangs on the run alone
    train.train(broken, prepared)
    drop = ("seconds", "tokens_per_s", "targets_per_s", "mfu", "peak_gib")
    assert [{k: v for k, v in x.items() if k not in drop} for x in lines(whole)] == [{k: v for k, v in x.items() if k not in drop} for x in lines(broken)]
    for folder in ("adapter", "model") if "method" in how else ("model",):
        a, b = ((c.folder / folder / f"{'adapter_' * (folder == 'adapter')}model.safetensors").read_bytes() for c in (whole, broken))
        assert a == b and len(a) > 1000
    assert results["last_loss"] < results["first_loss"]
    if "method" in how:
        assert results["merged"]["same_top"] > 0.9 and "merged stage2_chatgpt: logits differ by at most" in capsys.readouterr().out


def test_a_stage_with_an_adapter_is_sealed_with_what_it_stands_on(stage, tmp_path):
    one, prepared = stage(method="lora", lora_rank=4, steps=2)
    train.train(one, prepared)
    two, ready = stage(name="stage3_gpt4", method="lora", lora_rank=4, steps=2)
    train.train(two, ready, one.folder / "model")
    seal = config.read_json(two.folder / "config.json")["seal"]
    assert seal["base"] == "seed 0" and len(seal["adapter"]) == 16
    file = one.folder / "adapter" / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-4] + b"\0\0\0\0")
    with pytest.raises(ValueError, match=r"holds a run with other inputs \(adapter: '[0-9a-f]{16}' -> '[0-9a-f]{16}'\)"):
        train.train(two, ready, one.folder / "model")


def test_another_way_of_computing_is_told_when_a_run_goes_on(stage, capsys):
    cfg, prepared = stage(steps=4, save_every=2)

    def stop(line):
        if line["step"] == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train.train(cfg, prepared, watching=stop)
    state = cfg.folder / "checkpoints" / "step-000002" / "state.json"
    made = config.read_json(state)
    made["note"]["versions"]["torch"] = "2.0"
    made.pop("digest")
    config.write_json(state, {**made, "digest": config.digest(made, 64)})
    train.train(cfg, prepared)
    assert f"goes on computed in another way (torch: '2.0' -> '{torch.__version__}'): losses may differ in their last digits" in capsys.readouterr().out
