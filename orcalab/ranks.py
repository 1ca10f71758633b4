"""Several processes, one model: torchrun starts them, FSDP2 keeps a share of every weight in each, and here is all that the other rooms need to know of it.

A process is a *rank*. Each holds its rows of every weight, gradient and moment, and trains its share of every step's packs; a layer's weights are gathered while
it computes. Losses, gradients and updates are those of one process, but for the order of sums. Without torchrun there is one rank, and nothing here does anything.
"""

import atexit
import os
import re
from contextlib import contextmanager
from datetime import timedelta
from types import MethodType

import torch
import torch.distributed as dist

from orcalab import model as models

PATIENCE = timedelta(hours=2)  # how long ranks wait for each other, as while the first prepares the rows; a process that ends, ends all of its machine at once


def begin(device="auto"):
    """Join the processes that torchrun started, if it did; each takes the GPU of its number, or the CPU. Return this one's rank."""
    if "LOCAL_RANK" in os.environ and int(os.environ.get("WORLD_SIZE", 1)) > 1 and not dist.is_initialized():
        if models.pick(device)[0] == "cuda":
            if (number := int(os.environ["LOCAL_RANK"])) >= torch.cuda.device_count():
                raise ValueError(f"there are more processes than GPUs on this machine ({torch.cuda.device_count()}): start as many, with --nproc_per_node")
            torch.cuda.set_device(number)
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=PATIENCE)
        atexit.register(dist.destroy_process_group)  # else its threads may outlive the interpreter, which aborts a job that is done
    return rank()


def rank():
    return dist.get_rank() if dist.is_initialized() else 0


def world():
    """Return how many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def nodes():
    """Return (how many machines train together, how many processes on each)."""
    here = min(int(os.environ.get("LOCAL_WORLD_SIZE", 1)), world())
    return world() // here, here


@contextmanager
def gone():
    """Say it plainly when the work breaks off because another rank is no more."""
    try:
        yield
    except RuntimeError as e:
        if world() > 1 and re.search(r"gloo|nccl|peer|connection|broken pipe|socket", str(e), re.I):
            raise ConnectionError(f"rank {rank()} of {world()} lost another one, which was killed or failed (what it said, if anything, stands above; here: "
                                  f"{str(e).splitlines()[0][:200]}). If it was killed, the same command goes on from the last whole checkpoint") from e
        raise


def every(value):
    """Return the values of all ranks, in their order."""
    out = [value] * world()
    if world() > 1:
        dist.all_gather_object(out, value)
    return out


def first(work):
    """Let the first rank do `work`, and return what it returned, in all; an error there is an error in all."""
    return together(lambda: work() if rank() == 0 else None)[0]


def together(work):
    """Do `work` in each rank; return what all returned, in their order. An error in one is an error in all, which the others tell by kind and text."""
    if world() == 1:
        return [work()]
    mine, error = (None, None), None
    try:
        mine = work(), None
    except Exception as e:  # the others wait
        error, mine = e, (None, (next(k for k in (OSError, ValueError, RuntimeError, Exception) if isinstance(e, k)), str(e)))
    said = every(mine)
    if error is not None:
        raise error
    for _, other in said:
        if other is not None:
            raise other[0](other[1])
    return [value for value, _ in said]


def total(t):
    """Sum a tensor over all ranks, in place."""
    if world() > 1:
        dist.all_reduce(t)
    return t


def share(costs, number, of):
    """Return which of a step's packs rank `number` takes `of` several: as many each; the dearest first, each to who has least to do, so that nobody waits long.

    >>> [share([9, 1, 1, 8, 2, 7], number, 2) for number in range(2)]
    [[0, 1, 4], [2, 3, 5]]
    """
    parts, work = [[] for _ in range(of)], [0] * of
    for i in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        n = min((n for n in range(of) if len(parts[n]) * of < len(costs)), key=lambda n: (work[n], n))
        parts[n].append(i)
        work[n] += costs[i]
    return sorted(parts[number])


# ------------------------------------------------------------------------------------------------- weights

def local(t):
    """Return what this rank holds of a tensor: of a plain one, all."""
    return t.detach().to_local() if hasattr(t, "to_local") else t


def like(t, p):
    """Return what a rank holds as a tensor of all ranks, laid out as the weight `p`."""
    if not hasattr(p, "to_local"):
        return t
    from torch.distributed.tensor import DTensor
    return DTensor.from_local(t, p.device_mesh, p.placements, run_check=False, shape=p.shape, stride=p.stride())


def own_row(p, row):
    """Return which of this rank's rows of the weight `p` the row `row` is, [] if another rank has it; rows are dealt as torch.chunk does."""
    if not hasattr(p, "to_local"):
        return [row]
    at = row - rank() * -(-p.shape[0] // world())
    return [at] if 0 <= at < p.to_local().shape[0] else []


def load(cfg, start, dtype, device):
    """Load a model of which each rank holds its share; the first alone reads the files, the others begin on the meta device.

    Weights that have fp32 masters are those masters, and are rounded to `dtype` as they are gathered; gradients are summed over ranks in `cfg.reduce`.

    Returns: (model, tokenizer, origin), as model.load.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
    from torch.distributed.tensor import distribute_tensor
    kept, found = torch.float32 if cfg.optimizer == "adamw" else dtype, []

    def read():
        found.extend(models.load(start, kept, "cpu", cfg.template, cfg.rope))
        return found[0].config, found[0].generation_config, found[2]

    config, generation, origin = first(read)
    tokenizer = found[1] if found else models.load_tokenizer(start, cfg.template)
    values = {**dict(found[0].named_parameters()), **dict(found[0].named_buffers())} if found else {}
    model, mesh = models.empty(config, kept), init_device_mesh(device, (world(),))
    model.generation_config = generation
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=models.pick("cpu", cfg.reduce)[1], cast_forward_inputs=False)
    for part in (*model.get_decoder().layers, model):
        fully_shard(part, mesh=mesh, mp_policy=policy)
    model.to_empty(device=device)
    for name, t in [*model.named_parameters(), *model.named_buffers()]:
        value = values[name].detach().to(device) if found else torch.empty(t.shape, dtype=t.dtype, device=device)
        if isinstance(t, torch.nn.Parameter):
            local(t).copy_(local(distribute_tensor(value, mesh, t.placements)))
        else:
            dist.broadcast(value, 0)
            t.copy_(value)
    model.through = MethodType(lambda self, work, *args, **more: work(self, *args, **more), model)
    register_fsdp_forward_method(model, "through")
    return model, tokenizer, origin


@contextmanager
def gathered(model):
    """Keep all weights gathered from one forward pass to the next: answering makes one for every token."""
    parts = [m for m in model.modules() if hasattr(m, "set_reshard_after_forward")]
    for m in parts:
        m.set_reshard_after_forward(False, recurse=False)
    try:
        yield
    finally:
        for m in parts:
            m.set_reshard_after_forward(m is not model, recurse=False)
            m.reshard()


def whole(model):
    """Return the model whole and plain, on the CPU, in the first rank; in the others None."""
    state = {}
    for name, p in model.named_parameters():
        full = p.full_tensor()  # all ranks give their rows
        if rank() == 0:
            state[name] = full.cpu()
    if rank() == 0:
        plain = models.empty(model.config, next(model.parameters()).dtype)
        plain.load_state_dict(state, strict=not model.config.tie_word_embeddings, assign=True)
        plain.tie_weights()
        plain.generation_config = model.generation_config
        return plain
