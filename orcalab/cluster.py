"""What several GPUs add to a run's cost: how a step is shared, what each sends, how long that takes, and the hours beside those of the paper.

The bytes are counted by a test on processes that share a model on a CPU. Hours are not measured: no two GPUs were at hand, so what links reach, and what is hidden, is assumed.
"""

import textwrap

from orcalab.config import change

GIB = 2**30
# Bytes/s that a GPU sends at best, one way: inside its node, and into the network. Looked up: NVLink's 600 and 900 GB/s, both ways together, and 200 Gb/s for each A100 (Azure's ND series).
# To our knowledge: 400 Gb/s for each H100 and H200. All others: what PCIe 3.0 has, and an eighth of 100 Gb/s, a low guess
LINKS = {"A100-40": (300e9, 25e9), "A100-80": (300e9, 25e9), "H100": (450e9, 50e9), "H200": (450e9, 50e9), "": (16e9, 1.6e9)}
REACHED = 0.7  # share of a link's rate that we assume to reach
PAPER = {"stage1_flan": (17, 0, 1), "stage2_chatgpt": (40, 5_000_000, 3), "stage3_gpt4": (23, 1_817_000, 4)}  # Orca 2 13B on 32 A100-80: hours, rows (of FLAN no number), epochs


def share(cfg, world):
    """Return a stage as each of several processes sees it: its share of a step's packs, in passes that are no larger.

    Raises:  ValueError: they cannot have as much each, or a setting is for one process alone; says what to choose.
    """
    packs = cfg.packs_per_step // world
    batch = min(cfg.batch_size, packs)
    if cfg.packs_per_step % world or packs % batch:
        raise ValueError(f"{cfg.name} has {cfg.accum} x {cfg.batch_size} packs in a step, which {world} processes cannot share evenly: "
                         + (f"choose batch_size {world}" if cfg.update == "backward" else f"choose accum {max(1, round(cfg.accum / world)) * world}"))
    for field, fits in (("method", ("full",)), ("optimizer", ("adamw", "adamw_bf16", "adamw_bf16_sr")), ("offload", ("nothing",))) if world > 1 else ():
        if (value := getattr(cfg, field)) not in fits:
            raise ValueError(f"{cfg.name} has {field} {value!r}, which one process trains alone; for {world}, choose {' or '.join(map(repr, fits))}")
    return change(cfg, batch_size=batch, accum=packs // batch)


def sends(shape, world, b, back):
    """Return the bytes that each process sends in one pass, forward and backward: of the layers, and of what is outside of them.

    A ring sends all but one's own share. Layers are gathered twice, tables once, `b` bytes a weight; gradients are summed in `back` bytes.
    """
    return [(world - 1) / world * n for n in ((2 * b + back) * (shape.weights - shape.outside), (b + back) * shape.outside)]


def pace(own, shape, name, many, steps, hours, b, back):
    """Return how long a stage takes on several GPUs, and what a step is made of.

    Layers are sent while others compute (assumed; FSDP fetches one ahead), so the longer of both counts; tables are sent while nothing computes. In a ring over nodes
    all adapters of a node send together. Left out: how long a message takes to begin, and that all wait for the GPU with the longest examples.

    Args:    own: of `share`.  name: a key of LINKS, or another.  many: (nodes, GPUs of each).  hours: of computing, on one GPU.  b, back: of `sends`.
    Returns: dict: many, world; of a GPU and step: passes, sent_gib, seconds of sending, at `link` bytes/s, and of computing; hours, and `hours_apart` if nothing were hidden.
    """
    (nodes, gpus), (near, far) = many, LINKS.get(name, LINKS[""])
    link = REACHED * (min(near, far * gpus) if nodes > 1 else near)
    layers, tables = (own.accum * n / link for n in sends(shape, nodes * gpus, b, back))
    computing = hours / nodes / gpus / steps * 3600
    return {"many": list(many), "world": nodes * gpus, "passes": own.accum, "sent_gib": (layers + tables) * link / GIB, "link": link, "sending": layers + tables, "computing": computing,
            "hours": steps * (max(computing, layers) + tables) / 3600, "hours_apart": steps * (computing + layers + tables) / 3600}


def speed(cfg, f):
    """Return the lines of a plan that only several GPUs have; `f` is a forecast."""
    bound, second = "computing" if f["computing"] > f["sending"] else "the network" if f["many"][0] > 1 else "the links", f["tokens"] / f["hours"] / 3600
    mfu = f["flops"] / f["rate"] / f["world"] / 3600  # times hours
    return [f"  {'speed':<12}{second:>9,.0f} tokens/s, {second / f['world']:,.0f} of each GPU; {f['hours'] * f['world']:,.0f} GPU-hours",
            f"  {'sent':<12}{f['sent_gib']:>9.2f} GiB  by each GPU in a step of {f['passes']} pass{'es' * (f['passes'] > 1)}: weights in {f['dtype']}, gradients in {cfg.reduce}",
            f"{'':<24}in {f['sending']:.2f} s at {f['link'] / 1e9:,.0f} GB/s ({REACHED:.0%}, assumed, of the slowest link),",
            f"{'':<24}{f['sending'] / f['computing']:.0%} of the {f['computing']:.2f} s of computing; the shorter is hidden (assumed),",
            f"{'':<24}so bound by {bound}, {mfu / f['hours']:.0%} MFU; if nothing were hidden, {f['hours_apart']:,.1f} hours, {mfu / f['hours_apart']:.0%}"]


def beside_paper(stages, made, rate):
    """Return the lines of a table: forecasts of the paper's stages, if that is what `stages` are, beside its hours, and the MFU that those come to at `rate` FLOP/s."""
    if [s.name for s in stages] != list(PAPER) or not all("Llama-2-13b" in s.base and s.seq_len == 4096 and not s.steps for s in stages):
        return []
    out = [f"  {'':<15}{'ours: rows':>11}{'hours':>7}{'GPU-h':>7}{'rows/s/GPU':>11} | {'the paper: rows':>15}{'hours':>6}{'GPU-h':>7}{'rows/s/GPU':>11}{'MFU':>5}"]
    for f, (name, (hours, rows, epochs)) in zip(made, PAPER.items()):
        n, took, paid = f["examples"], 3600 * f["hours"] * f["world"], 3600 * 32 * hours
        theirs = rows * epochs or n
        out.append(f"  {name:<15}{n / f['epochs'] / 1e6:>5.2f} M x {epochs}{f['hours']:>7.1f}{took / 3600:>7,.0f}{n / took:>11.1f} | {f'{rows / 1e6:.2f} M x {epochs}' if rows else '? x 1':>15}"
                   f"{hours:>6}{paid / 3600:>7,.0f}{theirs / paid:>11.1f}{f['flops'] / n * theirs / paid / rate:>5.0%}")
    ours, world, each = sum(f["hours"] for f in made), made[0]["world"], [f"{f['tokens'] / f['examples']:.0f}" for f in made]
    text = (f"In all {ours:.1f} hours and {ours * world:,.0f} GPU-hours; the paper's, on 32 A100-80, 80 and 2,560. Its MFU is estimated, at {', '.join(dict.fromkeys(each))} tokens a row as here, and "
            "for stage 1, whose rows it does not count, at as many as ours. Our rows are open stand-ins; learning rate, batch and MFU are ours, it publishes none.")
    return [*out, *textwrap.wrap(text, 98, initial_indent="  ", subsequent_indent="  "), ""]
