"""LoRA and QLoRA: an adapter in a frozen base, and the rows of new tokens; merged onto the very weights it was trained with, and proved to say the same.

    <folder>/adapter   peft's layout, with the tokenizer and an orcalab.json that says what it was trained on
             model     the merged model, in the Hugging Face layout

peft puts the adapter inside the plain model, so that every other room handles it like any model. Its weights are fp32; where the base computes in bf16 or fp16,
the decoder runs under autocast, which casts them as they are used. In QLoRA the decoder's linear layers are in NF4; embeddings, norms and the output layer
stay in the compute type, so that it makes no difference whether rows for new tokens come before or after quantising.
"""

import hashlib
import logging
import shutil
import tempfile
import warnings
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.nn.functional as F

from orcalab import chatml, model as models
from orcalab.config import read_json, write_json

SHAPE = ("method", "lora_rank", "lora_alpha", "lora_on")  # what stays as it is while an adapter is trained on
TIMES = 3  # how much further a merged model may be from its adapter than two ways to compute the adapter are from each other: right merges 1.1 to 1.4, wrong ones 10
TEXT = ("A train leaves at 9:40 and drives 150 km at 60 km/h. When does it arrive? Let us take it step by step: 150 divided by 60 is 2.5, so the journey takes "
        "two hours and a half; 9:40 and 2:30 make 12:10.\nThe answer is 12:10. Whoever wants to check it can go the other way round: both ways agree.")


def guests():
    """Import peft and bitsandbytes without noise: the lack of a kernel that answers faster on some CPUs, and what torch deprecates in itself."""
    logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(lambda record: "kernels-community" not in record.msg)
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning), warnings.catch_warnings(action="ignore", category=FutureWarning):
        with suppress(ImportError):  # LoRA does without
            import bitsandbytes  # noqa: F401  before peft, which imports it, too
        import peft  # noqa: F401


def new_rows(tokenizer):
    """Return the ids of a template's marks that stand behind the tokenizer's own vocabulary, which a base has not learned. Padding is none of them."""
    return sorted(i for i in chatml.marks(tokenizer) if i >= tokenizer.vocab_size)


def weights_of(model):
    """Return the weights that are trained, {their name in peft's files: parameter}."""
    return {"base_model.model." + n.replace(".default", ""): p for n, p in model.named_parameters() if p.requires_grad}


def load_base(name, cfg, dtype, device):
    """Load what an adapter stands on, for QLoRA in NF4 with its scales quantised too; return (model, tokenizer, origin)."""
    guests()
    if cfg.method == "qlora" and not find_spec("bitsandbytes"):
        raise ValueError("method is 'qlora', which needs bitsandbytes: pip install bitsandbytes")
    from transformers import BitsAndBytesConfig  # leaves the output layer, and what is tied to it, as they are
    how = {"device_map": {"": device}}  # weights take their type and place as they come; buffers, as those of the rotary embedding, stay in fp32
    if cfg.method == "qlora":
        how["quantization_config"] = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype)
    with tempfile.TemporaryDirectory() as side:
        if tiny := name == "tiny-random":
            models.save(Path(side, "model"), *models.tiny_random(template=cfg.template))
        model, tokenizer, origin = models.load(Path(side, "model") if tiny else name, dtype, device, cfg.template, cfg.rope, **how)
    for layer in model.modules():
        layer.support_avx512bf16_for_cpu = False  # else one look in eval mode repacks weights for answering on a CPU, and no gradient passes them any more
    return model, tokenizer, {**origin, "digest": models.weights_digest(name)} if tiny else origin


def inject(model, tokenizer, cfg, base):
    """Put a new adapter into a model: LoRA on every linear layer of the decoder, and the rows of new tokens in input and output.

    With lora_on "head", the output layer has LoRA too. peft trains no single rows of such a layer, and need not: LoRA reaches them all. A table that is
    both input and output is doubled first, because only the output is to change; whoever loads such an adapter with peft alone has to do the same.
    """
    import peft
    head, table, dtype, on_head, rows = model.get_output_embeddings(), model.get_input_embeddings(), model.dtype, cfg.lora_on == "head", new_rows(tokenizer)
    if on_head and head.weight is table.weight:
        head.weight, model.config.tie_word_embeddings = torch.nn.Parameter(head.weight.detach().clone()), False
    linear = {n.split(".")[-1] for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and (m is not head or on_head)}
    tables = [n for n, m in model.named_modules() if m is table or m is head and not on_head and head.weight is not table.weight]  # peft ties what is tied
    peft.inject_adapter_in_model(peft.LoraConfig(
        r=cfg.lora_rank, lora_alpha=cfg.lora_alpha, lora_dropout=cfg.lora_dropout, target_modules=sorted(linear), task_type="CAUSAL_LM",
        trainable_token_indices={n: rows for n in tables} if rows else None, base_model_name_or_path=base), model)
    for p in weights_of(model).values():
        p.data = p.data.float()
    if dtype != torch.float32:
        decoder = model.get_decoder()
        for layer in decoder.modules():
            layer.cast_input_dtype_enabled = False  # autocast brings the adapter to the inputs, not the inputs to the adapter
        decoder.forward = torch.autocast(model.device.type, dtype)(decoder.forward)


def earlier(cfg, start, say=False):
    """Return (folder, orcalab.json) of the adapter behind a stage's merged model, if cfg asks for its shape, else (None, {}).

    Raises:  ValueError: its base is not there, or is not what it was; to begin anew on merged weights in silence would lose what was learned.
    """
    folder = Path(start).parent / "adapter"
    if Path(start).name != "model" or not (folder / "orcalab.json").exists():
        return None, {}
    note = read_json(folder / "orcalab.json")
    if odd := [f"{k}: {note[k]!r} -> {getattr(cfg, k)!r}" for k in SHAPE if note[k] != getattr(cfg, k)]:
        if say:
            print(f"{folder} is not trained on ({', '.join(odd)}): {cfg.name} begins a new adapter on {start}", flush=True)
        return None, {}
    return folder, trained_on(folder)


def trained_on(folder):
    """Return an adapter's orcalab.json; raise a ValueError if its base is not there, or is not what it was."""
    note = read_json(folder / "orcalab.json")
    try:
        now = models.weights_digest(note["base"])
    except (ValueError, OSError) as e:
        now = f"nothing ({e})"
    if now != note["digest"]:
        raise ValueError(f"{folder} was trained on {note['base']} with digest {note['digest']}, and there is {now} now: restore that base, or move the folder away to begin a new adapter")
    return note


def seal(folder):
    """Return the digest of an adapter's weights."""
    return hashlib.sha256((folder / "adapter_model.safetensors").read_bytes()).hexdigest()[:16]


def stands_on(cfg, start):
    """Return what a stage's adapter begins with, for the run's seal: the base and the digest of the adapter that is trained on, if there is one."""
    folder, note = earlier(cfg, start)
    return {"base": note["digest"], "adapter": seal(folder)} if folder else {}


def load(cfg, start, dtype, device):
    """Load what a stage of method lora or qlora trains: a frozen base with an adapter in it.

    If `start` is a stage's `model` folder with its adapter beside it, that adapter is trained on, in its own base. In 4 bits this matters: to quantise
    merged weights again would round away much of what the stage before learned, which is small beside a step of NF4.

    Returns: (model, tokenizer, origin), as models.load; origin also has "base", "base_digest", "adapter" (that is trained on, or "") and "trained" (weights).
    Raises:  ValueError: the adapter was trained with another vocabulary or tokenizer than its base has, or in other layers.
    """
    folder, was = earlier(cfg, start, say=True)
    model, tokenizer, origin = put(folder, was, was.get("base", str(start)), cfg, dtype, device)
    return model, tokenizer, {**origin, "from": str(start), "digest": models.weights_digest(start) if folder else origin["digest"], "base": model.note["base"],
                              "base_digest": origin["digest"], "adapter": str(folder or ""), "trained": sum(p.numel() for p in weights_of(model).values())}


def put(folder, was, base, cfg, dtype, device):
    """Load a base and put an adapter in it: a new one, or that of `folder`, whose orcalab.json is `was`; return (model, tokenizer, the base's origin)."""
    rope = was.get("rope") or cfg.rope  # the base has no scaling of its own: each adapter brings it
    if cfg.rope not in ("", rope):
        raise ValueError(f"rope is {cfg.rope!r}, and {folder} was trained with {rope!r}: leave rope empty, or move that folder away to begin a new adapter on a base that is not stretched")
    model, tokenizer, origin = load_base(base, SimpleNamespace(method=cfg.method, template=cfg.template, rope=rope), dtype, device)
    model.note = {"base": base, "digest": origin["digest"], "rope": rope, **{k: getattr(cfg, k) for k in SHAPE}, "vocabulary": model.config.vocab_size,
                  "tokenizer": chatml.fingerprint(tokenizer), "template": chatml.template_of(tokenizer)}
    inject(model, tokenizer, cfg, base)
    own = weights_of(model)
    if folder:
        from safetensors.torch import load_file
        saved = load_file(folder / "adapter_model.safetensors")
        odd = [f"{k} {was[k]} -> {model.note[k]}" for k in ("vocabulary", "tokenizer") if was[k] != model.note[k]]
        if odd := odd or sorted(n for n in saved.keys() | own.keys() if n not in saved or n not in own or saved[n].shape != own[n].shape):
            raise ValueError(f"{folder} does not fit its base {base} any more ({odd[0]}): restore the base's files, or move that folder away to begin a new adapter")
        with torch.no_grad():
            for name, p in own.items():
                p.copy_(saved[name])
    return model, tokenizer, origin


def folder_of(source):
    """Return what a source of a student stands for: of a stage's folder its `model`, else its `adapter`; any other as it is."""
    inner = [p for p in (Path(source, "model"), Path(source, "adapter")) if (p / "config.json").exists() or (p / "adapter_config.json").exists()]
    return str(inner[0] if inner else source)


def load_to_answer(source, dtype, device, template=None, four_bit=False):
    """Load a model to answer with: a whole one, one in 4 bits, or an adapter put in its base; of a stage's folder its `model`, else its `adapter`.

    Returns: (model, tokenizer, origin), as models.load.
    Raises:  ValueError: an adapter of another program, which does not say what its base was.
    """
    folder = Path(source := folder_of(source))
    if not (folder / "adapter_config.json").exists():
        if not four_bit:
            return models.load(source, dtype, device, template)
        model, tokenizer, origin = load_base(source, SimpleNamespace(method="qlora", template=template, rope=""), dtype, device)
        return model, tokenizer, {**origin, "digest": f"{origin['digest']}, nf4"}
    if not (folder / "orcalab.json").exists():
        raise ValueError(f"{folder} is an adapter of another program: merge it with peft (merge_and_unload, save_pretrained), and give that folder")
    note = trained_on(folder)
    cfg = SimpleNamespace(**{k: note[k] for k in SHAPE} | {"method": "qlora" if four_bit else note["method"]}, lora_dropout=0.0, rope="", template=template or note["template"])
    model, tokenizer, origin = put(folder, note, note["base"], cfg, dtype, device)
    return model, tokenizer, {**origin, "from": str(source), "digest": f"{origin['digest']}+{seal(folder)}{', nf4' * four_bit}"}


def save(folder, model, tokenizer):
    """Write a model's adapter in peft's layout, with its tokenizer and what it was trained on; whole or not at all."""
    from safetensors.torch import save_file
    with models.aside(folder) as side:
        model.peft_config["default"].save_pretrained(side)
        save_file({n: p.detach().contiguous() for n, p in weights_of(model).items()}, side / "adapter_model.safetensors", {"format": "pt"})
        tokenizer.save_pretrained(side)
        write_json(side / "orcalab.json", model.note)


def merge(model, home):
    """Turn a model with an adapter into a plain one on the device `home`, in place, layer by layer: W + scale B A, summed in fp32 and rounded once. W is what
    the adapter was trained with: of a quantised layer, what its 4 bits mean."""
    from peft.tuners.lora import LoraLayer
    from peft.utils.integrations import dequantize_module_weight
    from peft.utils.other import TrainableTokensWrapper
    dtype = model.dtype
    model.get_decoder().__dict__.pop("forward", None)  # the one under autocast
    for name, layer in [(n, m) for n, m in model.named_modules() if isinstance(m, LoraLayer)]:
        old, plain = layer.get_base_layer(), torch.nn.Linear(layer.in_features, layer.out_features, bias=False, device="meta")
        weight = dequantize_module_weight(old).float() + layer.get_delta_weight("default").float()
        plain.weight, plain.bias = torch.nn.Parameter(weight.to(home, dtype), requires_grad=False), old.bias
        model.set_submodule(name, plain)
    for name, layer in [(n, m.token_adapter) for n, m in model.named_modules() if isinstance(m, TrainableTokensWrapper)]:
        layer.base_layer.weight.data[layer.token_indices["default"]] = layer.trainable_tokens_delta["default"].to(dtype)
        model.set_submodule(name, layer.base_layer)
    if model.note["method"] == "qlora":
        model.hf_quantizer.remove_quantization_config(model)
        model.is_loaded_in_4bit = False
    del model.peft_config
    model.to(home)


def compare(want, got):
    """Measure how far logits are from what they should be; both are lists of (tokens, vocabulary). Returns a dict: max and mean, of the absolute difference;
    relative, its root mean square over the spread of a token's logits; same_top, the share of tokens with the same likeliest successor; kl, in nats a token."""
    want, got = torch.cat(want), torch.cat(got)
    off, p, q = (got - want).abs(), F.log_softmax(want, -1), F.log_softmax(got, -1)
    return {"max": off.max().item(), "mean": off.mean().item(), "relative": (off.square().mean() / want.var(-1).mean()).sqrt().item(),
            "same_top": (want.argmax(-1) == got.argmax(-1)).float().mean().item(), "kl": F.kl_div(q, p, reduction="batchmean", log_target=True).item()}


def logits(model, tokenizer, attention="sdpa"):
    """Return a model's logits, fp32 on the CPU, on conversations of several lengths, with transformers' own attention and nothing dropped."""
    model.eval().set_attn_implementation(attention)
    talks = [chatml.TALK, *[[{"role": "user", "content": TEXT[:n]}, {"role": "assistant", "content": TEXT[n : 4 * n]}] for n in (30, 70, 150)]]
    with torch.no_grad():
        return [model(input_ids=torch.tensor([chatml.encode(t, tokenizer)[0]], device=model.device), use_cache=False).logits[0].float().cpu() for t in talks]


def finish(folder, model, tokenizer, cfg):
    """Write a trained adapter to folder/adapter and, merged with its base, to folder/model, if both say the same; the model is a plain one afterwards.

    They cannot agree to the bit: merged weights are rounded to the compute type. So the limit comes from the model itself: how far its logits move when only
    the attention's kernel is another, which is right as well.

    Returns: dict: what `compare` says of the merged model's logits and the adapter's, and "noise", the relative difference between two kernels.
    Raises:  ValueError: they differ by more than TIMES the noise, or vocabulary or tokenizer are not those of `load`. No model folder is left.
    """
    folder, note = Path(folder), model.note
    shutil.rmtree(folder / "model", ignore_errors=True)
    now = {"vocabulary": model.config.vocab_size, "tokenizer": chatml.fingerprint(tokenizer)}
    if odd := [f"{k} {note[k]} -> {v}" for k, v in now.items() if note[k] != v]:
        raise ValueError(f"{cfg.name} was trained with another vocabulary or tokenizer than it would be saved with ({', '.join(odd)}): hand over those that load gave")
    save(folder / "adapter", model, tokenizer)
    want, home = logits(model, tokenizer), model.device
    noise = compare(want, logits(model, tokenizer, "eager"))["relative"]
    if home.type == "cuda":
        torch.cuda.empty_cache()
        more = model.num_parameters() * model.dtype.itemsize - model.get_memory_footprint() + 2**30
        home = home if torch.cuda.mem_get_info()[0] > more else torch.device("cpu")
    merge(model, home)
    numbers = {**compare(want, logits(model, tokenizer)), "noise": noise}
    limit = TIMES * noise + torch.finfo(model.dtype).eps
    text = (f"logits differ by at most {numbers['max']:.2g}, on average {numbers['mean']:.2g}, {numbers['relative']:.2g} of their spread (limit {limit:.2g}); "
            f"same first choice {numbers['same_top']:.1%}; KL {max(0, numbers['kl']):.2g} nats")
    if not numbers["relative"] <= limit:
        raise ValueError(f"the merged model of {cfg.name} does not say what its adapter says: {text}. {folder / 'adapter'} is whole: use it on {note['base']} without "
                         f"merging, or train with dtype fp32, in another out, so that merged weights are not rounded to {model.dtype}")
    models.save(folder / "model", model, tokenizer)
    print(f"merged {cfg.name}: {text}", flush=True)
    return numbers
