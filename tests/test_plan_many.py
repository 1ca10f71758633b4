"""A plan for several GPUs: bytes that processes hold and send are counted on real tensors that they share, hours follow from stated rates, and stand beside the paper's."""

import json
import os
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from orcalab import attention, cluster, forecast, loss as losses, model as models, optim, ranks, recipes
from orcalab.__main__ import main
from orcalab.config import Config, change
from orcalab.forecast import Shape
from test_forecast import SEVEN, THIRTEEN, llama, made_up

BF16 = {"dtype": "bf16", "compile": "no", "device": "cpu"}


class Count(TorchDispatchMode):
    """Counts the bytes of storages that are alive, each at the size that it has now (FSDP makes them small and large again), and what collectives are given."""

    def __init__(self, *tensors):
        super().__init__()
        self.there, self.peak, self.moved, self.besides = {}, 0, {"gather": 0, "reduce_scatter": 0}, 0
        for t in tensors:
            self.see(t)

    def see(self, t):
        self.there[t.untyped_storage()._cdata] = weakref.ref(t.untyped_storage())

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if any(issubclass(t, DTensor) for t in types):
            return NotImplemented  # come again with what this process holds
        out = func(*args, **(kwargs or {}))
        if func.namespace == "c10d":
            most, kind = max(t.nbytes for t in tree_leaves(args) if isinstance(t, torch.Tensor)), next((k for k in self.moved if k in func._schema.name), "")
            if kind:
                self.moved[kind] += most
            else:
                self.besides += most
        if func.is_view:  # it makes no storage, but shows those that gloo makes, which sums in a copy; NCCL needs none
            return out
        for t in tree_leaves(out):
            if isinstance(t, torch.Tensor):
                self.see(t)
        self.there = {k: r for k, r in self.there.items() if r() is not None}
        self.peak = max(self.peak, sum(r().nbytes() for r in self.there.values()))
        return out


def step(cfg, model, lengths):
    """Train one step of what a process does, with the package's own rooms; return what was counted."""
    attention.arrange(model.train(), cfg, "documents")
    tokens, world = sum(lengths), dist.get_world_size()
    position, ids = torch.cat([torch.arange(n) for n in lengths]), torch.arange(tokens) % model.config.vocab_size
    labels = torch.where(torch.arange(tokens) % 2 == 0, ids, -100)
    local = [p.to_local() for p in model.parameters()]
    with Count(*local) as count:
        optimizer = optim.Optimizer(model, cfg)
        optimizer.begin(1e-4)
        for _ in range(cluster.share(cfg, world).accum):
            (losses.loss_sum(model, ids, position, {"lengths": lengths}, labels)[0] / tokens).backward()
            optimizer.gather()
        optimizer.step()
    moments = sum(t.nbytes for kept in optimizer.moments.values() for t in kept.values())
    return {"weights": sum(t.nbytes for t in local), "optimizer": moments, "peak": count.peak, **count.moved, "besides": count.besides}


# name: (layers, width, width of the MLP, vocabulary, tied), tokens of each example, settings
CASES = {
    "loss": ((4, 192, 512, 6144, False), [256] * 4, {"accum": 4}),
    "several": ((4, 192, 512, 6144, True), [256] * 4, {"accum": 12, "optimizer": "adamw_bf16_sr", "recompute": 1}),
    "layers": ((8, 256, 1024, 512, False), [256] * 2, {"accum": 4, "recompute": 2}),
    "late": ((8, 256, 1024, 512, False), [256] * 2, {"accum": 4, "recompute": 1, "reduce": "bf16"}),
    "tables": ((4, 128, 256, 16381, False), [64] * 2, {"accum": 4, "recompute": 1}),  # whose rows cannot be shared evenly
}


def shape_of(name):
    layers, w, inner, vocabulary, tied = CASES[name][0]
    return Shape(layers, w, 8, 4, w // 8, inner, vocabulary, tied, layers * (2 * w * w + 2 * w * w // 2 + 3 * w * inner), (2 * layers + 1) * w)


def worker(folder, rank, world):
    """Be one of several processes: a step of each case, counted."""
    optim.SEEN = 256  # its meter looks at as many elements, however small a share is: of models this small that would be a part
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=world, init_method=f"file://{folder}/store{world}")
    found = {}
    for name, (_, lengths, settings) in CASES.items():
        cfg = Config(base="tiny-random", **BF16, **settings)
        found[name] = step(cfg, ranks.load(cfg, str(Path(folder, name)), torch.bfloat16, "cpu")[0], lengths)
    Path(folder, f"{world}-{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


@pytest.fixture(scope="module", params=[2, pytest.param(4, marks=pytest.mark.long)])
def counted(request, tmp_path_factory):
    """What is counted in processes that share a model: (how many, [{case: counts} of each])."""
    folder, world, tokenizer = tmp_path_factory.mktemp("shared"), request.param, models.load_tokenizer("tiny-random")
    for name in CASES:
        shape = shape_of(name)
        models.save(folder / name, llama(shape, torch.float32), tokenizer)
        assert forecast.shape_of(folder / name) == shape
    jobs = [subprocess.Popen([sys.executable, __file__, str(folder), str(rank), str(world)], env={**os.environ, "OMP_NUM_THREADS": "1"}) for rank in range(world)]
    assert [job.wait(500) for job in jobs] == [0] * world
    return world, [json.loads((folder / f"{world}-{rank}.json").read_text()) for rank in range(world)]


@pytest.mark.parametrize("name", CASES)
def test_processes_hold_and_send_what_is_planned(counted, name):
    world, found = counted
    (_, lengths, settings), shape = CASES[name], shape_of(name)
    cfg, tokens = Config(base="tiny-random", **BF16, **settings), sum(lengths)
    planned = forecast.memory(cfg, shape, [tokens, tokens // 2, sum(n * n for n in lengths)], "bf16", cpu=True, world=world)
    even = 1e-3 if name == "tables" else 1e-9
    assert sum(f[name]["weights"] for f in found) == world * planned["weights"] and planned["weights"] == pytest.approx(found[0][name]["weights"], rel=even)
    assert planned["optimizer"] == pytest.approx(found[0][name]["optimizer"], rel=even)
    peaks = [f[name]["peak"] for f in found]
    print(name, world, [sum(planned.values()) / p - 1 for p in peaks], planned)
    assert sum(planned.values()) == pytest.approx(max(peaks), rel=0.02)

    ring, back = (world - 1) / world, forecast.TYPES[cfg.reduce].itemsize
    layers, tables = cluster.sends(shape, world, 2, back)
    for f in found:
        sent = ring * (f[name]["gather"] + f[name]["reduce_scatter"])
        assert cluster.share(cfg, world).accum * (layers + tables) == pytest.approx(sent, rel=even) and f[name]["besides"] < 1e-4 * sent


def test_uneven_shares_and_what_one_process_does_alone_are_refused():
    cfg = Config(batch_size=2, accum=12)
    assert cluster.share(cfg, 1) == cfg and cluster.share(cfg, 4) == Config(batch_size=2, accum=3)
    assert cluster.share(cfg, 24) == Config(batch_size=1, accum=1)  # a pass is never larger than a process's share
    for changes, world, why in (({}, 5, "stage has 12 x 2 packs in a step, which 5 processes cannot share evenly: choose accum 10"), ({}, 32, "choose accum 32"), ({"accum": 10}, 4, "choose accum 8"),
                                ({"method": "qlora"}, 2, "method 'qlora', which one process trains alone; for 2, choose 'full'"), ({"offload": "both"}, 4, "offload 'both'"),
                                ({"optimizer": "adamw_8bit"}, 2, "choose 'adamw' or 'adamw_bf16' or 'adamw_bf16_sr'")):
        with pytest.raises(ValueError, match=why):
            forecast.forecast(change(cfg, **changes), shape_of("loss"), device="A100-80", many=(1, world))


# ---------------------------------------------------------------------------------------------- hours

def test_hours_of_one_gpu_are_shared_and_what_is_sent_is_hidden_or_waited_for():
    cfg, shape = recipes.get("orca2_13b").stage("stage3_gpt4"), forecast.shape_of(THIRTEEN)
    plan = lambda nodes, gpus, device="A100-80", **changes: forecast.forecast(change(cfg, **changes), shape, device=device, rows=100_000, many=(nodes, gpus))
    one, four = plan(1, 1), plan(4, 8)
    assert one == forecast.forecast(cfg, shape, device="A100-80", rows=100_000) and one["hours"] == pytest.approx(one["flops"] / 312e12 / 0.5 / 3600, rel=1e-12)
    assert one["sent_gib"] == one["sending"] == 0 and one["hours"] == one["hours_apart"] and one["passes"] == 32

    layers, tables = (31 / 32 * n for n in (8 * 40 * (4 * 5120**2 + 3 * 5120 * 13824 + 2 * 5120), 6 * (2 * 32_003 * 5120 + 5120)))  # bf16 twice and fp32; bf16 and fp32
    assert four["sent_gib"] * 2**30 == pytest.approx(layers + tables) and four["passes"] == 1 and four["link"] == 0.7 * 8 * 25e9
    computing = one["hours"] * 3600 / 32 / one["steps"]
    assert four["computing"] == pytest.approx(computing) and four["hours"] == pytest.approx(one["steps"] * (computing + tables / 140e9) / 3600)  # bound by computing
    assert four["hours_apart"] == pytest.approx(one["steps"] * (computing + (layers + tables) / 140e9) / 3600) and four["flops"] == one["flops"]
    assert plan(1, 8)["link"] == 0.7 * 300e9 and plan(4, 1)["link"] == 0.7 * 25e9 and plan(2, 8, "L4")["link"] == 0.7 * 8 * 1.6e9  # NVLink; one adapter; the network of cards without
    slow = plan(4, 8, "L4")
    assert slow["sending"] > slow["computing"] and slow["hours"] == pytest.approx(slow["steps"] * slow["sending"] / 3600)  # bound by the network
    assert plan(4, 8, batch_size=1, accum=64)["sent_gib"] == 2 * four["sent_gib"] and plan(4, 8, reduce="bf16")["sent_gib"] == pytest.approx(0.75 * four["sent_gib"], rel=0.01)


def test_more_gpus_hold_less_each_and_advice_keeps_to_what_they_can():
    cfg, shape = recipes.get("orca2_13b", recompute=0, batch_size=4).stage("stage1_flan"), forecast.shape_of(THIRTEEN)
    plan = lambda gpus: forecast.forecast(cfg, shape, device="A100-40", rows=1000, many=(1, gpus))
    peaks = [plan(n)["peak_gib"] for n in (2, 4, 8, 16, 32)]
    assert peaks == sorted(peaks, reverse=True)
    said = forecast.fits(cfg, plan(16), "A100-40")
    small = change(cfg, recompute=1)
    assert "A100-40 has 38.9; with recompute 1 it would need " in said
    assert said.endswith(f" {forecast.forecast(small, shape, device='A100-40', rows=1000, many=(1, 16))['peak_gib']:.1f}")
    once = change(cfg, update="backward", accum=1, batch_size=128, clip=0.0, recompute=1)  # whose packs cannot be fewer
    assert "no setting" in forecast.fits(once, forecast.forecast(once, shape, device="T4", rows=1000, many=(1, 16)), "T4")
    assert forecast.fits(cfg, plan(2), "A100-40").endswith("no setting makes it fit: choose a smaller base, a shorter seq_len (4096) or a larger device, or more of them")


def test_the_plan_of_the_papers_machines_stands_beside_its_hours(capsys):
    assert main(["plan", "--recipe", "orca2_13b", "--nodes", "4", "--gpus", "8"]) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 100 and text.count(": fits\n") == 3 and text.count("weights, on 4 x 8 A100-80\n") == 3
    made = [forecast.forecast(s, forecast.shape_of(THIRTEEN), device="A100-80", rows=round(recipes.EXPECTED[s.rows] * s.scale), many=(4, 8)) for s in recipes.get("orca2_13b").stages]
    f = made[0]
    assert all(line in text for line in (
        f"\n  time        {f['hours']:>9,.1f} hours for {f['flops']:.2g} FLOPs at 50% (assumed) of 32 x 312 TFLOP/s\n",
        f"\n  speed       {f['tokens'] / f['hours'] / 3600:>9,.0f} tokens/s, {f['tokens'] / f['hours'] / 3600 / 32:,.0f} of each GPU; {32 * f['hours']:,.0f} GPU-hours\n",
        f"\n  sent        {f['sent_gib']:>9.2f} GiB  by each GPU in a step of 1 pass: weights in bf16, gradients in fp32\n", f"so bound by computing, 50% MFU; if nothing were hidden, {f['hours_apart']:,.1f} hours, "))
    for f, hours, rows in zip(made, (17, 40, 23), (3_000_000, 15_000_000, 4 * 1_817_000)):
        tokens = 758 * rows  # half of them targets
        work = 6 * (tokens * (4 * 5120**2 + 3 * 5120 * 13824) * 40 + tokens / 2 * 32_003 * 5120) + 6 * 40 * 5120 * 758 * tokens
        line = next(x for x in text.splitlines() if x.endswith(f"{rows / hours / 3600 / 32:.1f}{work / (hours * 3600 * 32 * 312e12):>5.0%}"))
        assert f"{hours:>6}{32 * hours:>7,}" in line and f"{f['hours']:>7.1f}{32 * f['hours']:>7,.0f}" in line
    assert f"In all {sum(f['hours'] for f in made):.1f} hours and {32 * sum(f['hours'] for f in made):,.0f} GPU-hours; the paper's, on 32 A100-80, 80 and 2,560" in " ".join(text.split())

    for words in (["--recipe", "orca2_7b", "--nodes", "2", "--gpus", "8"], ["--recipe", "orca2_13b", "--on", "H200"], ["--recipe", "orca2_13b", "--nodes", "4", "--gpus", "8", "--seq_len", "2048"]):
        assert main(["plan", *words]) == 0 and "the paper" not in capsys.readouterr().out  # not the paper's


def test_numbers_of_gpus_that_cannot_be(capsys):
    for words, why in ((["--nodes", "0"], "nodes, and gpus of each, are whole numbers of at least 1, got 0 and 1"), (["--gpus", "eight"], "got 1 and eight"),
                       (["--nodes", "3", "--gpus", "8"], "stage1_flan has 32 x 2 packs in a step, which 24 processes cannot share evenly: choose accum 24"), (["--node", "4"], "did you mean 'nodes'")):
        assert main(["plan", "--recipe", "orca2_13b", *words]) == 2 and why in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------- the real sizes

@pytest.mark.long
@pytest.mark.parametrize("base, world, settings", [(THIRTEEN, 32, {}), (SEVEN, 8, {"optimizer": "adamw_bf16_sr", "accum": 16, "recompute": 2})], ids=["13b", "7b"])
def test_7b_and_13b_on_many_take_what_is_planned(monkeypatch, base, world, settings):
    """One of so many processes, its tensors made up and its collectives answered by nobody: torch's FSDP2 decides what is held and sent."""
    cfg, shape = change(recipes.get("orca2_13b").stages[0], compile="no", **settings), forecast.shape_of(base)
    own = cluster.share(cfg, world)
    for sizes in (optim.CHUNK, optim.PART):
        monkeypatch.setitem(sizes, "cpu", sizes["cuda"])
    tokens = own.batch_size * cfg.seq_len
    dist.init_process_group("fake", rank=0, world_size=world, store=FakeStore())
    try:
        mesh = init_device_mesh("cpu", (world,))
        with torch.device("meta"):
            model = llama(shape, torch.float32 if cfg.optimizer == "adamw" else torch.bfloat16)
        with FakeTensorMode(allow_non_fake_inputs=True):
            for part in (*made_up(model).model.layers, model):
                fully_shard(part, mesh=mesh, mp_policy=MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False))
            attention.arrange(model.train(), cfg, "varlen")
            ids, at = torch.zeros(tokens, dtype=torch.int32), torch.zeros(tokens // 2, dtype=torch.long)

            def work():  # `loss_sum` asks which labels are targets, and here they have no values
                states = model.model(input_ids=ids[None], position_ids=ids[None], use_cache=False, ends=torch.zeros(17, dtype=torch.int32), longest=4096).last_hidden_state[0]
                return losses._TargetLoss.apply(states[at], model.lm_head.weight, at, 2**26 // shape.vocabulary)[0]

            model.forward = work
            with Count(*(p.to_local() for p in model.parameters())) as count:
                optimizer = optim.Optimizer(model, cfg)
                optimizer.begin(1e-4)
                for _ in range(own.accum):
                    model().backward()
                    optimizer.gather()
                for names in optimizer.parts:  # `step` asks for the norm
                    optimizer._update(names)
    finally:
        dist.destroy_process_group()
    planned = forecast.memory(cfg, shape, [tokens, tokens // 2, 0], world=world)
    print(base, world, own.accum, sum(planned.values()) / 2**30, count.peak / 2**30)
    assert sum(planned.values()) == pytest.approx(count.peak, rel=0.01)
    assert own.accum * sum(cluster.sends(shape, world, 2, 4)) == pytest.approx((world - 1) / world * sum(count.moved.values()), rel=1e-3)


if __name__ == "__main__":
    worker(sys.argv[1], *map(int, sys.argv[2:]))
