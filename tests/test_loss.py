"""loss.py: the plain cross-entropy of targets, to the gradient of every weight, whatever the output layer is; logits of all tokens never exist."""

import pytest
import torch
import torch.nn.functional as F
from conftest import wild
from torch.utils._python_dispatch import TorchDispatchMode

from orcalab import adapter, attention, loss

LENGTHS = [7, 120, 1, 41]


def small(tied=True, **more):
    """A Llama of the size of tiny-random, with grouped queries, that listens to every token."""
    from transformers import LlamaConfig, LlamaForCausalLM
    torch.manual_seed(5)
    return wild(LlamaForCausalLM(LlamaConfig(vocab_size=259, hidden_size=64, intermediate_size=192, num_hidden_layers=2, num_attention_heads=4,
                                             num_key_value_heads=2, tie_word_embeddings=tied, bos_token_id=None, eos_token_id=None, **more)))


def draw(lengths=LENGTHS, vocab=259, share=0.4):
    g = torch.Generator().manual_seed(1)
    ids = torch.randint(0, vocab, (sum(lengths),), generator=g)
    labels = torch.where(torch.rand(len(ids), generator=g) < share, torch.randint(0, vocab, (len(ids),), generator=g), -100)
    return ids, torch.cat([torch.arange(n) for n in lengths]), labels


def ours(model, chunk=0, divide=1.0):
    """The loss, each target's, and the gradient of every weight, by the room."""
    attention.isolate(model).zero_grad()
    ids, position, labels = draw()
    total, each = loss.loss_sum(model, ids, position, {"lengths": LENGTHS}, labels, chunk)
    (total / divide).backward()
    assert total.dtype == each.dtype == torch.float32 and not each.requires_grad and len(each) == (labels >= 0).sum()
    return total.item(), each, {n: p.grad for n, p in model.named_parameters() if p.requires_grad}


def naive(model, divide=1.0):
    """The same by the model's own forward pass: one document at a time, full logits, a loop."""
    model.set_attn_implementation("sdpa")
    model.zero_grad()
    ids, _, labels = draw()
    each = []
    for part, wanted in zip(ids.split(LENGTHS), labels.split(LENGTHS)):
        logits = model(input_ids=part[None], use_cache=False).logits[0].float()
        one = F.cross_entropy(logits, wanted, ignore_index=-100, reduction="none")
        (one.sum() / divide).backward()
        each.append(one.detach()[wanted >= 0])
    return torch.cat(each).sum().item(), torch.cat(each), {n: p.grad for n, p in model.named_parameters() if p.requires_grad}


def agree(got, want):
    assert got[0] == pytest.approx(want[0], rel=1e-6) and got[2].keys() == want[2].keys() and len(got[2]) > 0
    torch.testing.assert_close(got[1], want[1], rtol=1e-5, atol=2e-6)
    for name, g in want[2].items():
        assert g.abs().max() > 0
        torch.testing.assert_close(got[2][name], g, rtol=1e-4, atol=3e-6 * g.abs().max().item(), msg=lambda m: f"{name}: {m}")


def grads(result):
    return {n: g.clone() for n, g in result[2].items()}


# ---------------------------------------------------------------------------------------------- a plain output layer

@pytest.mark.parametrize("tied", (True, False))
@pytest.mark.parametrize("chunk", (1, 50, 0))
def test_loss_and_every_gradient_equal_a_plain_loop(chunk, tied):
    got = ours(small(tied), chunk, divide=3)
    assert len(got[2]) == (20 if tied else 21)
    agree(got, naive(small(tied), divide=3))


def test_bf16_is_as_near_to_fp32_as_transformers_own_bf16():
    """One fused step in bf16, and a plain loop in bf16, against a plain loop in fp32 with the very same weights."""
    exact = naive(small().bfloat16().float())
    near = {name: side(small().bfloat16()) for name, side in (("ours", ours), ("plain", naive))}
    off = {name: {n: ((g.float() - exact[2][n]).norm() / exact[2][n].norm()).item() for n, g in r[2].items()} for name, r in near.items()}
    assert abs(near["ours"][0] - exact[0]) < 2e-3 * exact[0]
    for name in exact[2]:
        assert off["ours"][name] < max(1.5 * off["plain"][name], 0.01), (name, off["ours"][name], off["plain"][name])


def test_a_frozen_output_layer_gets_no_gradient_and_costs_none():
    model = small(tied=False)
    want = grads(ours(model))
    del want["lm_head.weight"]
    model.lm_head.weight.requires_grad_(False)
    with Sizes() as seen:
        got = ours(model)
    assert got[2].keys() == want.keys() and all(torch.equal(g, want[n]) for n, g in got[2].items())
    assert model.lm_head.weight.grad is None and (259, 64) not in [s for s, name in seen.made if "mm" in name]


def test_a_loss_of_no_targets_is_zero():
    for model in (small(), with_bias(small(tied=False))):
        attention.isolate(model)
        ids, position, labels = draw()
        total, each = loss.loss_sum(model, ids, position, {"lengths": LENGTHS}, torch.full_like(labels, -100))
        total.backward()
        assert total.item() == 0.0 and len(each) == 0 and all((p.grad == 0).all() for p in model.parameters())


def test_a_fresh_model_knows_nothing(tiny):
    ids, position, labels = draw()
    total, each = loss.loss_sum(attention.isolate(tiny[0]), ids, position, {"lengths": LENGTHS}, labels)
    assert total.item() / len(each) == pytest.approx(torch.tensor(259).log().item(), abs=0.1)


# ---------------------------------------------------------------------------------------------- any other

def with_bias(model):
    head = torch.nn.Linear(64, 259)
    with torch.no_grad():
        head.weight.copy_(model.lm_head.weight)
        head.bias.copy_(torch.linspace(-1, 1, 259))
    model.set_output_embeddings(head)
    return model


def with_lora(model, on, dropout=0.0, **more):
    adapter.guests()
    import peft
    torch.manual_seed(3)
    peft.inject_adapter_in_model(peft.LoraConfig(r=4, lora_alpha=32, lora_dropout=dropout, init_lora_weights=False, target_modules=on, **more), model)
    return model


def in_4_bits(model):
    """The model with a frozen output layer in NF4, and LoRA in its layers."""
    adapter.guests()
    import bitsandbytes
    head = bitsandbytes.nn.Linear4bit(64, 259, bias=False, compute_dtype=torch.float32, quant_type="nf4")
    head.weight = bitsandbytes.nn.Params4bit(model.lm_head.weight.detach().clone(), requires_grad=False, quant_type="nf4")
    model.set_output_embeddings(head.to("cpu"))
    return with_lora(model, ["q_proj", "down_proj"])


def without_tables(model):
    """All frozen but LoRA; the head has it, too."""
    return with_lora(model, ["q_proj", "down_proj", "lm_head"])


HEADS = {
    "bias": lambda: with_bias(small(tied=False)),
    "LoRA": lambda: without_tables(small(tied=False)),
    "LoRA alone": lambda: with_lora(small(tied=False), ["lm_head"]),
    "new rows, tied": lambda: with_lora(small(), ["q_proj"], trainable_token_indices={"embed_tokens": [256, 258]}),
    "new rows, untied": lambda: with_lora(small(tied=False), ["q_proj"], trainable_token_indices={"embed_tokens": [256, 258], "lm_head": [256, 258]}),
    "4 bits": lambda: in_4_bits(small(tied=False)),
}


@pytest.mark.parametrize("chunk", (30, 0))
@pytest.mark.parametrize("name", HEADS)
def test_any_head_equals_a_plain_loop(name, chunk):
    model = HEADS[name]()
    assert type(model.get_output_embeddings()) is not torch.nn.Linear or model.get_output_embeddings().bias is not None
    got = ours(model, chunk, divide=3)
    got = got[0], got[1], grads(got)
    agree(got, naive(model, divide=3))


def test_what_a_head_drops_is_dropped_in_its_gradient():
    """LoRA with dropout on the head alone: the same states through the same head after the same seed, all at once and by autograd."""
    model = attention.isolate(with_lora(small(tied=False), ["lm_head"], dropout=0.5)).train()
    torch.manual_seed(11)
    got = ours(model)
    got = got[0], grads(got)
    ids, position, labels = draw()
    states = attention.hidden(model, ids, position, {"lengths": LENGTHS})[labels >= 0].detach()
    model.zero_grad()
    torch.manual_seed(11)
    want = F.cross_entropy(model.lm_head(states), labels[labels >= 0], reduction="sum")
    want.backward()
    assert got[0] == pytest.approx(want.item(), rel=1e-6) and len(got[1]) == 2
    for n, p in model.named_parameters():
        if p.requires_grad:
            torch.testing.assert_close(got[1][n], p.grad, rtol=1e-5, atol=1e-5)
    assert ours(model)[0] != got[0]  # the next time, something else is dropped


# ---------------------------------------------------------------------------------------------- what it costs

class Sizes(TorchDispatchMode):
    """Records the shape of every tensor that any operation makes, and the operation's name."""

    def __enter__(self):
        self.made = []
        return super().__enter__()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.made += [(tuple(t.shape), func.__name__) for t in (out if isinstance(out, (tuple, list)) else [out]) if isinstance(t, torch.Tensor)]
        return out


@pytest.mark.parametrize("name", ("plain", "LoRA", "new rows, tied"))
def test_logits_of_all_tokens_never_exist(name):
    model = small(tied=False) if name == "plain" else HEADS[name]()
    attention.isolate(model)
    lengths = [50] * 20
    ids, position, _ = draw(lengths)
    labels = ids.roll(-1)  # every token is a target
    with Sizes() as seen:
        loss.loss_sum(model, ids, position, {"lengths": lengths}, labels, 64)[0].backward()
    of_logits = {s for s, _ in seen.made if len(s) > 1 and s[-1] == 259}
    assert {s[0] for s in of_logits} <= {64, 1000 % 64} | {4, 32} and (64, 259) in of_logits  # the rank of LoRA, the width transposed
    assert max(torch.Size(s).numel() for s, _ in seen.made) == 1000 * 192  # the widest of a layer


@pytest.mark.parametrize("name", ("plain", "LoRA"))
def test_looking_makes_no_gradient(name):
    model = attention.isolate(small(tied=False) if name == "plain" else HEADS[name]())
    want = ours(model)
    ids, position, labels = draw()
    with torch.no_grad(), Sizes() as seen:
        total, each = loss.loss_sum(model, ids, position, {"lengths": LENGTHS}, labels)
    assert total.item() == want[0] and torch.equal(each, want[1]) and not total.requires_grad
    products = [s for s, n in seen.made if "mm" in n]  # of targets: their logits, and nothing for states or weights
    assert (len(each), 259) in products and (len(each), 64) not in products and (259, 64) not in products


def test_a_chunk_fits_the_machine(tiny, monkeypatch):
    """256 targets on a CPU, whose cache they fit; on a GPU 256 MiB of logits, seen on a device that only has shapes."""
    model, chunks = attention.isolate(tiny[0]), []
    monkeypatch.setattr(loss._TargetLoss, "apply", lambda *a: chunks.append(a[-1]) or (torch.zeros(()), torch.zeros(0)))
    ids, position, labels = draw()
    loss.loss_sum(model, ids, position, {"lengths": LENGTHS}, labels)
    monkeypatch.setattr(loss, "hidden", lambda *a: torch.zeros(len(ids), 64, device="meta"))
    loss.loss_sum(model, ids, position, {}, labels)
    assert chunks == [256, 2**28 // (4 * 259)]
