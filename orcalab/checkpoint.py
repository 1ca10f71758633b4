"""Checkpoints: what a run needs to go on, written whole or not at all, and proved whole when it is read. Nothing is pickled.

    <folder>/checkpoints/step-000020/state.safetensors    tensors by name
                                     state.json           the caller's note and the step, whether it is the best, size and SHA-256 of the tensors, digest of all this

Several processes write a file each (`shard-*.safetensors`, torch's distributed checkpoint in the Hugging Face form), which any number of processes can read.

The best checkpoint is the newest that was saved with best=True. The mark is a part of the checkpoint and comes onto the disk in the same renaming, so that no
kill can part them.
"""

import hashlib
import json
import os
import re
import shutil
import warnings
from contextlib import suppress
from pathlib import Path

import torch
from safetensors.torch import load_file

from orcalab import ranks
from orcalab.config import Config, digest, read_json, write_json

TYPES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64", torch.int32: "I32",
         torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL"}  # safetensors' names for them


def rng():
    """Return where torch's random numbers stand, {name: uint8 tensor}: the CPU's and, if CUDA is in use, those of each device."""
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return {"rng.cpu": torch.get_rng_state()} | {f"rng.cuda.{i}": state for i, state in enumerate(devices)}


def set_rng(tensors):
    """Put torch's random numbers where they stood at `rng`; other names are passed over, and so are devices that are not here."""
    if "rng.cpu" not in tensors:  # of several processes, which draw none that count
        return
    torch.set_rng_state(tensors["rng.cpu"])
    for i in range(torch.cuda.device_count()):
        if (state := tensors.get(f"rng.cuda.{i}")) is not None:
            torch.cuda.set_rng_state(state, i)


def kept(folder):
    """Return the folders of a run's checkpoints, oldest first."""
    return sorted((p for p in (Path(folder) / "checkpoints").glob("step-*") if re.fullmatch(r"step-\d+", p.name)), key=lambda p: int(p.name[5:]))


def write_tensors(path, tensors):
    """Write a safetensors file and return its SHA-256. One tensor at a time is in the host's memory; safetensors' own save_file brings all of them there,
    and refuses those that share storage or are not contiguous, which here are written out."""
    tensors = dict(sorted(tensors.items(), key=lambda item: -item[1].element_size()))  # wide types first, so that each begins at a multiple of its size
    head, end, seal = {}, 0, hashlib.sha256()
    for name, t in tensors.items():
        head[name] = {"dtype": TYPES[t.dtype], "shape": list(t.shape), "data_offsets": [end, end := end + t.numel() * t.element_size()]}
    text = json.dumps(head).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f:
        for t in (None, *tensors.values()):
            data = len(text).to_bytes(8, "little") + text if t is None else t.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
            f.write(data)
            seal.update(data)
    return seal.hexdigest()


def sync(*paths):
    """Wait until files and folders are on the disk; Windows offers no such wait for a folder."""
    for path in paths if os.name == "posix" else ():
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def save(folder, step, tensors, note, keep=2, best=False):
    """Write a checkpoint to the side, wait for the disk, rename it, and only then remove those before the last `keep`, but never the best.

    Args:    folder: the run's folder.  step: steps done; larger than that of any checkpoint there.  tensors: {name: tensor}, on any device.
             note: what JSON can hold, with the run's seal under "seal".  best: whether this is the best so far.
    Raises:  OSError: the disk is full or failed; older checkpoints are as they were.
    """
    target = Path(folder) / "checkpoints" / f"step-{step:06d}"
    side = target.with_suffix(".part")

    def begin():
        for left in target.parent.glob("*.part"):  # by a kill
            shutil.rmtree(left, ignore_errors=True)
        side.mkdir(parents=True)

    def end():
        made = {name: of for each in files for name, of in each.items()}
        state = {"note": {**note, "step": step}, "best": best, **({"shards": made} if ranks.world() > 1 else made["state.safetensors"])}
        write_json(side / "state.json", {**state, "digest": digest(json.loads(json.dumps(state)), 64)})  # of what will be read
        sync(side / "state.json", side)
        side.replace(target)
        sync(target.parent)
        old = kept(folder)
        for path in set(old) - {*old[-keep:], *[p for p in old if marked(p)][-1:]}:
            shutil.rmtree(path, ignore_errors=True)

    try:
        ranks.first(begin)
        files = ranks.together(lambda: write(side, tensors))
        ranks.first(end)
    except OSError as e:
        shutil.rmtree(side, ignore_errors=True)
        raise OSError(f"no disk space left for the checkpoint at step {step}, or the disk failed ({e}); "
                      f"the run goes on from the last whole checkpoint when started again") from e


def write(side, tensors):
    """Write the tensors that this process has, onto the disk; return {name of its file: {"sha256", "bytes"}}."""
    if ranks.world() == 1:
        file = side / "state.safetensors"
        seal = write_tensors(file, tensors)
    else:
        import torch.distributed.checkpoint as dcp
        try:
            dcp.save(tensors, storage_writer=dcp.HuggingFaceStorageWriter(str(side), save_distributed=True))
        except dcp.CheckpointException as e:  # no Exception, to torch
            raise OSError(str(e)) from e
        (file,) = side.glob(f"shard-{ranks.rank() + 1:05d}-*.safetensors")
        with open(file, "rb") as f:
            seal = hashlib.file_digest(f, "sha256").hexdigest()
    sync(file)
    return {file.name: {"sha256": seal, "bytes": file.stat().st_size}}


def state_of(path):
    """Return a checkpoint's state.json; raise a ValueError unless it is what was written."""
    try:
        state = read_json(path / "state.json")
        if state.pop("digest") != digest(state, 64):
            raise ValueError("it is not what was written")
        return state
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as e:
        raise ValueError(f"state.json cannot be trusted ({e})") from e


def marked(path):
    """Tell whether a checkpoint was saved as the best."""
    with suppress(ValueError):
        return state_of(path)["best"]


def proved(path):
    """Return a checkpoint's state.json; raise a ValueError unless that and the tensors beside it are what was written."""
    state = state_of(path)
    for name, made in state.get("shards", {"state.safetensors": state}).items():
        file = path / name
        try:
            if (size := file.stat().st_size) != made["bytes"]:
                raise ValueError(f"{name} has {size} of {made['bytes']} bytes")
            with open(file, "rb") as f:
                if hashlib.file_digest(f, "sha256").hexdigest() != made["sha256"]:
                    raise ValueError(f"{name} is not what was written (its SHA-256 is another)")
        except OSError as e:
            raise ValueError(f"{name} cannot be read ({e})") from e
    return state


def today(was, now):
    """Return a run's seal with the settings that did not exist when it was made, as far as they have their default now."""
    if not (was and now and "config" in was and "config" in now):
        return was
    usual = Config().settings
    return {**was, "config": {k: v for k, v in now["config"].items() if usual.get(k) == v} | was["config"]}


def differences(was, now, name="seal"):
    """Say where two nested dictionaries differ; empty if nowhere.

    >>> differences({"config": {"lr": 0.0003, "seed": 0}, "weights": "a"}, {"config": {"lr": 0.001, "seed": 0}, "weights": "b"})
    "lr: 0.0003 -> 0.001, weights: 'a' -> 'b'"
    """
    if isinstance(was, dict) and isinstance(now, dict):
        return ", ".join(filter(None, (differences(was.get(k), now.get(k), k) for k in {**was, **now})))
    return "" if was == now else f"{name}: {was!r} -> {now!r}"


def last(folder, seal, best=False):
    """Return (tensors, note) of a run's newest whole checkpoint, or of the newest that was saved as the best, on the CPU, or None; `note` also says the step.

    Instead of tensors there is their folder, for `fill`, if several processes wrote them or are to read them.

    A broken one is passed over: it gets another name, and a printed line says why.

    Raises:  ValueError: its seal is not `seal`; says what differs.
    """
    for path in reversed([p for p in kept(folder) if not best or marked(p)]):
        try:
            state = proved(path)
        except ValueError as e:
            aside = path.with_suffix(".broken")
            shutil.rmtree(aside, ignore_errors=True)
            path.replace(aside)
            print(f"{path} is passed over: {e}; it is now {aside.name}", flush=True)
            continue
        seal = json.loads(json.dumps(seal))
        if odd := differences(today(state["note"].get("seal"), seal), seal):
            raise ValueError(f"{path} belongs to a run with other inputs ({odd}); choose another out, or delete that folder")
        return path if "shards" in state or ranks.world() > 1 else load_file(path / "state.safetensors"), state["note"]
    return None


def fill(tensors, into):
    """Return the tensors that `last` found; if that was a folder, read from it, in place, what `into` names and it has: of each tensor the rows that are asked for.

    Raises:  ValueError: a tensor has another shape.
    """
    if isinstance(tensors, dict):
        return tensors
    import torch.distributed.checkpoint as dcp
    reader = dcp.HuggingFaceStorageReader(str(tensors))
    there = reader.read_metadata().state_dict_metadata
    into = {k: t for k, t in into.items() if k in there}
    try:
        with warnings.catch_warnings(action="ignore", category=UserWarning):  # that this is a single process
            dcp.load(into, storage_reader=reader, no_dist=ranks.world() == 1)
    except dcp.CheckpointException as e:
        raise ValueError(f"{tensors} does not fit this run: {e}") from e
    return into
