"""What a stage is trained on: the rows that its `rows` names, found and prepared."""

from importlib.metadata import version
from itertools import islice
from pathlib import Path

from orcalab import data, mixture, procedural, sources
from orcalab.config import Mix, Part, choose, digest, listed


def rows_of(recipe, cfg):
    """Return (rows, origin) of a stage: procedural ones, or those of the mixture, sources or files that `rows` names; "stream:NAME" reads a source as it comes.

    No procedural row holds a held-out question. `origin` identifies the rows for the prepared folder.

    Raises:  ValueError: `rows` names nothing that is there; says what is near.
    """
    name, _, number = cfg.rows.partition(":")
    if name == "procedural":
        if number and not (number.isdigit() and int(number)):
            raise ValueError(f"rows {cfg.rows!r}: how many procedural rows? Write procedural, or procedural:400 for the first 400")
        exclude = frozenset(e["question"].strip() for q in procedural.held_out(recipe.tasks, recipe.questions).values() for e in q)
        origin = [[t.name, t.strategy, t.settings] for t in recipe.tasks] + [cfg.seed, cfg.stream, recipe.questions, *filter(None, [number])]
        origin += [version("reasoning-gym"), digest(Path(procedural.__file__).read_text(encoding="utf-8"))]  # another writer, other rows
        return islice(procedural.rows(recipe.tasks, cfg.seed, cfg.stream, exclude), int(number) if number else None), origin
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
