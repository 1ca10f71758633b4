"""attention.py: packed documents never see each other, in any kind of attention; computing layers in another way changes no bit; nothing is compiled twice."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from conftest import wild
from torch._dynamo.utils import counters
from torch.multiprocessing.reductions import StorageWeakRef

from orcalab import adapter, attention, loss, model as models, packing
from orcalab.config import Config

LENGTHS = [7, 600, 1, 41]  # one takes the path for examples of more than 512 tokens
KINDS = ("documents", "varlen", "flex")
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch.compile says it of its own doing
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # torch's compiler looks for one everywhere


def draw(vocab, lengths=LENGTHS, seed=1):
    g = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, vocab, (sum(lengths),), generator=g)
    position = torch.cat([torch.arange(n) for n in lengths])
    labels = torch.where(torch.rand(len(ids), generator=g) < 0.4, torch.randint(0, vocab, (len(ids),), generator=g), -100)
    return ids, position, labels


def apart(kind, lengths=LENGTHS):
    return attention.apart_of(lengths, sum(lengths), "cpu", kind)


def alone(ids, lengths=LENGTHS):
    """Full logits of each example by itself, with transformers' own attention, on a fresh copy of the model."""
    plain = wild(models.load("tiny-random", torch.float32)[0])
    return plain, torch.cat([plain(input_ids=part[None]).logits[0] for part in ids.split(lengths)])


def scores(q, k, v, scale, groups):
    """Probabilities of one document, (heads, tokens, tokens), and its values for every head."""
    q, k, v = (t.transpose(0, 1).float() for t in (q, k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)))
    return q, k, v, (q @ k.transpose(1, 2) * scale + torch.full((q.shape[1],) * 2, float("-inf")).triu(1)).softmax(-1)


@pytest.fixture(scope="module")
def kernels():
    """torch's varlen attention and flex's backward pass run on a GPU alone: plain products take the place of one kernel, a check of the other is lifted.
    What calls them, and all of their autograd, is the real thing."""
    from torch.nn.attention import flex_attention, varlen

    def documents(ends):
        return [(a, b) for a, b in zip(ends.tolist(), ends.tolist()[1:]) if b > a]

    def forward(q, k, v, ends, ends_k, longest, longest_k, is_causal=False, scale=None, window_size=None, enable_gqa=False, *_):
        assert torch.equal(ends, ends_k) and ends.dtype == torch.int32 and is_causal and max(b - a for a, b in documents(ends)) <= longest == longest_k
        assert (enable_gqa or q.shape[1] == k.shape[1]) and ends[-1] == len(q)
        out = torch.empty_like(q)
        for a, b in documents(ends):
            _, _, values, p = scores(q[a:b], k[a:b], v[a:b], scale, q.shape[1] // k.shape[1])
            out[a:b] = (p @ values).transpose(0, 1)
        return out, torch.empty(q.shape[1], len(q)), torch.zeros(2, dtype=torch.uint64)

    def backward(grad, q, k, v, out, lse, ends, ends_k, longest, longest_k, is_causal, state, scale=None, window_size=None):
        for_q, for_k, for_v, groups = *(torch.zeros_like(t) for t in (q, k, v)), q.shape[1] // k.shape[1]
        for a, b in documents(ends):
            queries, keys, values, p = scores(q[a:b], k[a:b], v[a:b], scale, groups)
            g = grad[a:b].transpose(0, 1).float()
            for_p = g @ values.transpose(1, 2)
            for_scores = p * (for_p - (for_p * p).sum(-1, keepdim=True)) * scale
            for_q[a:b] = (for_scores @ keys).transpose(0, 1)
            for total, one in ((for_k, for_scores.transpose(1, 2) @ queries), (for_v, p.transpose(1, 2) @ g)):
                total[a:b] = one.unflatten(0, (-1, groups)).sum(1).transpose(0, 1)
        return for_q, for_k, for_v
    varlen._varlen_attn.register_kernel("cpu")(forward)
    varlen._varlen_attn_backward.register_kernel("cpu")(backward)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flex_attention, "_validate_device", lambda *a: None)
        patch.setattr(flex_attention, "_warn_once", lambda *a, **k: None)  # that on a CPU it is slow
        torch._dynamo.reset()
        yield


# ------------------------------------------------------------------------------------------ one after the other, or apart

@pytest.mark.parametrize("kind", KINDS)
def test_packed_equals_alone_in_fp32(kernels, tiny, kind):
    model = attention.isolate(wild(tiny[0]), kind)
    ids, position, _ = draw(model.config.vocab_size)
    with torch.no_grad():
        packed = attention.hidden(model, ids, position, apart(kind)) @ model.get_output_embeddings().weight.T
        _, want = alone(ids)
    torch.testing.assert_close(packed, want, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_every_gradient_equal_transformers_own_one_document_at_a_time(kernels, tiny, kind):
    model = attention.isolate(wild(tiny[0]), kind).train()
    ids, position, labels = draw(model.config.vocab_size)
    total, each = loss.loss_sum(model, ids, position, apart(kind), labels)
    (total / 3).backward()
    plain, logits = alone(ids)
    want = F.cross_entropy(logits, labels, ignore_index=-100, reduction="none")
    (want.sum() / 3).backward()
    torch.testing.assert_close(total, want.sum(), rtol=1e-6, atol=0)
    torch.testing.assert_close(each, want[labels >= 0], rtol=1e-5, atol=1e-6)
    theirs = dict(plain.named_parameters())
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, theirs[name].grad, rtol=1e-4, atol=1e-5, msg=lambda m: f"{name}: {m}")


@pytest.mark.parametrize("kind", KINDS)
def test_bf16_is_near_to_fp32(kernels, kind):
    sides = {}
    for name, dtype in (("documents", torch.float32), (kind, torch.bfloat16)):
        model = wild(models.load("tiny-random")[0], 4).bfloat16().to(dtype)
        sides[dtype] = gradients(attention.isolate(model, name), name)
    near, exact = sides[torch.bfloat16], sides[torch.float32]
    assert near[0] == pytest.approx(exact[0], rel=2e-3)
    assert max(((a - b).norm() / b.norm()).item() for a, b in zip(near[1], exact[1])) < 0.03


@pytest.mark.parametrize("kind", KINDS)
def test_no_example_leaks_into_another(kernels, tiny, kind):
    model = attention.isolate(wild(tiny[0]), kind)
    ids, position, _ = draw(model.config.vocab_size)
    at, where = 0, apart(kind)
    for length in LENGTHS:  # spoil one example at a time: no other moves by a single bit
        spoilt = ids.clone()
        spoilt[at : at + length] = (spoilt[at : at + length] + 1) % model.config.vocab_size
        with torch.no_grad():
            before, after = (attention.hidden(model, i, position, where) for i in (ids, spoilt))
        others = torch.ones(len(ids), dtype=torch.bool)
        others[at : at + length] = False
        assert torch.equal(before[others], after[others]) and not torch.equal(before[~others], after[~others])
        at += length


@pytest.mark.parametrize("kind", KINDS)
def test_an_example_does_not_see_its_own_future(kernels, tiny, kind):
    model = attention.isolate(wild(tiny[0]), kind)
    for n in (40, 600):
        ids, position, _ = draw(model.config.vocab_size, [n])
        later = torch.cat([ids[: n // 2], ids[n // 2:].flip(0)])
        with torch.no_grad():
            a, b = (attention.hidden(model, i, position, apart(kind, [n]))[: n // 2] for i in (ids, later))
        torch.testing.assert_close(a, b, atol=1e-6, rtol=0)


def test_attention_refuses_lengths_that_do_not_add_up(tiny):
    model = attention.isolate(wild(tiny[0]))
    for wrong in ({"lengths": [2, 2]}, {}):
        with pytest.raises(ValueError, match="packed attention needs the lengths of the examples, summing to 5 tokens"):
            attention.hidden(model, torch.zeros(5, dtype=torch.long), torch.arange(5), wrong)


# ------------------------------------------------------------------------------------------ which kind, and what it is told

def test_a_kind_for_each_machine(monkeypatch):
    bf16, fp16, fp32 = torch.bfloat16, torch.float16, torch.float32
    assert attention.kind_of(Config(), "cpu", bf16) == attention.kind_of(Config(attention="documents"), "cpu", fp32) == "documents"
    for card, dtype, kind in (((8, 0), bf16, "varlen"), ((9, 0), fp16, "varlen"), ((8, 0), fp32, "flex"), ((7, 5), fp16, "flex")):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: card)
        assert attention.kind_of(Config(), "cuda", dtype) == kind
        assert attention.kind_of(Config(attention="flex"), "cuda", dtype) == "flex" and attention.kind_of(Config(attention="documents"), "cuda", dtype) == "documents"
    with pytest.raises(ValueError, match=r"attention is 'varlen', which needs a GPU of compute capability 8, and bf16 or fp16; this is cuda and torch.float16: choose 'auto'"):
        attention.kind_of(Config(attention="varlen"), "cuda", fp16)
    with pytest.raises(ValueError, match=r"attention is 'flex', which needs a GPU; this is cpu and torch.float32: choose 'auto'"):
        attention.kind_of(Config(attention="flex"), "cpu", fp32)
    with pytest.raises(ValueError, match="compile is 'yes', which needs packs of one shape, and attention 'documents' gives each its own: choose compile 'auto'"):
        attention.kind_of(Config(compile="yes"), "cpu", fp32)


def test_a_batch_says_where_documents_end():
    examples = [([1, 2, 3], [0, 1, 1]), ([4, 5], [0, 1]), ([6, 7, 8, 9], [0, 0, 1, 1])]
    packed = packing.pack(examples, [[0, 1], [2]], 6, pad_id=99)
    ids, position, labels, where = attention.batch_of(packed, [0, 1], "cpu")
    assert (ids.tolist(), position.tolist()) == ([1, 2, 3, 4, 5, 6, 7, 8, 9], [0, 1, 2, 0, 1, 0, 1, 2, 3]) and where == {"lengths": [3, 2, 4]}
    assert labels.tolist() == [2, 3, -100, 5, -100, -100, 8, 9, -100]
    whole = [1, 2, 3, 4, 5, 99, 6, 7, 8, 9, 99, 99]  # padding stays, as documents of its own
    ids, position, labels, where = attention.batch_of(packed, [0, 1], "cpu", "varlen")
    assert ids.tolist() == whole and (labels >= 0).sum() == 5 and position.tolist() == packed.position.reshape(-1).tolist()
    assert where["ends"].tolist() == [0, 3, 5, 6, 10] + [12] * 12 and where["ends"].dtype == torch.int32 and where["longest"] == 6
    ids, _, _, where = attention.batch_of(packed, [0, 1], "cpu", "flex")
    number = torch.tensor([0, 0, 0, 1, 1, 2, 3, 3, 3, 3, 4, 4])
    i = torch.arange(12)
    seen = where["block"].mask_mod(0, 0, i[:, None], i[None])
    assert ids.tolist() == whole and torch.equal(seen, (number[:, None] == number[None]) & (i[:, None] >= i[None])) and where["block"].shape == (1, 1, 12, 12)
    assert attention.batch_of(packed, [1], "cpu")[3] == {"lengths": [4]}


@pytest.mark.parametrize("kind", ("varlen", "flex"))
def test_padding_changes_nothing(kernels, tiny, kind):
    examples = [(list(range(n)), [0] + [1] * (n - 1)) for n in (40, 9, 30)]
    packed = packing.pack(examples, [[0, 1], [2]], 64)
    by = {k: attention.batch_of(packed, [0, 1], "cpu", k) for k in ("documents", kind)}
    sums = [loss.loss_sum(attention.isolate(tiny[0], k), *b[:2], b[3], b[2])[1] for k, b in by.items()]
    torch.testing.assert_close(*sums, rtol=1e-5, atol=1e-6)


# ------------------------------------------------------------------------------------------ layers computed in other ways

def gradients(model, kind="documents", lengths=LENGTHS, seed=1):
    """A training pass of drawn tokens: the loss, and each trained weight's gradient."""
    model.train().zero_grad()
    torch.manual_seed(7)  # of what an adapter drops
    ids, position, labels = draw(model.config.vocab_size, lengths, seed)
    total, _ = loss.loss_sum(model, ids, position, apart(kind, lengths), labels)
    total.backward()
    return total.item(), [p.grad.clone() for p in model.parameters() if p.requires_grad]


def same(a, b):
    return a[0] == b[0] and len(a[1]) == len(b[1]) > 0 and all(torch.equal(x, y) for x, y in zip(a[1], b[1]))


def with_adapter(model):
    """LoRA on every linear layer, with dropout, in a frozen model: no input of a layer needs a gradient but for the adapters before it."""
    adapter.guests()
    import peft
    torch.manual_seed(3)
    peft.inject_adapter_in_model(peft.LoraConfig(r=4, lora_dropout=0.3, init_lora_weights=False, target_modules="all-linear"), model)
    return model


@pytest.mark.parametrize("lora", (False, True))
@pytest.mark.parametrize("how, twice", [({"recompute": 1}, (2, 2)), ({"recompute": 2}, (2, 1)), ({"offload": "activations"}, (1, 1)), ({"recompute": 1, "offload": "both"}, (2, 2))])
def test_recomputing_and_offloading_change_no_bit(tiny, monkeypatch, how, twice, lora):
    monkeypatch.setattr(attention, "SMALL", 0)
    fresh = lambda: wild(models.load("tiny-random")[0])
    want = gradients(attention.isolate(with_adapter(fresh()) if lora else fresh()))
    model, calls = attention.arrange(with_adapter(fresh()) if lora else fresh(), Config(**how), "documents"), [0, 0]
    for i, layer in enumerate(model.model.layers):
        layer.mlp.register_forward_pre_hook(lambda *a, i=i: calls.__setitem__(i, calls[i] + 1))
    assert same(gradients(model), want) and tuple(calls) == twice
    assert all(g.abs().max() > 0 for g in want[1])


@pytest.mark.parametrize("where, waits", [("nothing", True), ("optimizer", True), ("activations", False), ("both", False)])
def test_offloaded_activations_are_gone_from_where_they_were(tiny, monkeypatch, where, waits):
    monkeypatch.setattr(attention, "SMALL", 0)
    model, seen = attention.arrange(tiny[0], Config(recompute=1, offload=where), "documents").train(), []
    model.model.layers[1].register_forward_pre_hook(lambda m, args: seen.append(StorageWeakRef(args[0].untyped_storage())))
    ids, position, labels = draw(model.config.vocab_size, [50])
    moved, empty_like = [], torch.empty_like
    monkeypatch.setattr(torch, "empty_like", lambda t, *a, **k: moved.append(t.untyped_storage().data_ptr()) or empty_like(t, *a, **k))
    total, _ = loss.loss_sum(model, ids, position, {"lengths": [50]}, labels)
    assert seen[0].expired() != waits
    assert not {p.untyped_storage().data_ptr() for p in model.parameters()} & set(moved)  # weights stay
    total.backward()


def test_layers_are_arranged_for_learning_alone(tiny):
    model, calls = attention.arrange(tiny[0], Config(recompute=1), "documents"), []
    model.model.layers[0].mlp.register_forward_pre_hook(lambda *a: calls.append(1))
    ids, position, labels = draw(model.config.vocab_size, [20])
    for mode, times in ((True, 2), (False, 1)):
        calls.clear()
        loss.loss_sum(model.train(mode), ids, position, {"lengths": [20]}, labels)[0].backward()
        assert len(calls) == times
    assert model.state_dict().keys() == models.load("tiny-random")[0].state_dict().keys()


@pytest.mark.parametrize("recompute", (0, 2))
@pytest.mark.parametrize("kind", ("varlen", "flex"))
def test_packs_of_other_documents_are_not_compiled_again(kernels, tiny, monkeypatch, kind, recompute):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))  # what is compiled when is the same; this compiler takes no minute
    torch._dynamo.reset()
    counters.clear()
    model = attention.arrange(tiny[0], Config(compile="yes", recompute=recompute), kind)
    plain = attention.isolate(models.load("tiny-random")[0])
    with torch._dynamo.config.patch(error_on_recompile=True):
        for seed, lengths in enumerate(([100], [7, 90, 3], [2] * 20 + [60], [30, 70])):
            got, want = gradients(model, kind, lengths, seed), gradients(plain, "documents", lengths, seed)
            assert got[0] == pytest.approx(want[0], rel=1e-6)
            for a, b in zip(got[1], want[1]):
                torch.testing.assert_close(a, b, rtol=1e-4, atol=5e-6)
    assert counters["stats"]["unique_graphs"] == 1  # one program for all layers
    torch._dynamo.reset()
