"""Notebooks, one at a time, each in a kernel of its own and executed by papermill, with what happens inside shown outside."""

import logging
import os
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import orcalab
from orcalab import config
from orcalab.progress import clock

NEEDED = ("orcalab.show", "orcalab.train", "orcalab.evaluate", "reasoning_gym", "transformers.models.llama.modeling_llama", "plotly.io._renderers")  # what takes seconds to import
UNUSED = "rfc3987_syntax"  # jsonschema would read a grammar with it, for nearly two seconds


def notebooks():
    """Return the folder of the numbered notebooks: beside the package, or under the working folder."""
    for folder in (Path(orcalab.__file__).parents[1] / "notebooks", Path("notebooks")):
        if (folder / "00_tour.ipynb").exists():
            return folder
    raise ValueError("the notebooks are not here: run this from a clone of the repository (pip install -e .)")


def knobs(path):
    """Return the parameter names in a notebook's cell tagged `parameters`."""
    cells = config.read_json(path)["cells"]
    source = "".join(next("".join(c["source"]) for c in cells if "parameters" in c["metadata"].get("tags", [])))
    return [line.split("=")[0].strip() for line in source.splitlines() if "=" in line.split("#")[0]]


def common_knobs(given):
    """Return {notebook: its knobs}, in order; raise a ValueError if a name of `given` is not one that every stage's notebook has."""
    have = {p: knobs(p) for p in sorted(notebooks().glob("[0-9][0-9]_*.ipynb"))}
    common = set.intersection(*(set(names) for p, names in have.items() if "_stage" in p.stem))
    for name in given:  # a knob of one notebook alone would change less than it says
        if name not in common:
            raise ValueError(f"run takes {', '.join(sorted(common))}, which every stage's notebook has, and not {name}{config.nearest(name, common)}; "
                             "`orcalab train` takes every setting")
    return have


def refuse_other_inputs(stages):
    """Raise before anything works for minutes if a stage's folder holds a run with other settings."""
    for cfg in stages:
        old = config.read_json(cfg.folder / "config.json") if (cfg.folder / "config.json").exists() else {}
        if changed := ", ".join(f"{k}: {old[k]!r} -> {v!r}" for k, v in cfg.settings.items() if k in old and old[k] != v):
            raise ValueError(f"{cfg.folder} holds a run with other inputs ({changed}); choose another out, or delete that folder")


def begin(path, target, small):
    """Start a notebook's kernel, and let it import what all of them need; return its manager, and the client that asked for that. A `small` one's arithmetic takes one core."""
    sys.modules.setdefault(UNUSED, None)
    from jupyter_client.manager import KernelManager
    target.parent.mkdir(parents=True, exist_ok=True)
    env = {**({"OMP_NUM_THREADS": "1"} if small else {}), **os.environ, "ORCALAB_PROGRESS": str(target.with_suffix(".progress").resolve()), "PYDEVD_DISABLE_FILE_VALIDATION": "1",
           "PYTHONPATH": os.pathsep.join([str(Path(orcalab.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])}
    kernel = KernelManager(kernel_name="python3", client_class="jupyter_client.asynchronous.AsyncKernelClient")  # papermill's own kind
    with open(target.with_suffix(".log"), "w", encoding="utf-8") as log:
        kernel.start_kernel(cwd=path.parent.resolve(), env=env, stdout=log, stderr=log)
    client = kernel.blocking_client()
    client.start_channels(iopub=False, stdin=False, hb=False, control=False)
    client.execute(f"import sys; sys.modules[{UNUSED!r}] = None; [__import__(room) for room in {NEEDED}]", silent=True)
    return kernel, client


def end(kernel, client):
    """Stop a kernel and the client that it began with."""
    client.stop_channels()
    kernel.shutdown_kernel(now=True)


def execute(kernel, path, target, values, label, begun):
    """Let papermill execute one notebook in its kernel, in a thread, showing what happens inside; return its seconds."""
    import nbformat.sign
    from papermill import execute_notebook
    inside, log = target.with_suffix(".progress"), target.with_suffix(".log")
    inside.unlink(missing_ok=True)
    started, spoken, terminal, failed = time.time(), time.time(), sys.stdout.isatty(), []

    def work():
        try:
            execute_notebook(path, target, values, kernel_name="python3", km=kernel[0], start_timeout=600, progress_bar=False, request_save_on_cell_execute=False, coalesce_streams=True)
        except Exception as e:
            failed.append(f"{log.read_text(encoding='utf-8')}\n{e}".strip()[-1800:])

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while thread.is_alive():
            thread.join(0.1)
            text = f"{label} {clock(time.time() - started)}  {glance(inside)}"
            if terminal:
                print(f"\r\x1b[K{text[:os.get_terminal_size().columns - 1]}", end="", flush=True)
            elif time.time() - spoken > 30:
                spoken = time.time()
                print(text, flush=True)
    finally:
        end(*kernel)
        thread.join(20)
        inside.unlink(missing_ok=True)
    seconds = time.time() - started
    if failed:
        raise SystemExit(f"\n{label} failed after {clock(seconds)}:\n{failed[0]}\n\nThe executed copy so far: {target}\nThe same command goes on from here.")
    log.unlink()
    with suppress(OSError):  # Jupyter's own folder may be read-only
        nbformat.sign.NotebookNotary().sign(nbformat.read(target, 4))  # else JupyterLab would not draw what a view shows
    print(f"{chr(13) + chr(27) + '[K' if terminal else ''}{label} {clock(seconds):>6}   {clock(time.time() - begun):>6} so far", flush=True)
    return seconds


def glance(inside):
    """Return one line on the long work inside a notebook, from its progress file."""
    try:
        now = config.read_json(inside)
    except (OSError, ValueError):
        return ""
    return f"{now['what']}: {now['done']}/{now['total']}, {clock(now['left'])} left{', ' + now['note'] if now['note'] else ''}"


def corridor(rec, given):
    """Execute every notebook in order, each in a kernel of its own; skip those done with the same inputs; return where the executed copies are.

    Args:    rec: a Recipe.  given: the settings that were given for it.
    Raises:  ValueError: a name that not every stage's notebook has, or `out` holds a run with other settings. SystemExit: a notebook failed.
    """
    have, out = common_knobs(given), Path(rec.out)
    refuse_other_inputs(rec.stages)
    code = config.digest([p.read_text(encoding="utf-8") for p in sorted(Path(orcalab.__file__).parent.glob("*.py"))])
    state_file = out / "run.json"
    state = config.read_json(state_file) if state_file.exists() else {}
    begun, jobs, made = time.time(), [], []
    known = config.read_json(recorded).get(rec.name) if (recorded := notebooks().parent / "benchmarks" / "notebooks.json").exists() else None
    print(f"recipe {rec.name}, seed {rec.seed}: {len(have)} notebooks -> {out}" + (f" (recorded on {known['cores']} cores: {known['minutes']:.0f} minutes in all)" if known else ""), flush=True)
    for n, path in enumerate(have, 1):
        values = {**given, "recipe": rec.name, "seed": rec.seed, "base": rec.base, "out": str(out.resolve())}  # a notebook works in its own folder
        values = {k: v for k, v in values.items() if k in have[path]}
        made.append([path.read_text(encoding="utf-8"), values])
        seal, label = config.digest([made, code]), f"[{n:>2}/{len(have)}] {path.stem:<22}"
        done = state.get(path.stem, {})
        if done.get("seal") == seal and (out / "notebooks" / path.name).exists() and set(done["stages"]) <= rec.finished:
            print(f"{label} done before ({clock(state[path.stem]['seconds'])})", flush=True)
        else:
            jobs.append((path, out / "notebooks" / path.name, values, label, seal))
    logging.getLogger("papermill").addHandler(logging.NullHandler())  # what goes wrong is said once, by execute
    small, ready = rec.name == "smoke", []  # beside a tiny model's notebook the kernels of the next two get ready; a real model leaves neither core nor memory to them
    for n, (path, target, values, label, seal) in enumerate(jobs):
        try:
            for job in jobs[n + len(ready):n + 1 + 2 * small]:
                ready.append((begin(*job[:2], small), job[1]))
            seconds = execute(ready.pop(0)[0], path, target, values, label, begun)
        except BaseException:
            for waiting, left in ready:
                end(*waiting)
                left.with_suffix(".log").unlink(missing_ok=True)
            raise
        state[path.stem] = {"seal": seal, "seconds": seconds, "stages": sorted(rec.finished)}
        config.write_json(state_file, state)
    return [out / "notebooks" / path.name for path in have]
