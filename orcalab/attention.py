"""Packed examples kept apart, and how a model's layers are computed while it learns: compiled, twice, their activations elsewhere."""

import inspect
from functools import lru_cache, partial, wraps

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from orcalab import packing

SMALL = 2**22  # bytes up to which a saved tensor stays where it is: positions, norms
_compiled = lru_cache(torch.compile)


def kind_of(cfg, device, dtype):
    """Return how packed examples are kept apart: "varlen", "flex" or "documents" (one after the other), what `cfg.attention` says or auto comes to.

    Raises:  ValueError: what is asked for cannot learn here; or compiled layers are, where every pack has a shape of its own.
    """
    flash = device == "cuda" and torch.cuda.get_device_capability() >= (8, 0) and dtype in (torch.bfloat16, torch.float16)
    if cfg.attention == "varlen" and not flash or cfg.attention == "flex" and device != "cuda":  # of flex, torch has no backward pass on a CPU
        wants = "a GPU" if cfg.attention == "flex" else "a GPU of compute capability 8, and bf16 or fp16"
        raise ValueError(f"attention is {cfg.attention!r}, which needs {wants}; this is {device} and {dtype}: choose 'auto'")
    kind = cfg.attention if cfg.attention != "auto" else "varlen" if flash else "flex" if device == "cuda" else "documents"
    if cfg.compile == "yes" and kind == "documents":
        raise ValueError("compile is 'yes', which needs packs of one shape, and attention 'documents' gives each its own: choose compile 'auto'")
    return kind


def batch_of(packed, rows, device, kind="documents"):
    """Lay rows of a Packed side by side.

    With "documents" their padding is left out; else it stays, each as a document of its own, so that every batch has one shape. Where each pack holds one example
    (packing "none"), most of it would be padding: it is left out there, and the batch filled up to a sixteenth of a pack.

    Args:    rows: numbers of rows in `packed`.
    Returns: ids, position, labels: int32, (tokens,).
             apart: where examples end, as keyword arguments of the attention; see `packed_attention`, `varlen_attention`, `flex_attention`.
    """
    alone = kind != "documents" and packed.segment[rows].max() < 1
    close = alone or kind == "documents"
    lengths = [n for s in packed.segment[rows] for n in packing.lengths_of(s[s >= 0] if close else s)]
    real = packed.segment[rows].reshape(-1) >= (0 if close else -1)
    tensors = [torch.from_numpy(a[rows].reshape(-1)[real]).to(device) for a in (packed.ids, packed.position, packed.labels)]
    if alone and (rest := -sum(lengths) % -(-packed.ids.shape[1] // 16)):
        tensors, lengths = [F.pad(t, (0, rest), value=none) for t, none in zip(tensors, (0, 0, packing.IGNORE))], [*lengths, rest]
    return *tensors, apart_of(lengths, packed.ids.shape[1], device, kind)


def apart_of(lengths, seq_len, device, kind):
    """Return the keyword arguments that tell every layer the `lengths` of the documents side by side, each of at most `seq_len` tokens."""
    if kind == "documents":
        return {"lengths": lengths}
    documents = torch.tensor(lengths, device=device)
    if kind == "varlen":
        room = 1 << max(4, (len(lengths) - 1).bit_length())  # a few shapes serve all packs; what is left over are documents of no tokens
        ends = F.pad(documents.cumsum(0), (1, 0))
        ends = F.pad(ends, (0, room - len(lengths)), value=sum(lengths)).to(torch.int32)
        torch._dynamo.maybe_mark_dynamic(ends, 0)
        return {"ends": ends, "longest": seq_len}
    from torch.nn.attention.flex_attention import create_block_mask
    number, total = torch.arange(len(lengths), device=device).repeat_interleave(documents, output_size=sum(lengths)), sum(lengths)
    return {"block": create_block_mask(lambda b, h, q, k: (number[q] == number[k]) & (q >= k), None, None, total, total, device)}


@lru_cache(64)  # as many as one batch asks for again and again; of every length that comes by they would be a gigabyte
def _mask(length, groups, dtype, device):
    """Return -inf above the diagonal, repeated for the query heads that share a key head."""
    return torch.full((length, length), float("-inf"), dtype=dtype, device=device).triu(1).repeat(groups, 1)


def _one(q, k, v, scale):
    """Causal attention of one example: q (heads, tokens, dim), k and v (key heads, tokens, dim)."""
    heads, tokens, dim = q.shape
    groups = heads // k.shape[0]
    if tokens > 512:
        return F.scaled_dot_product_attention(q[None], k[None], v[None], is_causal=True, scale=scale, enable_gqa=True)[0]
    # plain matrix products: faster on short examples than torch's CPU flash kernel in bf16
    q = q.reshape(k.shape[0], groups * tokens, dim)
    scores = torch.baddbmm(_mask(tokens, groups, q.dtype, q.device), q, k.transpose(1, 2), alpha=scale)
    return (scores.softmax(-1) @ v).view(heads, tokens, dim)


def packed_attention(module, query, key, value, attention_mask=None, scaling=None, dropout=0.0, lengths=None, **_):
    """Attend inside each example of a pack, never across: transformers calls this in every layer.

    Args:    query: (1, heads, tokens, dim), the examples one after the other.  key, value: (1, key heads, tokens, dim).
             lengths: tokens of each example, in order; they sum to `tokens`.
    Returns: (1, tokens, heads, dim), and None for the weights.
    """
    if lengths is None or sum(lengths) != query.shape[2]:
        raise ValueError(f"packed attention needs the lengths of the examples, summing to {query.shape[2]} tokens")
    parts = zip(query[0].split(lengths, 1), key[0].split(lengths, 1), value[0].split(lengths, 1))
    return torch.cat([_one(q, k, v, scaling) for q, k, v in parts], 1).transpose(0, 1)[None], None


def varlen_attention(module, query, key, value, attention_mask=None, scaling=None, dropout=0.0, ends=None, longest=None, **_):
    """The same in one kernel of CUDA.

    Args:    ends: int32, (documents + 1,), 0 and where each document ends; what is left over repeats the last end.  longest: tokens that no document exceeds.
    """
    from torch.nn.attention.varlen import varlen_attn
    q, k, v = (t[0].transpose(0, 1).contiguous() for t in (query, key, value))  # (tokens, heads, dim)
    how = {"enable_gqa": True} if "enable_gqa" in inspect.signature(varlen_attn).parameters else {}  # torch 2.11 has no such word
    if not how:
        k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], 1) for t in (k, v))
    return varlen_attn(q, k, v, ends, ends, longest, longest, scale=scaling, window_size=(-1, 0), **how)[None], None


def flex_attention(module, query, key, value, attention_mask=None, scaling=None, dropout=0.0, block=None, **_):
    """The same in a kernel that is made for `block`, a BlockMask of the documents; on a CPU, where it can only look, all scores at once."""
    from torch.nn.attention.flex_attention import flex_attention as attend
    if query.is_cuda and not torch.compiler.is_compiling():
        attend = _compiled(attend)
    return attend(query, key, value, block_mask=block, scale=scaling, enable_gqa=True).transpose(1, 2), None


KINDS = {"documents": packed_attention, "varlen": varlen_attention, "flex": flex_attention}


def isolate(model, kind="documents"):
    """Make a model keep packed examples apart, in a way that `hidden` then says more of."""
    from transformers import AttentionInterface, AttentionMaskInterface
    AttentionInterface.register(f"orcalab_{kind}", KINDS[kind])
    AttentionMaskInterface.register(f"orcalab_{kind}", lambda *a, **k: None)
    model.set_attn_implementation(f"orcalab_{kind}")
    return model


def gathering(work):
    """Make `work(model, …)` a forward pass of its own: of a sharded model the outer weights are gathered for it, and its gradients are spread."""
    @wraps(work)
    def run(model, *args, **more):
        return model.through(work, *args, **more) if hasattr(model, "through") else work(model, *args, **more)
    return run


def hidden(model, ids, position, apart):
    """Return the last hidden states (tokens, width) of documents laid side by side, kept apart as `batch_of` said."""
    return model.get_decoder()(input_ids=ids[None], position_ids=position[None], use_cache=False, **apart).last_hidden_state[0]


def arrange(model, cfg, kind):
    """Isolate a model's packed examples, and compute its layers as `cfg` says, as long as it is in training mode.

    Each is compiled by itself (all share one program), and every `cfg.recompute`-th keeps its input alone and is computed again in the backward pass.
    With `cfg.offload` what is kept waits in the host's memory. Losses and gradients are the same to the bit, but for compiling, which orders sums anew.
    """
    decoder, device = model.get_decoder(), next(model.parameters()).device.type
    fast = cfg.compile == "yes" or cfg.compile == "auto" and device == "cuda" and kind != "documents"
    for i, layer in enumerate(decoder.layers):
        again = cfg.recompute and i % cfg.recompute == 0
        if fast or again:
            layer.forward = _learning(layer, fast, again)
    if cfg.offload in ("activations", "both"):
        decoder.forward = _elsewhere(decoder.forward, {p.untyped_storage().data_ptr() for p in model.parameters()})
    return isolate(model, kind)


def _learning(layer, fast, again):
    """Return a layer's forward pass for training mode; else it is as it was, since answering and looking bring many shapes."""
    plain = layer.forward
    learn = torch.compile(plain) if fast else plain
    if again:  # not reentrant: with an adapter no input of a layer needs a gradient
        learn = partial(checkpoint, learn, use_reentrant=False)
    return lambda *args, **more: (learn if layer.training else plain)(*args, **more)


def _elsewhere(forward, weights):
    """Return `forward` with what it saves for the backward pass put in the host's memory, weights and small tensors excepted."""
    def away(t):
        if t.numel() * t.element_size() <= SMALL or t.untyped_storage().data_ptr() in weights:
            return t, None
        return torch.empty_like(t, device="cpu", pin_memory=t.is_cuda).copy_(t, non_blocking=True), t.device

    def back(saved):
        t, device = saved
        return t if device is None else t.to(device, non_blocking=True)

    def run(*args, **more):
        with torch.autograd.graph.saved_tensors_hooks(away, back):
            return forward(*args, **more)
    return run
