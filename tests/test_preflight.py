"""preflight.py: what training relies on is looked at before step 1, and each failure says what to change."""

import math
from dataclasses import replace

import pytest
import torch

from orcalab import attention, config, forecast, model as models, train
from orcalab.preflight import preflight


def test_the_report_of_a_sound_start(stage, tiny):
    cfg, prepared = stage()
    model, tokenizer = tiny
    report = preflight(attention.isolate(model), prepared, tokenizer, cfg, cfg.folder)
    assert report["leak"] == 0 and report["difference"] < 1e-5 and report == config.read_json(cfg.folder / "preflight.json")
    first = prepared.rows[prepared.plan[0][0]].messages[-1]["content"]
    assert report["targets_of_first_row"] == f"\n{first}<|im_end|>"
    assert report["answers"] == report["answers_that_end"] > 1 and report["attention"] == "documents"
    assert report["loss_of_knowing_nothing"] == pytest.approx(math.log(len(tokenizer))) == pytest.approx(report["loss_first"], abs=0.1)


def test_a_start_with_broken_weights_is_refused(stage, tmp_path, tiny):
    cfg, prepared = stage()
    with torch.no_grad():
        tiny[0].model.norm.weight.fill_(float("nan"))
    models.save(tmp_path / "nan", *tiny)
    with pytest.raises(ValueError, match="the starting model's loss is nan: its weights are broken"):
        train.train(cfg, prepared, tmp_path / "nan")


def test_weights_that_know_less_than_nothing_are_refused(stage, tiny):
    cfg, prepared = stage()
    with torch.no_grad():
        tiny[0].model.embed_tokens.weight.mul_(100)  # as a table that belongs to another tokenizer would be: sure, and wrong
    with pytest.raises(ValueError, match=r"the starting model loses \d+\.\d\d a target, more than one that knows nothing \(5\.56\): weights and tokenizer do not belong together"):
        preflight(attention.isolate(tiny[0]), prepared, tiny[1], cfg, cfg.folder)


def test_attention_that_leaks_is_seen(stage, tiny):
    from transformers import AttentionInterface, AttentionMaskInterface
    cfg, prepared = stage()
    def leaks(model, kind="documents"):
        whole = lambda module, query, *a, lengths=None, **k: attention.packed_attention(module, query, *a, lengths=[query.shape[2]], **k)
        AttentionInterface.register("leaks", whole)  # one causal attention over the whole pack
        AttentionMaskInterface.register("leaks", lambda *a, **k: None)
        model.set_attn_implementation("leaks")
        return model

    with pytest.raises(ValueError, match="packed examples see each other: loss .* packed, .* alone"):
        preflight(leaks(tiny[0]), prepared, tiny[1], cfg, cfg.folder)


def test_logits_that_are_scaled_elsewhere_are_seen(stage, tiny):
    """Granite divides its logits: packed equals alone all the same, so only the model's own forward pass can tell."""
    from transformers import GraniteConfig, GraniteForCausalLM
    cfg, prepared = stage()
    small = {k: getattr(tiny[0].config, k) for k in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
                                                     "num_key_value_heads", "max_position_embeddings", "pad_token_id", "eos_token_id", "bos_token_id")}
    for scale, refused in ((1.0, False), (4.0, True)):
        torch.manual_seed(0)
        model = attention.isolate(GraniteForCausalLM(GraniteConfig(**small, logits_scaling=scale)))
        if refused:
            with pytest.raises(ValueError, match="the first .* lose .* here and .* in the model's own forward pass"):
                preflight(model, prepared, tiny[1], cfg, cfg.folder)
        else:
            report = preflight(model, prepared, tiny[1], cfg, cfg.folder)
            assert abs(report["loss_first_own"] - report["loss_first"]) < 1e-4 and report["difference"] < 1e-4


def test_an_answer_without_its_end_is_refused(stage, tiny):
    cfg, prepared = stage(seq_len=1024)
    spared = {int(i) for i in (prepared.plan[0] * 2)[:2]}  # these are proved word by word before

    class Cut:
        """The same examples, the last target of each not learned."""
        def __getitem__(self, i):
            ids, mask = prepared.examples[i]
            mask = mask.copy()
            mask[mask.nonzero()[0][-1]] &= int(i) in spared
            return ids, mask

    with pytest.raises(ValueError, match=r"\d+ of the first \d+ answers do not end with the token that ends an answer \(<\|im_end\|>\): a model that never sees it never stops"):
        preflight(attention.isolate(tiny[0]), replace(prepared, examples=Cut()), tiny[1], cfg, cfg.folder)


def test_layers_that_go_wrong_in_training_mode_are_seen(stage, tiny):
    cfg, prepared = stage(recompute=1)
    model = attention.arrange(tiny[0], cfg, "documents")
    layer = model.model.layers[1]
    right = layer.forward
    layer.forward = lambda x, *a, **k: right(x.flip(1) if layer.training else x, *a, **k)
    with pytest.raises(ValueError, match=r"in training mode the first examples lose .*, else .* \(limit 0.0001\): compiled layers, or layers computed again, go wrong here; choose compile 'no' and recompute 0"):
        preflight(model, prepared, tiny[1], cfg, cfg.folder)
    layer.forward = right
    report = preflight(model, prepared, tiny[1], cfg, cfg.folder)
    assert report["loss_learning"] == pytest.approx(report["loss_packed"], abs=1e-5)


def test_what_does_not_fit_is_refused_before_weights_are_loaded(stage, monkeypatch):
    cfg, prepared = stage()
    monkeypatch.setattr(forecast, "room", lambda device: 0.4)  # GiB
    monkeypatch.setattr(models, "load", None)
    with pytest.raises(ValueError, match=r"stage2_chatgpt needs 0\.\d+ GiB at its peak, and cpu has 0\.4; no setting makes it fit: choose a smaller base, a shorter seq_len \(512\) or a larger device"):
        train.train(cfg, prepared)
    monkeypatch.undo()
    monkeypatch.setattr(models, "load", None)
    with pytest.raises(OSError, match="10000001 checkpoints and the model"):
        train.train(replace(cfg, keep=10_000_000), prepared)
