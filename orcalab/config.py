"""Configuration: flat frozen dataclasses that check themselves. Python goes in, JSON comes out.

Words, used with one meaning everywhere (code, notebooks, command line, run folders):

- *source*: a data set whose rows we can read; *mixture*: parts of sources in set proportions; *corpus*: what a stage is trained on
- *row*: one training item, `messages` (a list of {role, content}) or `text`, plus flat provenance columns (id, source, task, strategy, teacher, original_system)
- *example*: (ids, mask) made from a row; *target*: a token that is learned
- *pack*: seq_len tokens holding several examples; *plan*: which examples go in which pack, for
  every epoch, known before step 1; *batch*: packs in one forward pass; *step*: one optimizer update
- *run*: one config executed, one folder; *stage*: a run that starts from another; *recipe*: a named list of stages with a base model and evaluation sizes
- *strategy*: a named way to solve, with the system message that asks for it; *erase*: to put the
  cautious message in that one's place; *teacher*: whoever wrote the answer
- *ledger*: every answer of a teacher, a line each, with what was asked and what it cost
- *family*: tasks that one strategy's instruction serves
- *task*: questions with gold answers; *answer*: generated text; *score*: a number with an interval
"""

import ast
import difflib
import hashlib
import inspect
import json
import re
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

CHOICES = {
    "answers": ("gold", "explained"), "system": ("empty", "none", "orca1", "strategy", "cautious", "keep"), "template": ("chatml", "openassistant"), "learn": ("all", "last", "openassistant"),
    "packing": ("best_fit", "shuffle_partition", "none"), "too_long": ("drop", "cut_prompt", "error"), "by": ("rows", "tasks", "strategies"), "surplus": ("train", "lost"),
    "dtype": ("auto", "bf16", "fp16", "fp32"), "device": ("auto", "cpu", "cuda"), "schedule": ("cosine", "linear", "constant"),
    "method": ("full", "lora", "qlora"), "lora_on": ("layers", "head"), "optimizer": ("adamw", "adamw_bf16", "adamw_bf16_sr", "adamw_8bit"), "update": ("step", "backward"),
    "offload": ("nothing", "optimizer", "activations", "both"), "attention": ("auto", "varlen", "flex", "documents"), "reduce": ("fp32", "bf16"), "compile": ("auto", "yes", "no"),
    "final": ("last", "best"), "track": ("", "tensorboard", "trackio", "wandb", "mlflow"),
}
LEAST = {"seq_len": 8, "timeout": 0.001} | dict.fromkeys((
    "steps epochs size cap merge chunk validation max_validation warmup lora_alpha lora_dropout recompute held_out eval_every spike lr clip few_shot weight_decay seed processes first "
    "requests_a_minute tokens_a_minute retries price_in price_out budget token_budget").split(), 0) | dict.fromkeys((
    "batch_size accum save_every keep lora_rank max_tokens concurrency at_once questions grid max_new_tokens eval_batch").split(), 1)
DROPS = ("duplicates", "near", "refusals", "wrong", "overlap", "unsayable", "nothing")
ROW = 758  # tokens of an example where nothing is known: Orca 1 packs 2.7 of them into 2,048
ROPES = ("linear", "dynamic", "yarn", "llama3")  # of transformers' RoPE types those that need nothing but a factor; longrope needs one for each frequency, found by a search
BASES = ("smollm2-135m", "tiny-random", "llama-standin")  # base models known by name (the last is a tokenizer alone); others are hub ids or folders
COMPUTING = ("out", "data", "save_every", "keep", "track", "spike", "device", "processes", "recompute", "offload", "attention", "compile")  # fields that change no result, but for the last digits that another order of sums gives


class RowError(ValueError):
    """A row that cannot be used; the message starts with file:line."""


def nearest(word, options):
    """Return "; did you mean 'x'?" for the nearest of `options`, or the first dozen of them."""
    options = [str(o) for o in options]
    close = difflib.get_close_matches(str(word)[:100], options, n=1, cutoff=0.5)
    more = f" and {len(options) - 12} more" if len(options) > 12 else ""
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(options[:12])}{more}"


def choose(word, options, what):
    """Return `word` if it is one of `options`, else raise a ValueError with the nearest one."""
    if word not in options:
        raise ValueError(f"no {what} named {word!r:.100}{nearest(word, options)}")
    return word


def digest(value, length=12):
    """Hash anything that JSON can hold into a short hex string, the same on every machine."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:length]


def _coerce(cls, name, value):
    """Turn what a command line or papermill hands over into the field's plain type."""
    kind = {f.name: f.type for f in fields(cls)}[name]
    if isinstance(value, str) and kind in (int, float):
        with suppress(ValueError):  # what is no number is refused below
            value = int(value) if re.fullmatch(r"\s*[+-]?\d+\s*", value) else float(value)
    if kind is int and isinstance(value, float) and value.is_integer():
        value = int(value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, kind) or (kind is not bool and isinstance(value, bool)):
        raise ValueError(f"{name} must be {kind.__name__}, got {value!r}")
    return value


def help_of(cls):
    """Map each field of a config dataclass to the trailing comment on its line."""
    lines = re.findall(r"^    (\w+): .*?  # (.*)$", inspect.getsource(cls), re.M)
    return {name: text for name, text in lines if name in {f.name for f in fields(cls)}}


def check(cfg):
    """Check types, ranges and choices of a config; raise a ValueError that names the field."""
    for f in fields(cfg):
        value = getattr(cfg, f.name)
        object.__setattr__(cfg, f.name, _coerce(type(cfg), f.name, value))
        if f.name in CHOICES and not (isinstance(cfg, Part) and value == ""):
            choose(value, CHOICES[f.name], f.name)
    for name, low in {**LEAST, **({"few_shot": -1} if isinstance(cfg, Part) else {})}.items():
        if hasattr(cfg, name) and not low <= getattr(cfg, name) < float("inf"):
            raise ValueError(f"{name} must be a number of at least {low}, got {getattr(cfg, name)}")
    if hasattr(cfg, "base") and "/" not in cfg.base and not Path(cfg.base).is_dir():
        choose(cfg.base, BASES, "base model")
    if kind := getattr(cfg, "rope", ""):
        kind, _, factor = kind.partition(":")
        choose(kind, ROPES, "kind of rope")
        if not re.fullmatch(r"\d+(\.\d+)?", factor) or float(factor) <= 1:
            raise ValueError(f"rope is {cfg.rope!r}, and should be a type and a factor above 1, as {kind}:2")
    for name in ("few_shot", "validation", "lora_dropout"):
        if getattr(cfg, name, 0) > 1:
            raise ValueError(f"{name} is a share between 0 and 1, got {getattr(cfg, name)}")
    for name in ("scale", "fraction"):
        if not 0 < getattr(cfg, name, 1) <= 1:
            raise ValueError(f"{name} must be above 0 and at most 1, got {getattr(cfg, name)}" + (f" (part {cfg.name!r})" if isinstance(cfg, Part) else ""))
    if getattr(cfg, "steps", 1) == getattr(cfg, "epochs", 0) == 0:
        raise ValueError("steps and epochs are both 0: one of them says how long a stage is")
    if getattr(cfg, "update", "step") == "backward" and (cfg.accum > 1 or cfg.clip):
        raise ValueError(f"update is 'backward', where no gradient outlives its use: it needs accum 1 and clip 0, got accum {cfg.accum} and clip {cfg.clip}")
    if (getattr(cfg, "eval_every", 0) or getattr(cfg, "final", "last") == "best") and not (cfg.held_out and cfg.eval_every):
        raise ValueError(f"held-out loss needs held_out and eval_every, got {cfg.held_out} and {cfg.eval_every}")
    words = listed(getattr(cfg, "drop", ""))
    for word in words:
        choose(word, DROPS, "kind of row to drop")
    if "nothing" in words and len(words) > 1:
        raise ValueError(f"drop is 'nothing' or a list of what to leave out, got {cfg.drop!r}")


@dataclass(frozen=True)
class Config:
    """Everything one run depends on. Hyper-parameters are ours: Orca 1 and 2 publish none."""

    name: str = "stage"  # name of the run and of its folder
    start: str = "base"  # name of the stage this one starts from, or base
    base: str = "smollm2-135m"  # base model, by name, hub id or local folder
    rows: str = "procedural"  # where rows come from, procedural, a mixture, or sources and paths joined by commas (stream:NAME reads a source as it comes)
    data: str = ""  # folder that holds the sources' folders, one a name; empty takes them from the hub
    scale: float = 1.0  # size of a mixture, 1 is the paper's
    drop: str = "duplicates"  # rows left out and counted, of duplicates / near / refusals / wrong / overlap / unsayable, joined by commas, or nothing
    answers: str = "gold"  # what is learned, gold (the short answer) or explained
    system: str = "empty"  # system message, empty / none / orca1 / strategy / cautious (erased) / keep
    few_shot: float = 0.0  # share of rows with solved examples in the user turn
    template: str = "chatml"  # how messages become tokens, chatml or openassistant
    learn: str = "all"  # which turns are learned, all or last (of the assistant), or openassistant (also the system message and what opens a question, as their code does)
    rope: str = ""  # how positions are stretched, TYPE:FACTOR as linear:2, of linear / yarn / llama3 / dynamic (which goes beyond the old length in plain transformers alone); empty as the base has them
    seq_len: int = 2048  # tokens in one pack
    packing: str = "best_fit"  # how examples are put in packs, best_fit, shuffle_partition, or none (one a pack, padded)
    too_long: str = "drop"  # what happens to an example longer than seq_len, drop / cut_prompt / error
    batch_size: int = 1  # packs in one forward pass
    accum: int = 1  # forward passes in one step, of all processes together
    steps: int = 40  # optimizer updates, 0 for as many as the epochs take
    epochs: int = 0  # passes over the rows, if steps is 0
    lr: float = 3e-4  # peak learning rate
    warmup: int = 4  # steps of linear warm-up
    schedule: str = "cosine"  # learning rate after warm-up, cosine or linear (both to a tenth), or constant
    weight_decay: float = 0.0  # AdamW weight decay on matrices
    clip: float = 1.0  # largest gradient norm, 0 for any
    method: str = "full"  # what is trained, full (all weights), lora (an adapter) or qlora (an adapter on a base in 4 bits)
    lora_rank: int = 64  # rank of the adapter's matrices
    lora_alpha: float = 64.0  # scale of the adapter, over its rank
    lora_dropout: float = 0.0  # share of an adapter's inputs that is dropped
    lora_on: str = "layers"  # where adapters sit, layers (every linear layer) or head (those and the output)
    optimizer: str = "adamw"  # adamw (fp32 masters), adamw_bf16_sr (all bf16, rounded by chance), adamw_bf16 (to the nearest) or adamw_8bit (8-bit states, rounded by chance)
    update: str = "step"  # when weights change, once a step or in the backward pass (no gradient is kept, so neither clip nor accum)
    recompute: int = 0  # every n-th layer keeps no activations and is computed again, 1 for all, 0 for none
    offload: str = "nothing"  # what waits in the host's memory, nothing / optimizer / activations / both
    attention: str = "auto"  # how packed examples are kept apart, auto / varlen / flex / documents
    compile: str = "auto"  # whether layers are compiled, auto (on cuda) / yes / no
    reduce: str = "fp32"  # type in which processes sum their gradients, fp32 or bf16
    held_out: int = 0  # examples set aside to be looked at while training
    eval_every: int = 0  # steps between looks at them, 0 for none
    final: str = "last"  # which weights a run ends with, the last or the best by held-out loss
    spike: float = 5.0  # a loss over this many times the median of the last steps ends the run, 0 for never
    track: str = ""  # also send the metrics to tensorboard, trackio, wandb or mlflow
    seed: int = 0  # seeds rows, plan and order
    dtype: str = "auto"  # compute type, auto / bf16 / fp16 / fp32
    device: str = "auto"  # where to compute, auto / cpu / cuda
    processes: int = 0  # processes that prepare rows, 0 for one a core; changes the time alone
    save_every: int = 20  # steps between checkpoints
    keep: int = 2  # checkpoints kept, beside the best
    stream: int = 0  # number of the question stream, so that stages share no question
    out: str = "runs"  # folder that holds the run's folder

    __post_init__ = check

    @property
    def folder(self):
        """The run's folder, a Path."""
        return Path(self.out) / self.name

    @property
    def finished(self):
        """Whether the run's folder holds a finished run."""
        return (self.folder / "results.json").exists() and (self.folder / "model" / "config.json").exists()

    @property
    def settings(self):
        """What the run's result depends on, as a dictionary: not where it or its data lie, how often it is saved, or how and on what device it is computed."""
        return {k: v for k, v in to_json(self).items() if k not in COMPUTING}

    @property
    def packs_per_step(self):
        return self.batch_size * self.accum

    @property
    def tokens_per_step(self):
        return self.packs_per_step * self.seq_len


@dataclass(frozen=True)
class Task:
    """One kind of procedural question, its strategy, and why that strategy."""

    name: str  # name of the reasoning_gym data set
    strategy: str  # strategy the teacher uses
    settings: dict  # settings of the data set
    direct: bool  # whether a direct answer should do
    why: str  # reason, written before the answer-only control was trained


@dataclass(frozen=True)
class Part:
    """One ingredient of a mixture: where its rows come from, how they are chosen, and how they are dressed."""

    name: str  # what the data card calls it
    sources: str  # names of sources, name:path, or paths, joined by commas
    size: int = 0  # rows, before scale; 0 for all there are
    fraction: float = 1.0  # share of the rows, drawn afresh each epoch
    by: str = "rows"  # what is drawn with equal chance, rows, tasks (Orca 1, Algorithm 1) or strategies
    cap: int = 0  # most rows of one task, 0 for any number
    tasks: str = ""  # tasks to take, joined by commas; empty for all
    kind: str = ""  # FLAN's kinds of template to take, by their beginning: zs for zero-shot
    answers: str = ""  # as in Config; empty is the stage's
    system: str = ""  # as in Config; empty is the stage's
    few_shot: float = -1.0  # as in Config; below 0 is the stage's
    merge: int = 0  # characters up to which rows under one system message become one conversation
    similar: bool = False  # whether rows that become one conversation are alike
    chunk: int = 0  # most characters of a piece of plain text; longer ones become several rows
    validation: float = 0.0  # share of the rows set aside
    max_validation: int = 0  # most rows set aside, 0 for any number
    surplus: str = "train"  # what becomes of rows set aside over that, train or lost

    __post_init__ = check


@dataclass(frozen=True)
class Mix:
    """A mixture: parts, and perhaps only a random subset of what they give."""

    name: str  # what a stage's `rows` says
    parts: tuple  # Parts
    subset: int = 0  # rows drawn at random from the whole, before scale; 0 for all

    def __post_init__(self):
        if len({p.name for p in self.parts}) < len(self.parts):
            raise ValueError(f"the mixture {self.name!r} has two parts of one name: {', '.join(p.name for p in self.parts)}")


@dataclass(frozen=True)
class Recipe:
    """A named list of stages with a base model and evaluation sizes."""

    name: str = ""  # name of the recipe
    base: str = "smollm2-135m"  # base model, by name, hub id or local folder
    seed: int = 0  # seeds rows, plans and order of every stage
    questions: int = 50  # held-out questions per task
    grid: int = 10  # held-out questions per task in the strategy grid
    max_new_tokens: int = 120  # longest answer, in tokens
    eval_batch: int = 50  # answers generated side by side
    messages: str = "cautious"  # messages that the last students are asked under, names of strategies or right and wrong, joined by commas
    against: str = ""  # evaluation sets that no row should overlap with, paths joined by commas
    out: str = "runs"  # folder that holds the stages' folders
    stages: tuple = ()  # configs, in order
    tasks: tuple = ()  # procedural tasks
    mixes: tuple = ()  # mixtures that stages name in `rows`
    doc: str = ""  # what the paper did, what differs, cost, result

    __post_init__ = check

    def stage(self, name, **changes):
        """Return one stage's Config, with `changes` (None keeps the recipe's value)."""
        choose(name, [s.name for s in self.stages], "stage")
        return change(next(s for s in self.stages if s.name == name), **changes)

    @property
    def finished(self):
        """The names of the stages that are trained."""
        return {s.name for s in self.stages if s.finished}

    @property
    def students(self):
        """Who is asked under which messages, {name: [messages]}: base and stages that others start from under the first, the last students under all."""
        said = listed(self.messages)
        return {"base": said[:1]} | {s.name: said[:1] if any(t.start == s.name for t in self.stages) else said for s in self.stages}

    def task(self, name):
        choose(name, [t.name for t in self.tasks], "task")
        return next(t for t in self.tasks if t.name == name)


def listed(text):
    """Return the words of a text that are joined by commas."""
    return [w.strip() for w in str(text).split(",") if w.strip()]


def change(cfg, **changes):
    """Return `cfg` with `changes`; None keeps a value, an unknown name raises with the nearest one."""
    names = [f.name for f in fields(cfg)]
    for name in changes:
        choose(name, names, "parameter")
    return replace(cfg, **{k: _coerce(type(cfg), k, v) for k, v in changes.items() if v is not None})


def to_json(cfg):
    """Return a config as a plain dictionary, ready for config.json."""
    return asdict(cfg)


def parameters(namespace, known):
    """Return a notebook's parameters; refuse a name that papermill injected and the notebook does not have.

    Args:    namespace: the notebook's globals().  known: the names in its cell tagged `parameters`.
    Raises:  ValueError: an unknown name, with the nearest known one (papermill itself only warns).
    """
    injected = [c for c in namespace.get("In", []) if c.startswith("# Parameters\n")]
    for statement in (s for c in injected for s in ast.parse(c).body if isinstance(s, ast.Assign)):
        choose(statement.targets[0].id, known, "parameter of this notebook")
    return {name: namespace[name] for name in known}


def write_json(path, value):
    """Write JSON whole or not at all: to the side first, then renamed."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    side = path.with_name(path.name + ".part")
    side.write_text(json.dumps(value, indent=1, ensure_ascii=False), encoding="utf-8")
    side.replace(path)


def read_json(path):
    return json.loads(Path(path).read_text(encoding="utf-8"))
