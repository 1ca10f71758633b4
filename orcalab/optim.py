"""Optimizers: AdamW with fp32 masters, all in bf16, or with 8-bit moments; once a step or in the backward pass; and what rounding loses."""

import math
from functools import partial

import torch

from orcalab import ranks
from orcalab.config import digest

B1, B2, EPS = 0.9, 0.95, 1e-8  # AdamW's
BLOCK, SMALL = 256, 4096  # elements that share a scale in 8 bits; a tensor below SMALL keeps fp32 moments (both as in bitsandbytes)
CHUNK = {"cpu": 2**16, "cuda": 2**24}  # elements of a weight without master that are updated at once (on a CPU as many as its cache holds)
PART = {"cpu": 2**20, "cuda": 2**26}  # elements of several weights with masters that are
MOMENTS = {"adamw": 8, "adamw_bf16": 4, "adamw_bf16_sr": 4, "adamw_8bit": 2 + 8 / BLOCK}  # bytes of them for each weight
SEEN = 65_536  # elements that the lost-update meter looks at


def learning_rate(cfg, step):
    """Return the learning rate of a step: linear warm-up, then a cosine or a straight line to a tenth, or constant.

    >>> from orcalab.config import Config
    >>> [round(learning_rate(Config(steps=10, warmup=2, lr=1.0), s), 2) for s in (0, 1, 2, 9)]
    [0.5, 1.0, 1.0, 0.13]
    """
    if step < cfg.warmup:
        return cfg.lr * (step + 1) / cfg.warmup
    share = (step - cfg.warmup) / max(1, cfg.steps - cfg.warmup)
    return cfg.lr * {"constant": 1.0, "linear": 1 - 0.9 * share, "cosine": 0.1 + 0.45 * (1 + math.cos(math.pi * share))}[cfg.schedule]


def by_chance(x, noise):
    """Round fp32 to bf16, up or down with the chance that makes the mean exact; NaN and infinity stay.

    `noise` (int16, one each) is 16 random bits: they are added below those that bf16 keeps, which then are all that is left.
    """
    bits = (x.view(torch.int32) + noise).add_(0x8000).bitwise_and_(-0x10000)
    return torch.where(x == x, bits.view(torch.float32), x).to(torch.bfloat16)


def wanted(weight, grad, m, v, numbers):
    """Return AdamW's (change of the weight, first moment, second moment) in fp32; for `numbers` see Optimizer._scale."""
    scale, decay, rate, root = numbers
    grad = grad * scale
    m = m + (grad - m) * (1 - B1)
    v = v * B2 + grad * grad * (1 - B2)
    return -decay * weight - rate * m / (v.sqrt() / root + EPS), m, v


def update_bf16(weight, grad, m, v, numbers, noise=None):
    """Update a weight and its moments in place: computed in fp32, rounded by chance, or to the nearest without noise (a tensor for each of the three)."""
    w = weight.float()
    change, *moments = wanted(w, grad.float(), m.float(), v.float(), numbers)
    for i, (kept, x) in enumerate(zip((weight, m, v), (w + change, *moments))):
        kept.copy_(x if noise is None or kept.dtype == torch.float32 else by_chance(x, noise[i]))


class Optimizer:
    """AdamW over a model's trained weights, by name. A step is: begin; backward and gather for each batch; step.

    With update "backward" only the largest gradient counts. Gradients of several batches (accum > 1) add up in fp32 under every choice: a small one would
    be lost in a large sum in bf16. It costs two bytes more, since each moves into its sum as soon as it is there, and the model never holds a second set.

    Args:    model: its parameters with requires_grad are trained; matrices decay, vectors do not.
             cfg: optimizer, update, offload (what is kept lies in pinned host memory), accum, weight_decay, clip, seed; compile "no" spares weights without
                 master the compiled update that they get on CUDA.
             still: [(weight, row)] of rows that never move.
             exact: {name: fp32 tensor} of the weights before they were rounded to the type they compute in: the masters of "adamw" begin there. From rounded
                 ones, which lie on bf16's grid, no weight would move until its updates add up to half a step of that grid.
    Attributes: lost: share of the last step's change that rounding swallowed where it should have added up: 1 - sum(applied * sign(wanted)) / sum|wanted| over
                 at most 65,536 elements spread over all weights, `wanted` being fp32 AdamW's. About 0: none; 1: all; NaN: there was no update.
    Raises:  ValueError: fp16 weights would be rounded into bf16; bitsandbytes is missing.
    """

    def __init__(self, model, cfg, still=(), exact={}):
        params = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self.cfg, self.params, self.weights = cfg, params, {n: ranks.local(p) for n, p in params.items()}
        self.kind, self.device, fp32 = cfg.optimizer, next(iter(self.weights.values())).device, torch.float32
        self.away = self.device.type == "cuda" and cfg.offload in ("optimizer", "both")
        self.still = {n: [r for w, row in still if w is p for r in ranks.own_row(p, row)] for n, p in params.items()}
        for n, p in self.weights.items():
            if self.kind != "adamw" and p.dtype not in (torch.bfloat16, fp32):
                raise ValueError(f"optimizer is {self.kind!r}, which rounds to bf16, and {n} is {p.dtype}: choose dtype bf16 or fp32, or optimizer adamw")
        if self.kind == "adamw_8bit":
            try:
                from bitsandbytes.functional import create_dynamic_map
            except ImportError:
                raise ValueError("optimizer is 'adamw_8bit', which needs bitsandbytes: pip install bitsandbytes") from None
            self.maps = [create_dynamic_map(signed).to(self.device) for signed in (True, False)]
        fast = self.device.type == "cuda" and cfg.compile != "no"
        self.update_bf16, self.by_chance = (torch.compile(f, dynamic=True) if fast else f for f in (update_bf16, by_chance))
        self.generator, self.steps, self.grads, self.lost = torch.Generator(self.device), torch.tensor(0), {}, math.nan
        self.kept, self.moments, self.slots, parts, start = {}, {}, {}, {}, 0
        total = sum(p.numel() for p in self.weights.values())
        stride = -(-total // SEEN) | 1  # odd, so that every column has its turn
        self.meter = torch.zeros(4, -(-total // stride), device=self.device)  # of what is looked at: gradient, whether it decays, fp32 moments
        for n, p in self.weights.items():
            self.kept[n] = self._new(p.shape, fp32).copy_(exact.get(n, p).detach()) if self.kind == "adamw" and p.dtype != fp32 else p.detach()
            if self.kind == "adamw_8bit" and p.numel() >= SMALL:
                blocks = (-(-p.numel() // BLOCK),)
                made = {"state1": (p.shape, torch.uint8), "state2": (p.shape, torch.uint8), "absmax1": (blocks, fp32), "absmax2": (blocks, fp32)}
            else:
                made = dict.fromkeys(("exp_avg", "exp_avg_sq"), (p.shape, torch.bfloat16 if "bf16" in self.kind else fp32))
            self.moments[n] = {k: self._new(*x) for k, x in made.items()}
            parts.setdefault(n if self.away else (p.ndim > 1, start // PART[self.device.type]), []).append(n)
            where, at, start = slice(-start % stride, None, stride), -(-start // stride), start + p.numel()
            if number := len(self.kept[n].view(-1)[where]):
                self.slots[n] = where, self.meter[:, at : at + number]
                self.meter[1, at : at + number] = p.ndim > 1
            if cfg.update == "backward" or cfg.accum > 1:
                params[n].register_post_accumulate_grad_hook(partial(self._take, n))
        self.parts = list(parts.values())

    def _new(self, shape, dtype):
        return torch.zeros(shape, dtype=dtype, pin_memory=True) if self.away else torch.zeros(shape, dtype=dtype, device=self.device)

    def begin(self, lr, divide=1.0):
        """Begin a step, before its first backward; every gradient is divided by `divide` (fp16 training backpropagates a sum)."""
        self.lr, self.grads, self.norms, self.now = lr, {}, [], (self.steps + 1).to(self.device, torch.float32)
        self._scale(1.0 / divide)
        self.before = self._seen()

    def _scale(self, scale):
        """Set what gradients are multiplied by, and the `numbers` of vectors and matrices: tensors, so that one compiled update serves every step."""
        now, self.scale = int(self.steps) + 1, scale
        numbers = [[scale, self.lr * self.cfg.weight_decay * matrix, self.lr / (1 - B1**now), math.sqrt(1 - B2**now)] for matrix in (False, True)]
        self.numbers = [row.unbind() for row in torch.tensor(numbers, device=self.device)]

    def _seen(self):
        """Return what the meter looks at: a few elements of every master, or of the weight where there is none."""
        if self.away:
            torch.cuda.synchronize()
        return torch.cat([self.kept[n].view(-1)[where] for n, (where, _) in self.slots.items()]).to(self.device, torch.float32)

    def gather(self):
        """Take up the gradients that lie in .grad, behind a backward; with accum > 1 or update "backward" hooks have done so already."""
        for n, p in self.params.items():
            self._take(n, p)

    @torch.no_grad()
    def _take(self, n, p):
        if p.grad is None:
            return
        grad, p.grad = ranks.local(p.grad), None
        for row in self.still[n]:
            grad[row] = 0
        self.grads[n] = self.grads[n].float().add_(grad) if n in self.grads else grad
        if self.cfg.update == "backward":
            self.norms.append(torch.linalg.vector_norm(grad, dtype=torch.float32))
            self._update([n])

    @torch.no_grad()
    def step(self):
        """Update the weights and return the gradient's norm before clipping; if it is not finite, they stay as they are.

        With update "backward" they are updated by now, whatever the norm.
        """
        self.gather()
        norms = self.norms or torch._foreach_norm(list(self.grads.values()), 2.0, dtype=torch.float32)
        norm = torch.linalg.vector_norm(torch.stack(list(norms))) * self.scale
        norm = ranks.total(norm.square()).sqrt() if ranks.world() > 1 else norm
        clip = (self.cfg.clip / (norm + 1e-6)).item() if self.cfg.clip else 1.0
        norm, self.lost = norm.item(), math.nan
        if not math.isfinite(norm):
            self.grads = {}
            return norm
        if clip < 1:
            self._scale(self.scale * clip)
        for part in self.parts:
            if names := [n for n in part if n in self.grads]:
                self._update(names)
        scale, decay, rate, root = self.numbers[True]
        change, self.meter[2], self.meter[3] = wanted(self.before, self.meter[0], *self.meter[2:], (scale, decay * self.meter[1], rate, root))
        applied, whole = ranks.total(torch.stack([((self._seen() - self.before) * change.sign()).sum(), change.abs().sum()]))
        self.lost = (1 - applied / whole).nan_to_num().item()
        self.steps += 1
        return norm

    def _update(self, names):
        """Update weights whose gradients are there, and free those; what is offloaded comes to the device and goes back."""
        for n in names:
            if n in self.slots:
                where, slot = self.slots[n]
                slot[0] = self.grads[n].reshape(-1)[where]
        home = [[self.kept[n], *self.moments[n].values()] for n in names]
        here = [[t.to(self.device, non_blocking=True) for t in tensors] for tensors in home]  # the same tensors, where nothing is offloaded
        unmoved = [(kept, row, kept[row].clone()) for n, (kept, *_) in zip(names, here) for row in self.still[n]]
        if self.kind == "adamw":
            grads = [self.grads.pop(n).float() for n in names]
            if self.scale != 1:
                torch._foreach_mul_(grads, self.scale)
            self._fused(*zip(*here), grads, self.cfg.weight_decay * (grads[0].ndim > 1))  # a part is all matrices, or none
        else:
            for n, tensors in zip(names, here):
                self._low(n, *tensors)
        for kept, row, was in unmoved:  # weight decay would move it
            kept[row] = was
        for n, there, tensors in zip(names, home, here):
            if self.weights[n].dtype != tensors[0].dtype:
                self.weights[n].copy_(tensors[0])
            for a, b in zip(there, tensors):
                if a is not b:
                    a.copy_(b, non_blocking=True)

    def _fused(self, weights, m, v, grads, decay):
        torch._fused_adamw_(weights, grads, m, v, [], [self.now] * len(weights), lr=self.lr, beta1=B1, beta2=B2, eps=EPS, weight_decay=decay, amsgrad=False, maximize=False)

    def _low(self, n, weight, *moments):
        """Update one weight that has no master, a chunk at a time; its random bits hang on seed, step and name alone."""
        self.generator.manual_seed(int(digest([self.cfg.seed, int(self.steps), n, *[ranks.rank()] * (ranks.world() > 1)], 15), 16))
        matrix, grad, (weight, *moments), size = weight.ndim > 1, self.grads.pop(n).reshape(-1), (t.view(-1) for t in (weight, *moments)), CHUNK[self.device.type]
        for at in range(0, len(weight), size):
            cut = slice(at, at + size)
            w, g = weight[cut], grad[cut]
            if self.kind != "adamw_8bit":
                self.update_bf16(w, g, *(m[cut] for m in moments), self.numbers[matrix], None if self.kind == "adamw_bf16" else self._noise(3, len(w)))
                continue
            fp32, g, decay = w.float(), g.float().mul_(self.scale), self.cfg.weight_decay * matrix
            if len(moments) == 2:  # a small one
                self._fused([fp32], *([m] for m in moments), [g], decay)
            else:
                quantised = *(x[cut] for x in moments[:2]), B1, B2, 0.0, 0.0, EPS, int(self.steps) + 1, self.lr, *self.maps
                scales = (x[at // BLOCK : (at + size) // BLOCK] for x in moments[2:])
                torch.ops.bitsandbytes.optimizer_update_8bit_blockwise("adam", g, fp32, *quantised, *scales, decay, 1.0)
            if w.dtype != fp32.dtype:
                w.copy_(self.by_chance(fp32, *self._noise(1, len(w))))

    def _noise(self, rows, length):
        """Return `rows` tensors of `length` times 16 random bits."""
        bits = torch.empty(-(-rows * length // 4), dtype=torch.int64, device=self.device).random_(-(2**63), None, generator=self.generator)
        return bits.view(torch.int16)[: rows * length].view(rows, length).unbind()

    def state(self):
        """Return all that resume needs, {name: tensor}, live: masters (or weights without one), moments, steps taken, and in a single process the meter's moments."""
        if self.away:
            torch.cuda.synchronize()
        moments = {f"{k}.{n}": ranks.like(t, self.params[n]) for n, tensors in self.moments.items() for k, t in tensors.items()}
        kept = {f"master.{n}": ranks.like(t, self.params[n]) for n, t in self.kept.items()}
        return kept | moments | {"step": self.steps} | ({"meter": self.meter[2:]} if ranks.world() == 1 else {})

    @torch.no_grad()
    def load(self, state):
        """Take over what `state` returned, whatever device it lies on.

        Raises:  ValueError: a tensor is missing, left over, or of another type or shape; nothing was changed.
        """
        mine, what = self.state(), lambda t: "nothing" if t is None else f"{t.dtype} {tuple(t.shape)}"
        meter = mine.pop("meter", None) if "meter" not in state else None  # saved by several processes, each of which looked at other elements
        for name in [*mine, *state]:
            if (has := what(state.get(name))) != (own := what(mine.get(name))):
                raise ValueError(f"the optimizer's saved state has {has} for {name}, this run {own}: it belongs to another model, method or optimizer")
        for name, t in mine.items():
            t.copy_(state[name])
        for n, p in self.weights.items():
            p.copy_(self.kept[n])
        for n, (where, slot) in self.slots.items() if ranks.world() > 1 or meter is not None else ():
            for row, t in zip(slot[2:], self.moments[n].values()):
                row.copy_(t.view(-1)[where])
