"""adapter.py: an adapter learns and nothing else does, the merged model is the trained one, and a wrong merge is refused; with peft and NF4 themselves."""

import json
import logging
import warnings

import pytest
import torch
from conftest import wild

from orcalab import adapter, attention, chatml, generate, loss as losses, model as models
from orcalab.config import Config, read_json

LENGTHS = [7, 60, 1, 41]
FP32, BF16 = torch.float32, torch.bfloat16


def bare_tokenizer():
    """A tokenizer of the 256 bytes and an end, as bases have it: it lacks what ChatML needs."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast
    spec = json.loads(models.tiny_random()[1].backend_tokenizer.to_str())
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps({**spec, "added_tokens": []})), eos_token="</s>")


def make_base(folder, tied, seed=0, tokenizer=None):
    """Write a random base model that knows nothing of ChatML; return the folder."""
    from transformers import LlamaConfig, LlamaForCausalLM
    tokenizer = tokenizer or bare_tokenizer()
    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=192, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        tie_word_embeddings=tied, bos_token_id=None, eos_token_id=tokenizer.eos_token_id))
    wild(model).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module", autouse=True)
def no_warning():
    adapter.guests()


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def base(request, tmp_path_factory):
    return make_base(tmp_path_factory.mktemp("base"), request.param)


@pytest.fixture(scope="module")
def tied(tmp_path_factory):
    return make_base(tmp_path_factory.mktemp("base"), True)


def is_tied(base):
    return read_json(f"{base}/config.json")["tie_word_embeddings"]


def config(method="lora", **changes):
    return Config(**{"name": "stage1", "method": method, "lora_rank": 4, "lora_alpha": 8.0, **changes})


def stir(model, size=0.1):
    """Give what is trained other values, the same each time, as training does: a fresh adapter adds nothing."""
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in adapter.weights_of(model).items():
            p.copy_(size * torch.randn(p.shape, generator=g) + (p if "trainable_tokens" in name else 0))
    return model


def draw(vocab, seed=1):
    """Examples that hold every id of the vocabulary's end, where new tokens are: ids, position, labels."""
    g = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, vocab, (sum(LENGTHS),), generator=g)
    ids[:7] = torch.arange(vocab - 7, vocab)
    labels = torch.where(torch.rand(len(ids), generator=g) < 0.4, torch.randint(0, vocab, (len(ids),), generator=g), -100)
    return ids, torch.cat([torch.arange(n) for n in LENGTHS]), labels


def backward(model, cfg=None):
    """One step's loss by the rooms that train, and its gradients."""
    attention.isolate(model, "documents").train().zero_grad()
    ids, position, labels = draw(model.config.vocab_size)
    total, _ = losses.loss_sum(model, ids, position, {"lengths": LENGTHS}, labels)
    total.backward()
    return total.item(), {n: p.grad.clone() for n, p in adapter.weights_of(model).items()}


def naive(model):
    """The same by hand: one example at a time, transformers' own attention, full logits."""
    model.train().zero_grad()
    model.set_attn_implementation("sdpa")
    ids, _, labels = draw(model.config.vocab_size)
    total = 0.0
    for x, y in zip(ids.split(LENGTHS), labels.split(LENGTHS)):
        out = torch.nn.functional.cross_entropy(model(input_ids=x[None], use_cache=False).logits[0], y, ignore_index=-100, reduction="sum")
        out.backward()
        total += out.item()
    return total, {n: p.grad.clone() for n, p in adapter.weights_of(model).items()}


def frozen(model):
    """Every weight that is not trained, by name, with the scales of quantised ones."""
    return {n: t.clone() for n, t in model.state_dict().items() if "lora_" not in n and "trainable_tokens" not in n and torch.is_tensor(t)}


# ---------------------------------------------------------------------------------------------- learning

def test_what_is_saved_is_what_was_trained(tied, tokenizer, tmp_path):
    cfg = config()
    model, tok, _ = adapter.load(cfg, tied, FP32, "cpu")
    with pytest.raises(ValueError, match=r"stage1 was trained with another vocabulary or tokenizer than it would be saved with \(tokenizer \w+ -> \w+\): hand over those"):
        adapter.finish(tmp_path, model, tokenizer, cfg)
    model.config.vocab_size = 999
    with pytest.raises(ValueError, match=r"saved with \(vocabulary 260 -> 999\)"):
        adapter.finish(tmp_path, model, tok, cfg)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("on", ["layers", "head"])
@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_the_adapter_learns_and_nothing_else(base, method, on):
    model, tok, origin = adapter.load(config(method, lora_on=on), base, FP32, "cpu")
    layers = [f"model.layers.{i}.{p}" for i in (0, 1) for p in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
                                                                 "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")] + ["lm_head"] * (on == "head")
    tables = ["model.embed_tokens"] + ["lm_head"] * (on == "layers" and not is_tied(base))
    want = {f"base_model.model.{n}.lora_{m}.weight" for n in layers for m in "AB"} | {f"base_model.model.{n}.token_adapter.trainable_tokens_delta" for n in tables}
    trained = adapter.weights_of(model)
    assert set(trained) == want and {p.dtype for p in trained.values()} == {FP32} and origin["trained"] == sum(p.numel() for p in trained.values())
    assert (tok.pad_token_id, adapter.new_rows(tok), len(tok)) == (257, [258, 259], 260)
    assert all(trained[f"base_model.model.{n}.token_adapter.trainable_tokens_delta"].shape == (2, 64) for n in tables)
    before, was = frozen(model), {n: p.detach().clone() for n, p in trained.items()}
    _, grads = backward(stir(model))
    assert all(g.abs().max() > 0 for g in grads.values()) and not [n for n, p in model.named_parameters() if (p.grad is not None) != p.requires_grad]
    torch.optim.AdamW(trained.values(), lr=1e-2, weight_decay=0.1).step()
    assert all((trained[n] != was[n]).all() for n in trained if "trainable_tokens" in n)
    after = frozen(model)
    assert before.keys() == after.keys() and all(torch.equal(before[n], after[n]) for n in before)


@pytest.mark.parametrize("on", ["layers", "head"])
@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_loss_and_gradients_are_those_of_a_plain_loop(base, method, on):
    model = stir(adapter.load(config(method, lora_on=on), base, FP32, "cpu")[0])
    ours, grads = backward(model)
    theirs, plain = naive(model)
    assert ours == pytest.approx(theirs, rel=1e-5)
    for name, g in grads.items():
        torch.testing.assert_close(g, plain[name], rtol=1e-3, atol=1e-4 * plain[name].abs().max().item(), msg=lambda m: f"{name}: {m}")


def test_a_new_adapter_adds_nothing(base):
    model, tok, _ = adapter.load(config(), base, FP32, "cpu")
    plain = models.load(base)[0]
    assert all(torch.equal(a, b) for a, b in zip(adapter.logits(model, tok), adapter.logits(plain, tok)))


def test_a_look_in_eval_mode_does_not_stop_gradients(tied):
    """bitsandbytes repacks 4-bit weights in eval mode on CPUs with AVX512-bf16; no gradient goes through what it makes."""
    load = lambda: stir(adapter.load(config("qlora"), tied, BF16, "cpu")[0])
    fresh, looked, tok = load(), load(), models.load_tokenizer(tied)
    adapter.logits(looked, tok)
    (a, wanted), (b, got) = backward(fresh), backward(looked)
    assert a == b and all(torch.equal(wanted[n], got[n]) for n in wanted)


def test_in_bf16_the_adapter_is_fp32_and_computes_in_bf16(tied):
    model = adapter.load(config(), tied, BF16, "cpu")[0]
    assert model.dtype == BF16 and {p.dtype for p in adapter.weights_of(model).values()} == {FP32}
    seen = []
    model.base_model.layers[0].mlp.up_proj.lora_A["default"].register_forward_hook(lambda m, x, out: seen.append((x[0].dtype, out.dtype)))
    loss, grads = backward(stir(model))
    assert seen == [(BF16, BF16)] and {g.dtype for g in grads.values()} == {FP32}
    exact = backward(stir(adapter.load(config(), tied, FP32, "cpu")[0]))
    assert loss == pytest.approx(exact[0], rel=0.02)
    for name, g in grads.items():
        assert torch.cosine_similarity(g.flatten(), exact[1][name].flatten(), 0) > 0.98, name


def test_quantised_bytes_do_not_depend_on_when_rows_were_added(base, tmp_path):
    grown, tok, _ = models.load(base, BF16)
    models.save(tmp_path / "grown", grown, tok)
    after, before = (frozen(adapter.load(config("qlora"), b, BF16, "cpu")[0]) for b in (base, str(tmp_path / "grown")))
    assert before.keys() == after.keys() and all(torch.equal(before[n], after[n]) for n in before)
    kinds = {n: t.dtype for n, t in after.items() if n.endswith(("weight", "base_layer.weight"))}
    assert {n for n, t in kinds.items() if t == torch.uint8} == {n for n in kinds if "_proj" in n} and len([n for n in kinds if "_proj" in n]) == 14
    assert {t for n, t in kinds.items() if "_proj" not in n} == {BF16}
    assert any("nested_absmax" in n for n in after)  # double quantisation


# ---------------------------------------------------------------------------------------------- merging

@pytest.mark.parametrize("method, dtype, on", [("lora", FP32, "layers"), ("lora", BF16, "layers"), ("lora", BF16, "head"), ("qlora", BF16, "layers"),
                                               ("qlora", BF16, "head"), ("qlora", torch.float16, "layers")], ids=lambda x: str(x).removeprefix("torch."))
def test_the_merged_model_says_what_the_adapter_said(base, method, dtype, on, tmp_path, capsys):
    from transformers import AutoModelForCausalLM, AutoTokenizer
    cfg = config(method, lora_on=on, lora_dropout=0.5)
    model, tok, _ = adapter.load(cfg, base, dtype, "cpu")
    want = adapter.logits(stir(model), tok)
    fresh = adapter.logits(models.load(base, dtype)[0], tok)
    model.train()  # finish switches dropout off by itself
    numbers = adapter.finish(tmp_path, model, tok, cfg)
    assert set(numbers) == {"max", "mean", "relative", "same_top", "kl", "noise"} and numbers["relative"] <= 2 * numbers["noise"]
    assert numbers["relative"] < {FP32: 3e-6, BF16: 0.05, torch.float16: 0.01}[dtype] and adapter.compare(want, fresh)["relative"] > 0.3
    assert f"merged stage1: logits differ by at most {numbers['max']:.2g}, on average" in capsys.readouterr().out
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert type(plain).__name__ == "LlamaForCausalLM" and plain.dtype == dtype and not hasattr(plain.config, "quantization_config")
    assert plain.config.tie_word_embeddings == (on == "layers" and is_tied(base))
    assert not any("lora" in n or "token_adapter" in n or "absmax" in n for n in plain.state_dict()) and {t.dtype for t in plain.state_dict().values()} == {dtype}
    assert adapter.compare(want, adapter.logits(plain, tok))["relative"] == pytest.approx(numbers["relative"])
    assert models.load_tokenizer(tmp_path / "model").get_vocab() == AutoTokenizer.from_pretrained(tmp_path / "adapter").get_vocab() == tok.get_vocab()
    assert plain.get_input_embeddings().num_embeddings == plain.config.vocab_size == len(tok)


def test_a_merge_onto_other_weights_is_refused(tied, tmp_path, monkeypatch):
    """The commonest wrong merge: onto the weights before they were quantised."""
    cfg, real = config("qlora"), adapter.merge
    model, tok, _ = adapter.load(cfg, tied, BF16, "cpu")
    stir(model)

    def onto_unquantised(model, home):
        right, fresh = models.load(tied, BF16)[0], adapter.load(cfg, tied, BF16, "cpu")[0]
        real(model, home)
        real(fresh, home)
        with torch.no_grad():
            for (n, p), (_, w), (_, q) in zip(model.named_parameters(), right.named_parameters(), fresh.named_parameters()):
                if "_proj" in n:
                    p += w - q
    monkeypatch.setattr(adapter, "merge", onto_unquantised)
    (tmp_path / "model").mkdir()
    with pytest.raises(ValueError, match=r"the merged model of stage1 does not say what its adapter says: logits differ by at most .*, 0\.\d+ of their spread "
                                         r"\(limit 0\.\d+\); same first choice [\d.]+%; KL .* nats\. .*adapter is whole: use it on .* without merging, or train with dtype fp32"):
        adapter.finish(tmp_path, model, tok, cfg)
    assert [p.name for p in tmp_path.iterdir()] == ["adapter"]


@pytest.mark.parametrize("on", ["layers", "head"])
@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_peft_alone_loads_the_adapter(base, method, on, tmp_path):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
    cfg = config(method, lora_on=on)
    model, tok, _ = adapter.load(cfg, base, FP32, "cpu")
    want = adapter.logits(stir(model), tok)
    adapter.finish(tmp_path, model, tok, cfg)
    nf4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=FP32)
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=FP32, **({"quantization_config": nf4, "device_map": "cpu"} if method == "qlora" else {}))
    models.grow(plain, len(AutoTokenizer.from_pretrained(tmp_path / "adapter")))
    if on == "head" and plain.config.tie_word_embeddings:
        plain.lm_head.weight, plain.config.tie_word_embeddings = torch.nn.Parameter(plain.lm_head.weight.detach().clone()), False
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing. is deprecated", FutureWarning)  # between peft and transformers
        theirs = PeftModel.from_pretrained(plain, tmp_path / "adapter")
    for layer in theirs.modules():
        layer.support_avx512bf16_for_cpu = False  # else bitsandbytes computes in bf16 here
    got = adapter.logits(theirs.base_model.model, tok)
    assert adapter.compare(want, got)["max"] < 1e-4 and read_json(tmp_path / "adapter/adapter_config.json")["base_model_name_or_path"] == base


# ---------------------------------------------------------------------------------------------- stages

@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_a_stage_goes_on_with_the_adapter_of_the_one_before(tied, method, tmp_path, capsys):
    cfg = config(method)
    one, tok, _ = adapter.load(cfg, tied, BF16, "cpu")
    was, ground = {n: p.detach().clone() for n, p in adapter.weights_of(stir(one)).items()}, frozen(one)
    want = adapter.logits(one, tok)
    adapter.finish(tmp_path / "one", one, tok, cfg)
    note = read_json(tmp_path / "one/adapter/orcalab.json")
    assert note == {"base": tied, "digest": models.weights_digest(tied), "rope": "", "method": method, "lora_rank": 4, "lora_alpha": 8.0, "lora_on": "layers",
                    "vocabulary": 260, "tokenizer": chatml.fingerprint(tok), "template": "chatml"}
    start = str(tmp_path / "one/model")
    two, tok, origin = adapter.load(config(method, name="two", lora_dropout=0.1, lr=1e-5), start, BF16, "cpu")
    now, own = adapter.weights_of(two), frozen(two)
    assert was.keys() == now.keys() and all(torch.equal(was[n], now[n]) for n in was) and all(torch.equal(ground[n], own[n]) for n in ground)
    assert all(torch.equal(a, b) for a, b in zip(want, adapter.logits(two, tok)))
    assert origin == {"from": start, "digest": models.weights_digest(start), "parameters": models.load(tied)[2]["parameters"], "base": tied,
                      "base_digest": note["digest"], "adapter": str(tmp_path / "one/adapter"), "trained": sum(p.numel() for p in now.values())}
    full, tok, _ = models.load(start, BF16)  # a full stage, or another method, begins with the merged model
    assert adapter.compare(want, adapter.logits(full, tok))["relative"] < 0.05
    capsys.readouterr()
    other = adapter.load(config(method, name="two", lora_rank=2), start, BF16, "cpu")
    assert (other[2]["base"], other[2]["adapter"], other[2]["from"]) == (start, "", start)
    assert not any(p.any() for n, p in adapter.weights_of(other[0]).items() if "lora_B" in n)
    assert capsys.readouterr().out == f"{tmp_path / 'one/adapter'} is not trained on (lora_rank: 4 -> 2): two begins a new adapter on {start}\n"
    if method == "qlora":  # why: quantised again, the merged weights are not what the stage before left
        again = adapter.compare(want, adapter.logits(other[0], tok))["relative"]
        assert again > 5 * adapter.compare(want, adapter.logits(full, tok))["relative"]


def test_an_adapter_whose_base_changed_is_refused(tmp_path):
    base, cfg = make_base(tmp_path / "base", True), config()
    adapter.finish(tmp_path / "one", *adapter.load(cfg, base, FP32, "cpu")[:2], cfg)
    make_base(tmp_path / "base", True, seed=1)
    start = str(tmp_path / "one/model")
    with pytest.raises(ValueError, match=r"adapter was trained on .*base with digest [0-9a-f]{16}, and there is [0-9a-f]{16} now: restore that base, or move the folder away"):
        adapter.load(cfg, start, FP32, "cpu")
    (tmp_path / "base").rename(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=r"and there is nothing \(.*\) now: restore that base"):
        adapter.load(cfg, start, FP32, "cpu")
    (tmp_path / "one/adapter").rename(tmp_path / "one/away")
    assert adapter.load(cfg, start, FP32, "cpu")[2]["base"] == start


def test_a_foreign_adapter_is_refused(tmp_path):
    base, cfg, start = make_base(tmp_path / "base", True), config(), tmp_path / "one/model"
    adapter.finish(tmp_path / "one", *adapter.load(cfg, base, FP32, "cpu")[:2], cfg)
    file = tmp_path / "base/tokenizer.json"
    good = file.read_text()
    file.write_text(good.replace('"add_prefix_space": false', '"add_prefix_space": true').replace('"add_prefix_space":false', '"add_prefix_space":true'))
    with pytest.raises(ValueError, match=r"one.adapter does not fit its base .*base any more \(tokenizer \w+ -> \w+\): restore the base's files, or move that folder away"):
        adapter.load(cfg, start, FP32, "cpu")
    file.write_text(good)
    note = tmp_path / "one/adapter/orcalab.json"
    note.write_text(note.read_text().replace('"vocabulary": 260', '"vocabulary": 32003'))
    with pytest.raises(ValueError, match=r"any more \(vocabulary 32003 -> 260\)"):
        adapter.load(cfg, start, FP32, "cpu")
    note.write_text(note.read_text().replace("32003", "260").replace('"lora_rank": 4', '"lora_rank": 2'))
    with pytest.raises(ValueError, match=r"any more \(base_model.model.model.layers.0.mlp.down_proj.lora_A.weight\)"):
        adapter.load(config(lora_rank=2), start, FP32, "cpu")


@pytest.mark.parametrize("method, on", [("lora", "layers"), ("lora", "head"), ("qlora", "layers")])
def test_a_student_answers_with_an_adapter_as_with_the_merged_model(base, method, on, tmp_path):
    """The adapter of a stage in its base, merged, and each in 4 bits: the same text for the same weights, another for others."""
    cfg = config(method, lora_on=on)
    model, tok, _ = adapter.load(cfg, base, FP32, "cpu")
    adapter.finish(tmp_path / "one", stir(model, 0.05), tok, cfg)
    whole, put, four = [generate.Student(tmp_path / "one" / name, "cpu", "fp32", four_bit=bits) for name, bits in (("", False), ("adapter", False), ("adapter", True))]
    prompts = [whole.prompt(q, s) for q in ("2+2", "Who scorns geese?", "") for s in ("", "cautious")]
    assert whole.answer(prompts, 8) == put.answer(prompts, 8) == generate.Student(tmp_path / "one/model", "cpu", "fp32").answer(prompts, 8)
    assert generate.Student(base, "cpu", "fp32").answer(prompts, 8) != whole.answer(prompts, 8)
    want, got = adapter.logits(put.model, tok), adapter.logits(four.model, tok)
    assert adapter.compare(want, got)["relative"] == pytest.approx(0, abs=1e-6 if method == "qlora" else 0.6)  # of lora, four bits round the base, which is narrow and wild here
    assert put.origin["from"] == str(tmp_path / "one/adapter") and put.origin["digest"] == f"{models.weights_digest(base)}+{adapter.seal(tmp_path / 'one/adapter')}"
    quantised = {type(m).__name__ for m in four.model.modules()} & {"Linear4bit"}
    assert quantised and "Linear4bit" in {type(m).__name__ for m in generate.Student(tmp_path / "one", "cpu", "fp32", four_bit=True).model.modules()}
    (tmp_path / "one/adapter/orcalab.json").unlink()
    with pytest.raises(ValueError, match=r"one.adapter is an adapter of another program: merge it with peft \(merge_and_unload, save_pretrained\), and give that folder"):
        generate.Student(tmp_path / "one/adapter")


def test_a_model_that_has_its_marks_trains_no_rows(tmp_path):
    """SmolLM2-Instruct's case: its own vocabulary has the marks of ChatML."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast
    spec = json.loads(bare_tokenizer().backend_tokenizer.to_str())
    spec["model"]["vocab"] |= {chatml.START: 256, chatml.END: 257, "<|endoftext|>": 258}
    spec["added_tokens"] = []
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(spec)), eos_token=chatml.END, pad_token="<|endoftext|>",
                                        additional_special_tokens=[chatml.START])
    model, tok, _ = adapter.load(config("qlora"), make_base(tmp_path / "b", False, tokenizer=tokenizer), FP32, "cpu")
    assert adapter.new_rows(tok) == [] and all("lora_" in n for n in adapter.weights_of(model))
    model, tok, _ = adapter.load(config("qlora"), "tiny-random", FP32, "cpu")  # whose marks stand behind its 256 bytes
    assert adapter.new_rows(tok) == [257, 258] and not {tok.pad_token_id} & {257, 258}


# ---------------------------------------------------------------------------------------------- machines

def test_only_noise_is_silenced(caplog):
    adapter.guests()
    log = logging.getLogger("bitsandbytes.backends.cpu.ops")
    with caplog.at_level(logging.WARNING):
        log.warning("Failed to load CPU gemm_4bit_forward from kernels-community: %s.", "no module named kernels")
        log.warning("something that matters")
    assert caplog.messages == ["something that matters"]


def test_fp16_is_for_gpus_without_bf16(monkeypatch):
    assert models.pick("cpu", "fp16") == ("cpu", torch.float16)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)  # no such machine is at hand
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)  # as a T4 answers
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    assert models.pick("cuda", "auto") == ("cuda", torch.float32) and models.pick("cuda", "auto", "qlora") == ("cuda", torch.float16) and models.pick("cuda", "fp16") == ("cuda", torch.float16)
    with pytest.raises(ValueError, match="dtype is 'bf16', and Tesla T4 has no instructions for it; choose 'fp16' with method lora or qlora, else 'fp32'"):
        models.pick("cuda", "bf16")


@pytest.mark.long
@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_a_real_model_merges(method, tmp_path):
    cfg = config(method, lora_rank=16, lora_alpha=16.0)
    model, tok, origin = adapter.load(cfg, "smollm2-135m", BF16, "cpu")
    assert origin["trained"] == 4_884_480 and origin["parameters"] == 134_515_008 and adapter.new_rows(tok) == []
    numbers = adapter.finish(tmp_path, stir(model, 0.02), tok, cfg)
    assert numbers["relative"] < 2 * numbers["noise"] < 0.2 and numbers["kl"] < 0.01
