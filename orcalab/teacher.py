"""The procedural teacher: a program that stands in for GPT-4 on the laptop recipe.

It takes questions and gold answers from `reasoning_gym` and writes the worked answer by a named
strategy. It is a program and nothing else: its explanations are always right and always have the same
form, which a language model's never do. What transfers is the comparison (explained or not, erased or
not), not the numbers.
"""

from importlib.metadata import version
from itertools import count
from pathlib import Path

from orcalab import data, mixture, sources
from orcalab.config import Mix, Part, choose, digest, listed
from orcalab.data import Row

TRAIN_STRIDE = 1_000_000  # room between the seeds of two stages; reasoning_gym uses seed + index
HELD_OUT_SEED = 2_000_000_000  # seeds of held-out questions start here, above every training seed


def _chain(total, terms):
    """Write a running sum, one operation a sentence; terms are signed."""
    lines = []
    for term in terms:
        new = total + term
        lines.append(f"{total} {'+' if term >= 0 else '-'} {abs(term)} = {new}.")
        total = new
    return " ".join(lines)


def _leg_counting(meta):
    from reasoning_gym.arithmetic.leg_counting import ANIMALS
    facts = [f"{n} {animal} x {ANIMALS[animal]} legs = {n * ANIMALS[animal]}." for animal, n in meta["animals"].items()]
    legs = [n * ANIMALS[animal] for animal, n in meta["animals"].items()]
    return " ".join(facts) + "\n" + _chain(legs[0], legs[1:])


def _chain_sum(meta):
    words = meta["expression"].split()
    terms = [int(t) * (-1 if op == "-" else 1) for op, t in zip(words[1::2], words[2::2])]
    return _chain(int(words[0]), terms)


def _simple_equations(meta):
    """Solve a*x + b = c, where either of the two terms may come first and a may be negative."""
    x = meta["variable"]
    left, right = meta["equation"].replace("- ", "-").replace("+ ", "+").split(" = ")
    a = b = 0
    for term in left.split():
        if x in term:
            a += int(term.replace(f"*{x}", "").replace(x, "1"))
        else:
            b += int(term)
    c, sign, lines = int(right), 1 if a > 0 else -1, []
    product = f"{abs(a)}*{x}" if abs(a) != 1 else x
    if b:
        first, second = (c, -b) if sign > 0 else (b, -c)
        lines.append(f"{product} = {first} {'+' if second >= 0 else '-'} {abs(second)} = {first + second}.")
    if abs(a) != 1:
        lines.append(f"{x} = {sign * (c - b)} / {abs(a)} = {(c - b) // a}.")
    return " ".join(lines) or f"{x} = {c}."


def _calendar_arithmetic(meta):
    from datetime import date, timedelta
    start, days = date.fromisoformat(meta["start_date"]), meta["offset_days"]
    step = timedelta(days=1 if days > 0 else -1)
    names = [f"{i} {start + step * i:%A}" for i in range(1, abs(days) + 1)]
    return f"{'On' if days > 0 else 'Back'} from {start:%A}: {', '.join(names)}."


def _needle_haystack(meta, question):
    text, asked = question.rsplit("\n", 1)
    wanted = asked.removeprefix("Who ").split("?")[0]
    return "The text says: " + next(s for s in text.split(". ") if s.endswith(wanted)).strip() + "."


# One writer per task whose strategy explains; a task answered directly needs none.
WRITERS = {"leg_counting": _leg_counting, "chain_sum": _chain_sum, "calendar_arithmetic": _calendar_arithmetic,
           "simple_equations": _simple_equations, "needle_haystack": _needle_haystack}


def explain(task, entry):
    """Return the worked answer to one reasoning_gym entry, without the final-answer line.

    Args:
        task: a config.Task; its strategy says how.
        entry: what reasoning_gym returns: question, answer, metadata.

    Raises:
        ValueError: nobody wrote a worked answer for this task.
    """
    if task.strategy == "direct-answer":
        return ""
    write = WRITERS[choose(task.name, WRITERS, "procedural explanation")]
    return write(entry["metadata"], entry["question"]) if write is _needle_haystack else write(entry["metadata"])


def entries(task, seed):
    """Yield the endless questions of a task, from `seed` on: (number, entry)."""
    import reasoning_gym
    data = reasoning_gym.create_dataset(task.name, seed=seed, size=TRAIN_STRIDE, **task.settings)
    for i in count():
        yield i, data[i]


def row(task, i, entry, seed):
    """Return one question as a row whose assistant turn is the gold answer, with its explanation beside."""
    messages = [{"role": "user", "content": entry["question"].strip()}, {"role": "assistant", "content": entry["answer"]}]
    return Row(id=f"{task.name}-{seed + i}", source="reasoning_gym", task=task.name, strategy=task.strategy,
               teacher="procedural", messages=messages, answer=entry["answer"], explanation=explain(task, entry))


def held_out(tasks, questions):
    """Return {task name: [entry]} for evaluation, drawn from seeds that training never uses.

    The questions differ from each other too. They are the same for every recipe seed, so students of
    different seeds answer the same questions.
    """
    out = {}
    for task in tasks:
        seen, picked = set(), []
        for i, entry in entries(task, HELD_OUT_SEED):
            if i > 100 * questions:
                raise ValueError(f"task {task.name!r} has only {len(picked)} different questions, {questions} are asked")
            if entry["question"] not in seen:
                seen.add(entry["question"])
                picked.append(entry)
            if len(picked) == questions:
                break
        out[task.name] = picked
    return out


def procedural(tasks, seed, stream, exclude=frozenset()):
    """Yield endless rows, tasks in turn.

    Args:
        seed: the recipe's seed.  stream: streams of different numbers share no question's seed.
        exclude: user texts that must not be taught (the held-out questions).
    """
    first = (1 + seed * 10 + stream) * TRAIN_STRIDE
    if stream > 9 or first + TRAIN_STRIDE > HELD_OUT_SEED:
        raise ValueError(f"seed {seed}, stream {stream}: training seeds would reach another stream's or the held-out ones")
    streams = [(task, entries(task, first)) for task in tasks]
    while True:
        for task, stream_ in streams:
            i, entry = next((i, e) for i, e in stream_ if e["question"].strip() not in exclude)
            yield row(task, i, entry, first)


def rows_of(recipe, cfg):
    """Return (rows, origin) of a stage: procedural ones, or those of the mixture, sources or files that `rows` names; "stream:NAME" reads a source as it comes.

    No procedural row holds a held-out question. `origin` identifies the rows for the prepared folder.

    Raises:
        ValueError: `rows` names nothing that is there; says what is near.
    """
    if cfg.rows == "procedural":
        exclude = frozenset(e["question"].strip() for q in held_out(recipe.tasks, recipe.questions).values() for e in q)
        origin = [[t.name, t.strategy, t.settings] for t in recipe.tasks] + [cfg.seed, cfg.stream, recipe.questions]
        origin += [version("reasoning-gym"), digest(Path(__file__).read_text(encoding="utf-8"))]  # another writer, other rows
        return procedural(recipe.tasks, cfg.seed, cfg.stream, exclude), origin
    if cfg.rows.startswith("stream:"):
        name = cfg.rows.removeprefix("stream:")
        if not cfg.steps:
            raise ValueError(f"rows {cfg.rows!r} come as a stream, whose end is not known: say how many steps, or take {name!r} whole")
        if odd := [w for w in listed(cfg.drop) if w in ("near", "refusals", "wrong")] + [f"scale {cfg.scale}"] * (cfg.scale < 1):
            raise ValueError(f"rows {cfg.rows!r} come as a stream, from which {odd[0]} cannot be chosen: take {name!r} whole")
        return sources.stream(name, cfg.data), ["stream", *sources.origin(name, cfg.data, fetch=False)]
    mix = next((m for m in recipe.mixes if m.name == cfg.rows), Mix("rows", (Part("rows", cfg.rows),)))
    for spec in listed(cfg.rows) if mix.name == "rows" else ():
        if not {":", "/", "."} & set(spec) and not Path(spec).exists():
            choose(spec, [*(m.name for m in recipe.mixes), *sources.SOURCES], "mixture, source, file or folder")
    rows = mixture.Mixture(mix, cfg)
    return rows, rows.origin


def prepare(recipe, cfg, tokenizer):
    """Prepare a stage's rows, or open the folder if the same inputs made it already; return data.Prepared."""
    rows, origin = rows_of(recipe, cfg)
    return data.prepare(rows, cfg, tokenizer, Path(cfg.out) / "prepared", origin, recipe.against)
