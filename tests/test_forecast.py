"""What a run will cost is planned as it comes: weights, work and bytes are counted on real models, real packs and tensors that exist or are made up."""

import json
import subprocess
import sys
import weakref

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from orcalab import adapter, attention, corpus, forecast, loss as losses, model as models, optim, recipes
from orcalab.config import Config
from orcalab.forecast import GIB, Shape

SEVEN, THIRTEEN = (f"meta-llama/Llama-2-{n}b-hf" for n in (7, 13))


class Live(TorchDispatchMode):
    """Counts the bytes of tensors that are alive, each storage once, and the most that ever were."""

    def __init__(self, *tensors):
        super().__init__()
        self.sizes, self.now, self.peak = {}, 0, 0
        for t in tensors:
            self.see(t)

    def see(self, t):
        storage = t.untyped_storage()
        if storage._cdata not in self.sizes:
            self.sizes[storage._cdata] = storage.nbytes()
            self.now += storage.nbytes()
            weakref.finalize(storage, self.gone, storage._cdata)

    def gone(self, key):
        self.now -= self.sizes.pop(key)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for t in tree_leaves(out):
            if isinstance(t, torch.Tensor):
                self.see(t)
        self.peak = max(self.peak, self.now)
        return out


def llama(shape, dtype):
    """Return a random Llama of some shape."""
    from transformers import LlamaConfig, LlamaForCausalLM
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=shape.vocabulary, hidden_size=shape.width, intermediate_size=shape.inner, num_hidden_layers=shape.layers, num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads, tie_word_embeddings=shape.tied)).to(dtype)


def small(tied=False):
    """A shape of which activations, weights and logits take about as much as each other."""
    w, kv, inner, layers = 192, 96, 512, 4
    return Shape(layers, w, 8, 4, 24, inner, 6144, tied, layers * (2 * w * w + 2 * w * kv + 3 * w * inner), (2 * layers + 1) * w)


def in_4_bits(model):
    """Put the decoder's linear layers into NF4; return its weights and their scales."""
    adapter.guests()
    from bitsandbytes.nn import Linear4bit, Params4bit
    for name, old in [(n, m) for n, m in model.named_modules() if n.endswith("_proj")]:
        new = Linear4bit(old.in_features, old.out_features, bias=False, compute_dtype=model.dtype, quant_type="nf4", device="meta")
        new.weight = Params4bit(old.weight.data, requires_grad=False, quant_type="nf4", module=new)
        new.support_avx512bf16_for_cpu = False
        model.set_submodule(name, new.to("cpu"))
    return [t for p in model.parameters() if hasattr(p, "quant_state") for t in (p.quant_state.absmax, p.quant_state.state2.absmax)]


def counted(shape, lengths, dtype, tokenizer, **settings):
    """Train two steps for real; return (Config, batch, {what: bytes counted}, the optimizer)."""
    cfg = Config(base="tiny-random", lora_rank=16, compile="no", **settings)
    model = llama(shape, dtype)
    scales = in_4_bits(model) if cfg.method == "qlora" else []
    if cfg.method != "full":
        for p in model.parameters():
            p.requires_grad_(False)
        adapter.inject(model, tokenizer, cfg, "random")
    attention.arrange(model.train(), cfg, "documents")
    tokens = sum(lengths)
    position, ids = torch.cat([torch.arange(n) for n in lengths]), torch.arange(tokens) % shape.vocabulary
    labels = torch.where(torch.arange(tokens) % 2 == 0, ids, -100)
    live = Live(*model.parameters(), *scales)
    found = {"weights": live.now}
    with live:
        optimizer = optim.Optimizer(model, cfg)
        for _ in range(2):
            optimizer.begin(1e-4)
            for _ in range(cfg.accum):
                before = live.now
                loss, _ = losses.loss_sum(model, ids, position, {"lengths": lengths}, labels)
                found["activations"] = live.now - before
                loss.backward()
                optimizer.gather()
            del loss
            optimizer.step()
    return cfg, [tokens, tokens // 2, sum(n * n for n in lengths)], {**found, "peak": live.peak}, optimizer


# ---------------------------------------------------------------------------------------------- shape and work

def test_shapes_are_those_of_the_models():
    model, tokenizer, origin = models.load("tiny-random")
    shape = forecast.shape_of("tiny-random")
    assert shape == Shape(2, 64, 4, 2, 16, 192, len(tokenizer), True, 2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 192), 5 * 64) and shape.weights == origin["parameters"]
    assert forecast.shape_of(SEVEN).weights == 6_738_415_616 + 2 * 3 * 4096 and forecast.shape_of(SEVEN).vocabulary == 32_003  # Llama 2's own number, and three tokens
    assert forecast.shape_of(THIRTEEN).weights == 13_015_864_320 + 2 * 3 * 5120 and forecast.shape_of(THIRTEEN, "openassistant").vocabulary == 32_006
    assert {p.device.type for p in models.skeleton(SEVEN).parameters()} == {"meta"}


def test_a_folder_has_the_shape_of_its_model(tmp_path, tiny):
    models.save(tmp_path / "model", *tiny)
    assert forecast.shape_of(tmp_path / "model") == forecast.shape_of("tiny-random")
    with pytest.raises(ValueError, match="no base model named 'tiny-randon'; did you mean 'tiny-random'"):
        forecast.shape_of("tiny-randon")


def test_flops_are_those_of_the_matrix_products(tokenizer):
    lengths, shape = [40, 24], small()._replace(layers=2, matrices=small().matrices // 2)
    given = torch.arange(64), torch.arange(64), {"lengths": lengths}
    masked = forecast.flops(shape, 0, 0, lengths)  # half of each square, which is computed here

    model = attention.arrange(llama(shape, torch.float32), Config(), "documents")
    with FlopCounterMode(display=False) as counter:
        losses.loss_sum(model, *given, torch.arange(64) % 2 - 1)[0].backward()
    assert counter.get_total_flops() == forecast.flops(shape, 64, 32, lengths) + masked

    cfg, model = Config(base="tiny-random", method="lora", lora_rank=4), llama(shape, torch.float32)
    adapter.inject(model, tokenizer, cfg, "random")
    with FlopCounterMode(display=False) as counter:
        attention.hidden(attention.arrange(model, cfg, "documents"), *given).sum().backward()
    assert counter.get_total_flops() == forecast.flops(shape, 64, 0, lengths, "lora", forecast.adapter_of(shape, cfg)) + masked


def test_work_is_counted_in_the_prepared_rows(recipe, tokenizer):
    cfg = recipe.stage("stage2_chatgpt", steps=3, batch_size=2, accum=2)
    prepared = corpus.prepare(recipe, cfg, tokenizer)
    packs = prepared.packs(0, 12)
    lengths = [np.unique(s[s >= 0], return_counts=True)[1] for s in packs.segment]
    todo = forecast.work(cfg, prepared)
    assert (todo["steps"], todo["tokens"], todo["targets"], todo["how"]) == (3, (packs.segment >= 0).sum(), packs.num_targets, "")
    assert sorted(todo["lengths"]) == sorted(np.concatenate(lengths)) and todo["epochs"] == len(todo["lengths"]) / len(prepared.examples)
    per_pack = np.array([[n.sum(), (y >= 0).sum(), (n[n <= 512] ** 2).sum()] for n, y in zip(lengths, packs.labels)])
    assert todo["batch"] == per_pack.reshape(-1, 2, 3).sum(1).max(0).tolist()
    planned = forecast.forecast(cfg, forecast.shape_of("tiny-random"), prepared, "cpu")
    assert json.loads(json.dumps(planned)) == planned and planned["peak_gib"] == sum(planned["gib"].values()) and planned["tokens"] == todo["tokens"]


def test_work_is_estimated_where_the_rows_are_not_here():
    cfg = Config(steps=0, epochs=3, seq_len=4096, batch_size=2, accum=4)
    todo = forecast.work(cfg, rows=100_000)
    assert (todo["steps"], todo["targets"]) == (round(3 * 100_000 * 758 / 8 / 4096), todo["tokens"] // 2) and todo["epochs"] == pytest.approx(3, rel=1e-3)
    assert todo["how"] == "100,000 rows of 758 tokens (Orca 1: 2.7 in a pack of 2,048), half of them targets" and todo["batch"] == [8192, 4096, 0]
    assert forecast.work(Config(steps=5, seq_len=256))["batch"] == [256, 128, 256**2]
    with pytest.raises(ValueError, match="stage goes through its rows 3 times, and they are not here: prepare them first, or give steps"):
        forecast.work(cfg)


# ---------------------------------------------------------------------------------------------- memory

CASES = [("bf16", {}), ("fp32", {}), ("bf16", {"tied": True, "accum": 2}), ("bf16", {"accum": 3, "optimizer": "adamw_bf16_sr"}), ("bf16", {"recompute": 1}), ("fp32", {"recompute": 2}),
         ("bf16", {"recompute": 1, "optimizer": "adamw_8bit", "update": "backward", "clip": 0.0}), ("bf16", {"method": "lora"}), ("fp32", {"method": "lora", "lora_on": "head", "lora_dropout": 0.1}),
         ("bf16", {"method": "qlora", "recompute": 1})]


@pytest.mark.parametrize("dtype, settings", CASES, ids=lambda x: x if isinstance(x, str) else "-".join(f"{k}={v}" for k, v in x.items()) or "plain")
def test_memory_is_planned_as_it_is_taken(tokenizer, dtype, settings):
    shape, settings = small(settings.get("tied", False)), {k: v for k, v in settings.items() if k != "tied"}
    cfg, batch, found, optimizer = counted(shape, [256] * 4, forecast.TYPES[dtype], tokenizer, **settings)
    planned = forecast.memory(cfg, shape, batch, dtype, cpu=True)
    size = lambda tensors: sum(t.nbytes for t in tensors)
    assert planned["weights"] + planned.get("adapter", 0) == pytest.approx(found["weights"], rel=2e-2 if cfg.method != "full" else 1e-6)  # without the rows of new tokens
    assert planned["optimizer"] == pytest.approx(size(t for kept in optimizer.moments.values() for t in kept.values()), rel=2e-2)
    assert planned.get("masters", 0) == size(m for n, m in optimizer.kept.items() if m.data_ptr() != optimizer.weights[n].data_ptr())
    assert sum(planned.values()) == pytest.approx(found["peak"], rel=0.04)
    if "loss" in planned and cfg.method == "full":
        table = (shape.table + batch[1] * shape.width) * forecast.TYPES[dtype].itemsize  # gradients that wait for the backward pass
        assert planned["activations"] + table == pytest.approx(found["activations"], rel=0.01)


@pytest.mark.filterwarnings("ignore:.torch.jit.script_method:DeprecationWarning")  # what torch's own compiler still uses
def test_compiled_layers_keep_less():
    shape, tokens, kept = small()._replace(layers=1), 256, {}
    model = llama(shape, torch.bfloat16)
    layer, x, at = model.model.layers[0], torch.randn(1, tokens, shape.width, dtype=torch.bfloat16, requires_grad=True), torch.arange(tokens)[None]
    inputs = model.model.rotary_emb(x, at)
    elsewhere = {t.untyped_storage()._cdata for t in (*model.parameters(), *inputs)}

    def keep(t):
        if t.untyped_storage()._cdata not in elsewhere:
            kept[t.untyped_storage()._cdata] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        torch.compile(layer, backend="aot_eager_decomp_partition")(x, position_embeddings=inputs, position_ids=at)  # what inductor keeps, without its code
    assert sum(kept.values()) == forecast.layer(shape, Config(), 2, [tokens, 0, 0], alone=False, fast=True)


def test_the_recipes_fit_the_cards_that_they_are_for():
    def peak(recipe, **changes):
        stage = recipes.get(recipe, **changes).stages[-1]
        return forecast.forecast(stage, forecast.shape_of(stage.base), device="A100-80", rows=1000)["peak_gib"] * GIB / 1e9

    assert peak("a100") < 75 and peak("a100_13b") < 78 and peak("small_gpu", dtype="bf16") < 14
    assert peak("a100", optimizer="adamw_8bit", update="backward", clip=0.0, accum=1, batch_size=1, offload="optimizer") < 24
    assert peak("orca2_7b") > 100


def made_up(model):
    """Give a model on the meta device tensors that have a place and a size, and no memory; called under FakeTensorMode."""
    for module in model.modules():
        for kind in (module._parameters, module._buffers):
            for name, t in kind.items():
                if t is not None:
                    new = torch.empty(t.shape, dtype=t.dtype)
                    kind[name] = torch.nn.Parameter(new) if kind is module._parameters else new
    return model


@pytest.mark.long
@pytest.mark.parametrize("base, settings", [(SEVEN, {"batch_size": 2, "accum": 3}), (SEVEN, {"recompute": 0}), (THIRTEEN, {"update": "backward", "clip": 0.0, "batch_size": 4})])
def test_7b_and_13b_take_what_is_planned(monkeypatch, base, settings):
    cfg, shape = Config(base="tiny-random", **{"seq_len": 4096, "recompute": 1, "optimizer": "adamw_bf16", "compile": "no", **settings}), forecast.shape_of(base)
    monkeypatch.setitem(optim.CHUNK, "cpu", optim.CHUNK["cuda"])
    tokens, chunk = cfg.batch_size * cfg.seq_len, 2**26 // shape.vocabulary
    with torch.device("meta"):
        model = llama(shape, torch.bfloat16)
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = attention.arrange(made_up(model).train(), cfg, "varlen")
        ids, at = torch.zeros(tokens, dtype=torch.int32), torch.zeros(tokens // 2, dtype=torch.long)
        with Live(*model.parameters()) as live:
            optimizer = optim.Optimizer(model, cfg)
            optimizer.begin(1e-4)
            for _ in range(cfg.accum):
                states = attention.hidden(model, ids, ids, {"ends": torch.zeros(17, dtype=torch.int32), "longest": 4096})
                losses._TargetLoss.apply(states[at], model.lm_head.weight, at, chunk)[0].backward()  # `loss_sum` asks which labels are targets, and here they have no values
                del states
                optimizer.gather()
            for names in optimizer.parts if cfg.update == "step" else ():  # `step` asks for the norm
                optimizer._update(names)
    assert sum(forecast.memory(cfg, shape, [tokens, tokens // 2, 0]).values()) == pytest.approx(live.peak, rel=0.02)


@pytest.mark.long
@pytest.mark.parametrize("settings", [{}, {"seq_len": 2048}, {"dtype": "fp32"}, {"recompute": 1}], ids=lambda x: next(iter(x), "laptop"))
def test_a_process_takes_what_is_planned(tmp_path, settings):
    code = ("import json, sys\nfrom orcalab import corpus, model, recipes, train\n"
            "recipe = recipes.get('laptop', out=sys.argv[1], steps=3, device='cpu', **json.loads(sys.argv[2]))\ncfg = recipe.stage('stage2_chatgpt')\n"
            "train.train(cfg, corpus.prepare(recipe, cfg, model.load_tokenizer(recipe.base, cfg.template)))\n")
    subprocess.run([sys.executable, "-c", code, tmp_path, json.dumps(settings)], check=True, capture_output=True)
    done = json.loads((tmp_path / "stage2_chatgpt" / "results.json").read_text())
    assert done["planned_gib"] == pytest.approx(done["peak_gib"], rel=0.1)


# ---------------------------------------------------------------------------------------------- devices and advice

def test_devices_are_known_by_the_names_that_torch_gives_them():
    torch_says = {"NVIDIA A100-SXM4-40GB": "A100-40", "NVIDIA A100 80GB PCIe": "A100-80", "NVIDIA H100 80GB HBM3": "H100", "NVIDIA H100 PCIe": "H100-PCIe", "NVIDIA H200": "H200",
                  "NVIDIA L4": "L4", "NVIDIA L40S": "L40S", "NVIDIA A10G": "A10G", "NVIDIA GeForce RTX 4090": "RTX-4090", "NVIDIA RTX A6000": "A6000", "Tesla T4": "T4",
                  "Tesla V100-SXM2-32GB": "V100-32"}
    assert {name: forecast.named(name)[0] for name in torch_says} == torch_says
    assert forecast.rate("a100-80") == forecast.rate("NVIDIA A100-SXM4-80GB", torch.float16) == 312e12 and forecast.rate("T4", "fp32") == 8.1e12
    with pytest.raises(ValueError, match="no device named 'A100'; did you mean 'A100-"):
        forecast.rate("A100")
    with pytest.raises(ValueError, match="T4 has no instructions for bf16: choose dtype fp16"):
        forecast.rate("T4", "bf16")
    assert 1e9 < forecast.rate("cpu", "fp32") < 1e14 and forecast.rate("cpu", "fp32") == forecast.rate("cpu", "fp32")
    assert 0.2 < forecast.room("cpu") < 10_000 and forecast.room("T4") == pytest.approx(14.1)


def test_the_compute_type_is_the_devices():
    shape, cfg = forecast.shape_of(SEVEN), Config(method="qlora")
    assert forecast.forecast(cfg, shape, device="T4")["dtype"] == "fp16" and forecast.forecast(Config(), shape, device="T4")["dtype"] == "fp32"
    assert forecast.forecast(cfg, shape, device="L4")["dtype"] == "bf16" and forecast.forecast(Config(dtype="fp32"), shape, device="L4")["rate"] == 30.3e12


def test_what_does_not_fit_says_what_to_change():
    cfg, shape = recipes.get("orca2_7b").stage("stage1_flan", batch_size=2), forecast.shape_of(SEVEN)
    planned = forecast.forecast(cfg, shape, device="A100-80", rows=1000)
    said = forecast.fits(cfg, planned, "A100-80")
    assert said.startswith(f"stage1_flan needs {planned['peak_gib']:.1f} GiB at its peak, and A100-80 has 78.7; with recompute 1, batch_size 1, accum 128, optimizer adamw_bf16_sr it would need ")
    from orcalab.config import change
    new = change(cfg, recompute=1, batch_size=1, accum=128, optimizer="adamw_bf16_sr")
    then = forecast.forecast(new, shape, device="A100-80", rows=1000)
    assert said.endswith(f" {then['peak_gib']:.1f}") and forecast.fits(new, then, "A100-80") == ""
    assert "update backward, clip 0.0, offload both" not in forecast.fits(cfg, planned, "A100-40") and "optimizer adamw_8bit, update backward, clip 0.0 it" in forecast.fits(cfg, planned, "A100-40")
    assert "offload both it" in forecast.fits(cfg, planned, "L4")
    small = forecast.forecast(cfg, shape, device="T4", rows=1000)
    assert "with recompute 1, batch_size 1, accum 128, method qlora it would need" in forecast.fits(cfg, {**small, "dtype": "fp16"}, "T4")  # no rounding into bf16 there
    long = change(cfg, seq_len=2**20, method="qlora")
    assert forecast.fits(long, forecast.forecast(long, shape, device="T4", rows=1000), "T4").endswith("no setting makes it fit: choose a smaller base, a shorter seq_len (1048576) or a larger device")


def test_the_plan_is_read_at_a_glance():
    stages = recipes.get("a100").stages
    text = forecast.describe(stages, forecast.shape_of(SEVEN), "A100-40", rows={s.name: 1_000_000 for s in stages})
    assert max(map(len, text.splitlines())) <= 100 and text.count("does not fit") == 3
    assert all(line in text for line in ("stage1_flan   meta-llama/Llama-2-7b-hf, 6.74 billion weights, on A100-40\n  full, adamw_bf16_sr, bf16, recompute 1\n",
                                         "\n  2,892 steps of 32 x 2 packs of 4,096: 758.12 million tokens, 379.06 million targets, 1.00 epochs\n",
                                         "\n  estimated: 1,000,000 rows of 758 tokens (Orca 1: 2.7 in a pack of 2,048), half of them targets\n",
                                         "\n  optimizer       25.10 GiB  " + "█" * 60 + "\n", "of 38.9: does not fit\n"))
    on_cpu = forecast.describe([Config(base="tiny-random", device="cpu", steps=3, seq_len=256, dtype="fp32")], forecast.shape_of("tiny-random"))
    assert "on cpu\n" in on_cpu and "\n  process          0.5" in on_cpu and ": fits\n" in on_cpu and "minutes for" in on_cpu
