"""One row dressed for a stage: which answer is learned, which system message stands before it, which solved examples it shows."""

from random import Random

from orcalab.config import choose
from orcalab.rows import Row, joined
from orcalab.strategies import FINAL, ORCA1, ORCA1_IDS, STRATEGIES, erase, set_system


def dress(row, cfg, rng, shots=()):
    """Give a row the answer, system message and solved examples that a stage asks for.

    Args:    row: a Row; with `answer` and `explanation` known, its assistant turn is rewritten.
             cfg: the stage's Config: `answers`, `system`, `few_shot`.  rng: a random.Random; draws Orca 1's message and whether examples are shown.
             shots: rows of the same task to show as solved examples in the user turn.
    Returns: A Row. With system "cautious" the strategy's message was there and has been erased; it is kept in `original_system`.
    """
    def reply(r):
        if r.answer and (cfg.answers == "gold" or r.strategy == "direct-answer"):
            return r.answer
        return f"{r.explanation}\n{FINAL} {r.answer}" if r.explanation and r.answer else r.messages[-1]["content"]

    item = dict(vars(row))
    if single(row):
        user = row.messages[-2]["content"]
        if shots and rng.random() < cfg.few_shot:
            user = "\n\n".join(f"{s.messages[-2]['content']}\n{reply(s)}" for s in shots) + f"\n\n{user}"
        item["messages"] = row.messages[:-2] + [{"role": "user", "content": user}, {"role": "assistant", "content": reply(row)}]
    if row.text:
        return row
    if cfg.system in ("empty", "none"):
        item = set_system(item, "" if cfg.system == "empty" else None)
    elif cfg.system == "orca1":
        own = row.task if row.task in ORCA1_IDS else row.source
        own = "flan2021_multiple_choice" if own == "flan2021" and row.kind.endswith("_opt") else own  # a template with options
        item = set_system(item, ORCA1[rng.choice(ORCA1_IDS.get(own, ORCA1_IDS["cot"]))])  # rows from elsewhere get those of cot
    elif cfg.system in ("strategy", "cautious") and row.strategy and not (row.messages[0]["role"] == "system" and row.messages[0]["content"]):  # else: what its teacher was asked under
        item = set_system(item, STRATEGIES[choose(row.strategy, STRATEGIES, f"strategy ({row.where or row.id})")])
    if cfg.system == "cautious":
        item = erase(item)
    return Row(**item)


def single(row):
    """Tell whether a row is one question and one answer."""
    return [m["role"] for m in row.messages if m["role"] != "system"] == ["user", "assistant"]


def solved(row):
    """Tell whether a row is one question with a known gold answer, so that a stage can choose what is learned of it."""
    return bool(row.answer) and single(row)


def dressed(rows, cfg, block=0):
    """Yield `rows` dressed for a stage. Solved examples are those that a Mixture gives with a row; else 3 to 5 earlier rows of the same task."""
    rng, earlier = Random(f"{cfg.seed}-{cfg.name}-{block}" if block else f"{cfg.seed}-{cfg.name}"), {}
    for row in rows:
        own = cfg
        if isinstance(row, tuple):
            (row, *shots), own, merge = row
            if merge:  # each is dressed by itself, then they are joined
                yield joined([dress(r, own, rng) for r in (row, *shots)])
                continue
        else:
            pool = earlier.setdefault(row.task, [])
            shots = rng.sample(pool, rng.randint(3, 5)) if cfg.few_shot and len(pool) >= 5 else ()
        yield dress(row, own, rng, shots)
        if own is cfg and solved(row):
            pool.append(row)
            del pool[:-50]
