"""optim.py: each choice is AdamW, what rounding loses is seen, updates in the backward pass are the same, a broken-off run goes on bit for bit."""

import math
import sys
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from orcalab import model as models, optim
from orcalab.config import Config
from orcalab.optim import Optimizer, learning_rate

KINDS = ("adamw", "adamw_bf16", "adamw_bf16_sr", "adamw_8bit")
BF16, FP32 = torch.bfloat16, torch.float32


def fresh(dtype=BF16, seed=0):
    """tiny-random: tied embeddings, matrices of 4,096 elements and more, vectors of 64."""
    return models.tiny_random(seed)[0].to(dtype)


def go(model, optimizer, steps, lr=1e-3, divide=1.0):
    """Train a model on random bytes, and return (norm, lost) of each step."""
    seen = []
    for step in steps:
        torch.manual_seed(step)
        optimizer.begin(lr, divide)
        for _ in range(optimizer.cfg.accum):
            ids = torch.randint(0, 256, (2, 24))
            (F.cross_entropy(model(input_ids=ids).logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten()) * divide).backward()
            optimizer.gather()
        seen.append((optimizer.step(), optimizer.lost))
    return seen


def run(cfg, steps=6, dtype=BF16, **more):
    model = fresh(dtype)
    seen = go(model, Optimizer(model, cfg), range(steps), **more)
    return dict(model.named_parameters()), seen


def same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


def one(values, cfg, dtype=BF16):
    """(the weight, its Optimizer): a model of a single matrix."""
    layer = torch.nn.Linear(1, 1, bias=False)
    layer.weight = torch.nn.Parameter(torch.as_tensor(values).to(dtype))
    return layer.weight, Optimizer(layer, cfg)


def push(weight, optimizer, grad, lr):
    """One step with a gradient that is given."""
    optimizer.begin(lr)
    weight.grad = torch.as_tensor(grad).to(weight.dtype).expand_as(weight).clone()
    return optimizer.step()


def test_learning_rate_at_its_corners():
    cfg = Config(lr=1.0, steps=12, warmup=2)
    assert [learning_rate(cfg, s) for s in (0, 1, 2, 7)] == [0.5, 1.0, 1.0, pytest.approx(0.55)]
    assert 0.1 < learning_rate(cfg, 11) < 0.13 and learning_rate(replace(cfg, warmup=0), 0) == 1.0
    assert [learning_rate(replace(cfg, schedule="constant"), s) for s in (0, 2, 11)] == [0.5, 1.0, 1.0]
    assert [learning_rate(replace(cfg, schedule="linear"), s) for s in (0, 1, 2, 7, 12)] == [0.5, 1.0, 1.0, pytest.approx(0.55), pytest.approx(0.1)]
    assert learning_rate(replace(cfg, steps=1, warmup=1), 0) == 1.0


# ------------------------------------------------------------------------------------------- fp32 masters

def plain(model, cfg, steps, lr, fused):
    """torch's AdamW on fp32 copies of the weights, as it stands in a textbook; returns (weights, norms)."""
    masters = {n: p.detach().clone().float() for n, p in model.named_parameters()}
    groups = [{"params": [m for m in masters.values() if (m.ndim > 1) == matrix], "weight_decay": cfg.weight_decay * matrix} for matrix in (True, False)]
    optimizer, norms = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95), eps=1e-8, fused=fused, foreach=False), []
    for step in steps:
        torch.manual_seed(step)
        ids = torch.randint(0, 256, (2, 24))
        F.cross_entropy(model(input_ids=ids).logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten()).backward()
        for n, p in model.named_parameters():
            masters[n].grad, p.grad = p.grad.float(), None
        norms.append(torch.nn.utils.clip_grad_norm_(masters.values(), cfg.clip).item())
        optimizer.step()
        for n, p in model.named_parameters():
            p.data.copy_(masters[n])
    return masters, norms


def test_adamw_is_torchs_adamw():
    cfg = Config(weight_decay=0.1, clip=0.5)
    weights, seen = run(cfg, dtype=FP32)
    want, norms = plain(fresh(FP32), cfg, range(6), 1e-3, fused=False)
    assert [n for n, _ in seen] == pytest.approx(norms, rel=1e-5) and min(norms) > cfg.clip
    assert max(abs(lost) for _, lost in seen) < 1e-3
    for name, w in weights.items():
        torch.testing.assert_close(w.detach(), want[name], rtol=0, atol=2e-6, msg=lambda m: f"{name}: {m}")


@pytest.mark.parametrize("part", [4096, 2**20])
def test_masters_are_those_of_a_plain_loop_to_the_bit(part, monkeypatch):
    monkeypatch.setitem(optim.PART, "cpu", part)
    norms = plain(fresh(), Config(), range(6), 1e-3, fused=True)[1]
    cfg = Config(weight_decay=0.1, clip=sorted(norms)[3])  # clips some steps, and not others
    model, model2 = fresh(), fresh()
    optimizer = Optimizer(model, cfg)
    assert len(optimizer.parts) == {4096: 15, 2**20: 2}[part]
    seen = go(model, optimizer, range(6))
    masters, norms = plain(model2, cfg, range(6), 1e-3, fused=True)
    assert [n for n, _ in seen] == norms and min(norms) < cfg.clip < max(norms)
    same(optimizer.kept, masters)
    same(dict(model.named_parameters()), dict(model2.named_parameters()))


def test_a_small_update_survives_in_the_master():
    weight, optimizer = one(torch.ones(4, 4), Config(clip=0.0))
    bare = torch.nn.Parameter(torch.ones(4, 4, dtype=BF16))
    naive = torch.optim.AdamW([bare], lr=1e-4, weight_decay=0.0)
    for n in range(1, 61):
        push(weight, optimizer, 1.0, 1e-4)
        bare.grad = torch.ones_like(bare)
        naive.step()
        master = optimizer.kept["weight"]
        assert master.mean().item() == pytest.approx(1 - n * 1e-4, abs=1e-5) and master.dtype == FP32
        if n == 1:
            assert (weight == 1).all()  # 0.9999 is 1 in bf16
    assert (bare == 1).all() and (weight < 1).all() and torch.equal(weight, master.to(BF16))


def test_an_fp32_weight_is_its_own_master():
    model = fresh(FP32)
    optimizer = Optimizer(model, Config())
    for name, p in model.named_parameters():
        assert optimizer.kept[name].data_ptr() == p.data_ptr() and optimizer.moments[name].keys() == {"exp_avg", "exp_avg_sq"}


# ---------------------------------------------------------------------------------------------- rounding

def test_rounding_by_chance_is_right_on_average():
    torch.manual_seed(0)
    x = torch.cat([torch.randn(500), -torch.randn(500).abs() * 1e-3, torch.tensor([1 - 1e-4, -1 - 1e-4, 1e-30, -3e4])])
    down = (x.view(torch.int32) & -0x10000).view(FP32)
    ulp = ((x.view(torch.int32) & -0x10000) + 0x10000).view(FP32) - down  # to the next one away from zero
    noise = one(torch.ones(4096, 1), Config(optimizer="adamw_bf16_sr"))[1]._noise(4096, len(x))
    mean, share = torch.zeros(len(x), dtype=torch.float64), ((x - down) / ulp).double()
    for bits in noise:
        rounded = optim.by_chance(x, bits).float()
        assert ((rounded == down) | (rounded == down + ulp)).all()
        mean += (rounded - x).double() / ulp.double() / 4096
    z = mean / (share * (1 - share) / 4096).sqrt().clamp(min=1e-4)
    assert z.abs().max() < 5.5 and z[:500].mean().abs() < 5 / 500**0.5 and z[500:1000].mean().abs() < 5 / 500**0.5 and z.std() == pytest.approx(1, abs=0.1)


def test_rounding_by_chance_leaves_what_cannot_be_rounded():
    nan = torch.tensor([0x7FFFFFFF, -1, 0x7F800001, 0x7FC00000], dtype=torch.int32).view(FP32)
    kept = torch.tensor([math.inf, -math.inf, 0.0, -0.0, 1.0, -1.5])
    for noise in (-(2**15), -1, 0, 2**15 - 1):
        assert optim.by_chance(nan, torch.full((4,), noise, dtype=torch.int16)).isnan().all()
        assert torch.equal(optim.by_chance(kept, torch.full((6,), noise, dtype=torch.int16)).view(torch.int16), kept.to(BF16).view(torch.int16))


def test_a_weight_and_its_moments_are_each_rounded_by_chances_of_their_own():
    """One step with one gradient everywhere: a tenth and a twentieth lie between two numbers of bf16, and so does 1 - 1e-3."""
    up = []
    for kind in ("adamw_bf16", "adamw_bf16_sr"):
        weight, optimizer = one(torch.ones(512, 512), Config(optimizer=kind, clip=0.0))
        push(weight, optimizer, 1.0, 1e-3)
        for kept, true in ((weight.detach(), 1 - 1e-3), (optimizer.moments["weight"]["exp_avg"], 0.1), (optimizer.moments["weight"]["exp_avg_sq"], 0.05)):
            values = kept.unique().tolist()
            assert kept.dtype == BF16 and len(values) == (1 if kind == "adamw_bf16" else 2)
            if kind == "adamw_bf16_sr":
                assert values[0] < true < values[1] and kept.double().mean().item() == pytest.approx(true, abs=2.5 * (values[1] - values[0]) / 512)
                up.append((kept == values[1]).float().flatten())
    assert (torch.corrcoef(torch.stack(up)) - torch.eye(3)).abs().max() < 0.01


@pytest.mark.parametrize("kind", ["adamw_bf16_sr", "adamw_8bit"])
def test_small_updates_add_up_by_chance_and_are_lost_to_the_nearest(kind):
    """200 steps that bf16 cannot see: what is learned is that of fp32, or nothing."""
    torch.manual_seed(0)
    start, grads, made = torch.randn(64, 80).to(BF16), torch.randn(200, 64, 80) + 0.5, {}
    for name, dtype in (("adamw", FP32), (kind, BF16), ("adamw_bf16", BF16)):
        weight, optimizer = one(start.clone(), Config(optimizer=name, clip=0.0), dtype)
        losts = [push(weight, optimizer, g, 3e-6) and optimizer.lost for g in grads]
        made[name] = weight.detach().float() - start.float()
    follows = {n: ((m * made["adamw"]).sum() / made["adamw"].square().sum()).item() for n, m in made.items()}
    assert follows["adamw"] == pytest.approx(1) and follows[kind] == pytest.approx(1, abs=0.15) and follows["adamw_bf16"] < 0.1
    assert losts[-1] > 0.9


# -------------------------------------------------------------------------------------- the lost-update meter

@pytest.mark.parametrize("dtype", [BF16, FP32])
def test_the_meter_counts_what_every_weight_lost(dtype):
    """Against a second AdamW on every weight, and counting: where all of it rounds to nothing, no weight has moved."""
    torch.manual_seed(1)
    start = torch.randn(128, 128)
    for lr, low, high in ((1e-8, 1, 1), (1e-4, 0.01, 0.99)) if dtype == BF16 else ((1e-4, -1e-3, 1e-3),):
        weight, optimizer = one(start, Config(optimizer="adamw_bf16", clip=0.0, weight_decay=0.1), dtype)
        second = torch.nn.Parameter(weight.detach().double())
        plain = torch.optim.AdamW([second], lr=lr, betas=(0.9, 0.95), weight_decay=0.1)
        for _ in range(4):
            before, grad = weight.detach().double(), torch.randn(128, 128).to(dtype)
            push(weight, optimizer, grad, lr)
            second.data, second.grad = before.clone(), grad.double()
            plain.step()
            change, applied = second.detach() - before, weight.detach().double() - before
            assert optimizer.lost == pytest.approx((1 - (applied * change.sign()).sum() / change.abs().sum()).item(), abs=1e-4)
            assert low <= optimizer.lost <= high and ((applied == 0).all() == (optimizer.lost == 1))


def test_the_meter_looks_at_some_of_many_weights(monkeypatch):
    """Every stride-th of all elements, in order, and the stride is odd: no column of a matrix is passed over."""
    monkeypatch.setattr(optim, "SEEN", 1000)
    model = fresh()
    optimizer = Optimizer(model, Config(clip=0.0))
    stride = -(-sum(p.numel() for p in model.parameters()) // 1000)
    stride += stride % 2 == 0
    some = lambda tensors: torch.cat([t.detach().float().flatten() for t in tensors])[::stride]
    optimizer.begin(1e-3)
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    before, grads = some(model.parameters()), some(p.grad for p in model.parameters())
    optimizer.step()
    assert torch.equal(optimizer.before, before) and torch.equal(optimizer._seen(), some(optimizer.kept.values())) and 900 < len(before) <= 1000
    assert torch.equal(optimizer.meter[0], grads) and torch.equal(optimizer.meter[1], some(torch.full_like(p, p.ndim > 1) for p in model.parameters()))


def test_some_of_the_weights_tell_what_all_of_them_lose(monkeypatch):
    torch.manual_seed(0)
    grads, losts = torch.randn(5, 500, 64), []
    for seen in (65_536, 4000):
        monkeypatch.setattr(optim, "SEEN", seen)
        weight, optimizer = one(torch.ones(500, 64) + torch.arange(64) / 64, Config(optimizer="adamw_bf16", clip=0.0))
        losts.append([push(weight, optimizer, g, 5e-3) and optimizer.lost for g in grads])
        assert optimizer.slots["weight"][0].step == {65_536: 1, 4000: 9}[seen]
    assert 0.1 < losts[0][-1] < 0.9 and losts[1] == pytest.approx(losts[0], abs=0.05)


def test_the_meter_tells_the_choices_apart():
    lost = {kind: [x for _, x in run(Config(optimizer=kind, clip=0.0), 4, lr=2e-6)[1]] for kind in KINDS}
    assert min(lost["adamw_bf16"]) > 0.9
    for kind in ("adamw", "adamw_bf16_sr", "adamw_8bit"):
        assert abs(sum(lost[kind])) / 4 < 0.05, (kind, lost[kind])
    assert run(Config(optimizer="adamw_bf16"), 2, lr=0.0)[1][1][1] == 0.0  # nothing was wanted


# ------------------------------------------------------------------------------------------------ 8 bits

def test_8_bit_moments_are_near_fp32_ones():
    model, cfg = fresh(FP32), Config(optimizer="adamw_8bit", weight_decay=0.1, clip=1.0)
    optimizer, start = Optimizer(model, cfg), {n: p.detach().clone() for n, p in model.named_parameters()}
    go(model, optimizer, range(50))
    want = run(replace(cfg, optimizer="adamw"), 50, FP32)[0]
    moved = torch.cat([(want[n] - start[n]).flatten() for n in start])
    off = torch.cat([(p - want[n]).flatten() for n, p in model.named_parameters()])
    assert 0 < off.norm() < 0.06 * moved.norm()
    for name, p in model.named_parameters():
        types = {k: (t.dtype, t.numel()) for k, t in optimizer.moments[name].items()}
        blocks = -(-p.numel() // 256)
        assert types == ({"state1": (torch.uint8, p.numel()), "state2": (torch.uint8, p.numel()), "absmax1": (FP32, blocks), "absmax2": (FP32, blocks)}
                         if p.numel() >= 4096 else {"exp_avg": (FP32, p.numel()), "exp_avg_sq": (FP32, p.numel())})
    assert {p.numel() >= 4096 for p in model.parameters()} == {True, False}


@pytest.mark.parametrize("kind", ["adamw_bf16", "adamw_8bit"])
def test_chunks_change_nothing(kind, monkeypatch):
    made = []
    for size in (4096, 2**20):
        monkeypatch.setitem(optim.CHUNK, "cpu", size)
        made.append(run(Config(optimizer=kind), 3, FP32)[0])  # no weight is rounded, by whatever chance
    same(*made)


@pytest.mark.parametrize("kind", KINDS)
def test_moments_are_as_large_as_the_table_says(kind):
    weight, optimizer = one(torch.ones(256, 256), Config(optimizer=kind))
    kept = {t.data_ptr(): t.nbytes for t in [*optimizer.kept.values(), *optimizer.moments["weight"].values()]}
    assert (sum(kept.values()) - (0 if weight.data_ptr() not in kept else weight.nbytes)) / weight.numel() == {"adamw": 12, "adamw_8bit": 2 + 1 / 32}.get(kind, 4)


@pytest.mark.parametrize("kind", KINDS)
def test_matrices_decay_and_vectors_do_not(kind):
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.LayerNorm(5000), torch.nn.Linear(64, 64))
    before, optimizer = {n: p.detach().clone() for n, p in model.named_parameters()}, Optimizer(model, Config(optimizer=kind, weight_decay=0.5))
    optimizer.begin(0.1)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    assert optimizer.step() == 0 and abs(optimizer.lost) < 1e-4  # the meter, too, wants no more than that
    for n, p in model.named_parameters():
        torch.testing.assert_close(p.detach(), before[n] * (0.95 if p.ndim > 1 else 1.0), rtol=1e-6, atol=0)


# ------------------------------------------------------------------------------------- in the backward pass

@pytest.mark.parametrize("kind", KINDS)
def test_updates_in_the_backward_pass_are_those_of_a_step(kind, monkeypatch):
    monkeypatch.setitem(optim.CHUNK, "cpu", 4096)  # most weights take several
    cfg = Config(optimizer=kind, clip=0.0, weight_decay=0.1)
    (a, seen), (b, again) = run(cfg), run(replace(cfg, update="backward"))
    same(a, b)
    assert [x for _, x in seen] == [x for _, x in again] and [n for n, _ in seen] == pytest.approx([n for n, _ in again], rel=1e-6)
    assert min(n for n, _ in seen) > 0


def test_one_gradient_at_a_time_lives_in_the_backward_pass():
    model, alive = fresh(), []
    for p in model.parameters():
        p.register_post_accumulate_grad_hook(lambda _: alive.append(sum(q.grad is not None for q in model.parameters())))
    optimizer = Optimizer(model, Config(optimizer="adamw_8bit", update="backward", clip=0.0))
    optimizer.begin(1e-3)
    ids = torch.randint(0, 256, (2, 24))
    model(input_ids=ids).logits.float().square().mean().backward()
    assert alive == [1] * len(list(model.parameters()))  # the tied table has one gradient, and one update
    assert all(p.grad is None for p in model.parameters()) and not optimizer.grads


# --------------------------------------------------------------------------------------------- gradients

def test_gradients_of_several_batches_add_up_in_fp32():
    """1 + 256 x 2^-9 is 1.5; in bf16, where autograd adds them up, it is 1."""
    weight, optimizer = one(torch.ones(8, 8), Config(accum=257, clip=0.0))
    bare = torch.nn.Parameter(torch.ones(8, 8, dtype=BF16))
    optimizer.begin(1e-3)
    for i in range(257):
        for w in (weight, bare):
            (w * (2**-9 if i else 1)).sum().backward()
        assert weight.grad is None  # moved at once
    assert optimizer.grads["weight"].dtype == FP32 and optimizer.step() == 1.5 * 8 and bare.grad.float().norm().item() == 8


def test_a_single_batch_keeps_its_gradient_until_it_is_gathered():
    weight, optimizer = one(torch.ones(8, 8), Config())
    optimizer.begin(1e-3)
    weight.sum().backward()
    assert torch.equal(weight.grad, torch.ones(8, 8, dtype=BF16))
    optimizer.gather()
    assert weight.grad is None and optimizer.grads["weight"].dtype == BF16
    optimizer.step()
    assert not optimizer.grads


@pytest.mark.parametrize("update", ["step", "backward"])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_divided_before_anything(kind, update):
    cfg = Config(optimizer=kind, update=update, clip=0.5 if update == "step" else 0.0)
    (a, seen), (b, again) = run(cfg, 3), run(cfg, 3, divide=8.0)
    same(a, b)
    assert seen == again and seen[0][0] > 0.5


def test_a_gradient_that_is_not_a_number_changes_nothing():
    for kind in KINDS:
        model, cfg = fresh(), Config(optimizer=kind)
        optimizer = Optimizer(model, cfg)
        go(model, optimizer, range(2))
        before = {n: t.clone() for n, t in optimizer.state().items()}
        for bad in (math.nan, math.inf):
            optimizer.begin(1e-3)
            for p in model.parameters():
                p.grad = torch.full_like(p, bad)
            assert not math.isfinite(optimizer.step()) and math.isnan(optimizer.lost) and not optimizer.grads
            same(before, optimizer.state())
        go(model, optimizer, range(2, 4))
        same(dict(model.named_parameters()), run(cfg, 4)[0])


def test_a_weight_without_gradient_stays():
    model = torch.nn.ModuleDict({"used": torch.nn.Linear(8, 8), "unused": torch.nn.Linear(8, 8), "frozen": torch.nn.Linear(8, 8).requires_grad_(False)})
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimizer = Optimizer(model, Config(weight_decay=0.5))
    optimizer.begin(1e-2)
    model["used"](torch.ones(8)).sum().backward()
    optimizer.step()
    assert {n.split(".")[0] for n, p in model.named_parameters() if not torch.equal(p, before[n])} == {"used"}
    assert {n.split(".")[0] for n in optimizer.weights} == {"used", "unused"}


@pytest.mark.parametrize("update", ["step", "backward"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_row_that_must_not_move(kind, update):
    model = fresh()
    table = model.get_input_embeddings().weight
    before = table.detach().clone()
    optimizer = Optimizer(model, Config(optimizer=kind, update=update, clip=0.0, weight_decay=0.5), [(table, 7), (table, 200)])
    go(model, optimizer, range(4), lr=1e-2)
    still = (table == before).all(1).nonzero().flatten().tolist()
    assert still == [7, 200]
    if kind == "adamw":
        assert torch.equal(optimizer.kept["model.embed_tokens.weight"][[7, 200]], before[[7, 200]].float())
    optimizer.begin(0.0)
    table.grad = torch.ones_like(table)
    optimizer.gather()
    assert optimizer.step() == pytest.approx((table.numel() - 2 * 64) ** 0.5)  # nor do they count in the norm


# ------------------------------------------------------------------------------------------------ resume

@pytest.mark.parametrize("changes", [{}, {"accum": 2}, {"update": "backward", "clip": 0.0}], ids=["step", "accum", "backward"])
@pytest.mark.parametrize("kind", KINDS)
def test_k_and_k_steps_are_2k(kind, changes):
    cfg = Config(optimizer=kind, weight_decay=0.1, **{"clip": 0.5, **changes})
    whole, seen = run(cfg, 6)
    model = fresh()
    optimizer = Optimizer(model, cfg)
    first = go(model, optimizer, range(3))
    saved = {n: t.clone() for n, t in optimizer.state().items()}
    other = fresh(seed=1)
    again = Optimizer(other, cfg)
    again.load(saved)
    same(saved, again.state())
    assert first + go(other, again, range(3, 6)) == seen
    same(whole, dict(other.named_parameters()))


def test_resume_keeps_more_than_bf16():
    model = fresh()
    optimizer = Optimizer(model, Config())
    go(model, optimizer, range(1), lr=1e-4)
    other = fresh(seed=1)
    again = Optimizer(other, Config())
    again.load(optimizer.state())
    same(dict(model.named_parameters()), dict(other.named_parameters()))
    assert all(t.dtype == FP32 for t in again.kept.values()) and any(not torch.equal(again.kept[n], p.float()) for n, p in other.named_parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_offload_changes_no_byte(kind):
    cfg = Config(optimizer=kind)
    same(run(cfg, 2)[0], run(replace(cfg, offload="both"), 2)[0])


def test_what_another_run_saved_is_refused():
    model = fresh()
    optimizer = Optimizer(model, Config())
    state = {n: t.clone() for n, t in optimizer.state().items()}
    name = "exp_avg.model.layers.0.mlp.up_proj.weight"
    for spoilt, said in (({k: t for k, t in state.items() if k != name}, f"nothing for {name}, this run torch.float32 \\(192, 64\\)"),
                         ({**state, name: torch.zeros(64, 192)}, f"torch.float32 \\(64, 192\\) for {name}, this run torch.float32 \\(192, 64\\)"),
                         ({**state, name: state[name].to(BF16)}, f"torch.bfloat16 \\(192, 64\\) for {name}"),
                         ({**state, "exp_avg.more": torch.zeros(3)}, "torch.float32 \\(3,\\) for exp_avg.more, this run nothing: it belongs to another")):
        with pytest.raises(ValueError, match="the optimizer's saved state has " + said):
            optimizer.load({k: t + 1 if t.is_floating_point() else t for k, t in spoilt.items()})
        same(state, optimizer.state())


def test_choices_that_cannot_work_are_refused(monkeypatch):
    for kind in KINDS[1:]:
        with pytest.raises(ValueError, match=f"optimizer is '{kind}', which rounds to bf16, and model.embed_tokens.weight is torch.float16: choose dtype bf16"):
            Optimizer(fresh(torch.float16), Config(optimizer=kind))
    assert Optimizer(fresh(torch.float16), Config()).kept["model.norm.weight"].dtype == FP32
    monkeypatch.setitem(sys.modules, "bitsandbytes.functional", None)
    with pytest.raises(ValueError, match="optimizer is 'adamw_8bit', which needs bitsandbytes: pip install bitsandbytes"):
        Optimizer(fresh(), Config(optimizer="adamw_8bit"))
