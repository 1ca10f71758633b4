"""Sources: public data sets by name, each a small reader from its own columns to rows, with licence, teacher and size."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from orcalab.config import RowError, listed, nearest
from orcalab.rows import FIELDS, OTHERS, Lines, OnDisk, files, origin_of, parse, row_of, tsv

SUFFIXES = (".jsonl", ".tsv", ".parquet", ".json", ".csv", ".txt")
NOT_TRAIN = re.compile(r"(^|[/_.-])(test|val|valid|validation|dev)([/_.-]|$)")
NOTE = "Write the clinical note of this visit, with the sections Symptoms, Diagnosis, History of Patient, Plan of Action."
COLLECTIONS = {"cot": "cot", "niv": "niv2", "niv2": "niv2", "t0": "t0", "flan": "flan2021"}  # the first word of an OpenOrca id


# ---------------------------------------------------------------------------- columns of others to fields of ours

def _submix(item):
    return {"question": item["inputs"], "response": item["targets"], "answer": item["targets"], "task": item["task_name"], "kind": item["template_type"]}


def _openorca(item):
    return {**item, "task": COLLECTIONS.get(str(item["id"]).split(".")[0], "unknown")}


def _sharegpt(item):
    roles = {"system": "system", "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}
    return {"messages": [{"role": roles.get(m["from"], m["from"]), "content": m["value"]} for m in item["conversations"]]}


def _alpaca(item):
    return {"system_prompt": item["instruction"], "question": item["input"], "response": item["output"]}


def _orca_chat(item):
    turns = [{"role": role, "content": pair[key]} for pair in item["conversation"] for role, key in (("user", "input"), ("assistant", "output"))]
    return {"messages": [*([{"role": "system", "content": item["instruction"]}] if item["instruction"] else []), *turns]}


def _gsm8k(item):
    worked, _, gold = re.sub("<<.*?>>", "", item["answer"]).rpartition("####")
    return {"question": item["question"], "response": gold.strip(), "answer": gold.strip(), "explanation": worked.strip(), "strategy": "step-by-step"}


def _aqua(item):
    question = f"{item['question']}\nOptions:\n" + "\n".join(item["options"])
    return {"question": question, "response": item["correct"], "answer": item["correct"], "explanation": item["rationale"], "strategy": "step-by-step"}


def _math(item):
    """The last \\boxed{...} is the gold answer; its braces may nest."""
    _, found, tail = item["solution"].rpartition("\\boxed{")
    depth, gold = 1, ""
    for c in tail if found else "":
        depth += (c == "{") - (c == "}")
        if not depth:
            break
        gold += c
    return {"question": item["problem"], "response": gold, "answer": gold, "explanation": item["solution"], "task": f"math_{item['type']}",
            "strategy": "step-by-step"}


def _doctor(item):
    return {"question": f"{item['dialogue']}\n\n{NOTE}", "response": item["section_text"], "strategy": "extract-generate"}


def _plainly(item):
    plain = {k: re.sub(r"^b'(.*?)(\\n)?'$", r"\1", item[k].strip()) for k in ("question", "answer")}  # as bytes were written, in one of them
    return {"question": plain["question"], "response": plain["answer"], "answer": plain["answer"], "strategy": "step-by-step"}


def _lila(item):
    return {"question": item["input"], "response": item["output_answer"], "answer": item["output_answer"], "task": f"lila_{item['dataset'].removesuffix('.json')}",
            "strategy": "step-by-step"}


def _text(item):
    return {"text": item["text"]}


def _text_upper(item):
    return {"text": item["TEXT"]}


@dataclass(frozen=True)
class Source:
    """A public data set. `rows` is 0 and `licence` "unknown" where we could not confirm them."""

    hub: str  # id on the Hugging Face hub, or where else it lies
    to: Callable  # its columns to fields of ours
    columns: tuple  # that the reader needs
    teacher: str
    licence: str
    rows: int = 0
    files: str = ""  # which files of its folder, as a pattern; empty for all but those of test and validation
    config: str = ""  # its configuration on the hub
    revision: str = ""  # of it on the hub; empty for the newest
    note: str = ""


_MIXED = "mixed: each task keeps its own"
_SUBMIX = {"flan2021": 5_362_361, "t0": 1_650_308, "niv2": 10_066_896, "cot": 183_848, "dialog": 0}
_TURNS = ("id", "system_prompt", "question", "response")
SOURCES = {
    **{name: Source(f"DataProvenanceInitiative/{name}_submix_original", _submix, ("inputs", "targets", "task_name", "template_type"), "human", _MIXED, rows,
                    note="FLAN-v2, zero- and few-shot; was conceptofmind/…") for name, rows in _SUBMIX.items()},
    "flan_cot": Source("github.com/google-research/FLAN, flan/v2/cot_data", tsv, (), "human", _MIXED, 74_771, "*_train.tsv", note="nine files of question, answer, explanation"),
    "openorca_gpt4": Source("Open-Orca/OpenOrca", _openorca, _TURNS, "GPT-4", "MIT", 0, "*GPT4*", note="about 1 M rows; stands in for Orca 1's 1 M"),
    "openorca_gpt35": Source("Open-Orca/OpenOrca", _openorca, _TURNS, "GPT-3.5", "MIT", 0, "*GPT3_5*", note="about 3.2 M rows; stands in for Orca 1's 5 M"),
    "slimorca": Source("Open-Orca/SlimOrca", _sharegpt, ("conversations",), "GPT-4", "MIT", 517_982, note="OpenOrca's, less those that contradict FLAN"),
    "dolphin": Source("cognitivecomputations/dolphin", _alpaca, ("instruction", "input", "output"), "GPT-4", "Apache-2.0", 0, "flan1m-alpaca-uncensored.jsonl",
                      note="about 892,000 rows, refusals left out"),
    "orca_chat": Source("shahules786/orca-chat", _orca_chat, ("conversation", "instruction"), "GPT-4", "Apache-2.0", 236_053, "orca-chat-gpt4.json",
                        revision="eb77efaee0e0eccc9b00bedabf21f510dbfc4b6c", note="Dolphin's, joined to conversations; later revisions hold the 8k file only"),
    "gsm8k": Source("openai/gsm8k", _gsm8k, ("question", "answer"), "human", "MIT", 7_473, config="main", note="also inside FLAN's CoT"),
    "aqua": Source("deepmind/aqua_rat", _aqua, ("question", "options", "rationale", "correct"), "human", "Apache-2.0", 97_467, config="raw"),
    "math": Source("EleutherAI/hendrycks_math", _math, ("problem", "type", "solution"), "human", "MIT, under a copyright claim", 7_500, config="algebra",
                   note="seven configurations; from the hub, algebra alone"),
    "math_dataset": Source("deepmind/math_dataset", _plainly, ("question", "answer"), "program", "unknown", 0, config="arithmetic__mixed", revision="refs/pr/5",
                           note="DeepMind Mathematics, 2 M a module; arithmetic only, as in the paper"),
    "numglue": Source("HHazard/numglue", _plainly, ("question", "answer"), "human", "MIT", 71_281),
    "lila": Source("allenai/lila", _lila, ("input", "output_answer", "dataset"), "human", "CC-BY-4.0", 0, config="iid", revision="refs/convert/parquet",
                   note="AddSub, GenArith, Algebra and others"),
    "doctor_patient": Source("har1/MTS_Dialogue-Clinical_Note", _doctor, ("dialogue", "section_text"), "unknown", "MIT", 1_301, "*Train*",
                             note="stands in for 2,000 conversations by GPT-4; ACI-Bench would be a test set of the paper"),
    "redpajama": Source("togethercomputer/RedPajama-Data-1T-Sample", _text, ("text",), "none", "unknown", 0, "*.jsonl", note="plain text; each subset keeps its terms"),
    "fanfics": Source("atom-in-the-universe/fanfics-10k-50k", _text_upper, ("TEXT",), "none", "unknown", 0, note="plain text; no licence is named: do not pass on"),
}


# ------------------------------------------------------------------------------------------------ opening

def made(name, item, where, number):
    """Return the row of a source's item; raise a RowError that names a column that is not there."""
    source = SOURCES[name]
    if missing := [c for c in source.columns if c not in item]:
        raise RowError(f"{where}: no column {missing[0]!r}, which the source {name!r} has{nearest(missing[0], item)}")
    return row_of({"teacher": source.teacher, **source.to({k: item[k] for k in source.columns})}, where, name, number)


def _line(name, path, number, text):
    return made(name, parse(path, number, text), f"{path}:{number}", number)


class Table(OnDisk):
    """The rows of a datasets.Dataset, which lies on disk: a source's, or with columns of ours."""

    def __init__(self, dataset, name, where):
        self.dataset, self.name, self.where = dataset, name, where

    def __len__(self):
        return len(self.dataset)

    def get(self, i):
        where, item = f"{self.where}:{i + 1}", self.dataset[i]
        return made(self.name, item, where, i + 1) if self.name else row_of({k: v for k, v in item.items() if v is not None}, where, Path(self.where).stem, i + 1)


def _parquet_columns(paths):
    """Return the columns of Parquet files; raise a RowError for one that is not whole, or has others than the first."""
    import pyarrow.parquet
    from pyarrow.lib import ArrowException
    first = None
    for path in paths:
        try:
            schema = pyarrow.parquet.read_schema(path)
        except (ArrowException, OSError) as e:
            raise RowError(f"{path}: not a whole Parquet file (is it cut off?): {str(e)[:80]}") from None
        columns = {f.name: str(f.type) for f in schema}
        first = first or columns
        if odd := sorted({k for k in {*columns, *first} if columns.get(k) != first.get(k)}):
            raise RowError(f"{path}: its schema is not that of {paths[0].name}: {odd[0]!r} is {columns.get(odd[0], 'missing')} here and "
                           f"{first.get(odd[0], 'missing')} there; give files of one schema, or name the others apart")
    return list(first)


def _check_columns(columns, name, where):
    """Raise a RowError if a table does not have the columns that its reader needs."""
    if name:
        made_of = dict.fromkeys(columns)
        if missing := [c for c in SOURCES[name].columns if c not in made_of]:
            raise RowError(f"{where}: no column {missing[0]!r}, which the source {name!r} has{nearest(missing[0], columns)}")
    elif not ({"messages"} <= set(columns) or {"question", "response"} <= set(columns) or {"text"} <= set(columns)):
        like = [n for n, s in SOURCES.items() if s.columns and set(s.columns) <= set(columns)]
        odd = next((c for c in columns if c not in FIELDS and nearest(c, [*FIELDS, *OTHERS]).startswith("; did")), None)
        hint = f"; they are those of the source {like[0]!r}: write {like[0]}:PATH" if like else nearest(odd, [*FIELDS, *OTHERS]).replace("did", f"{odd!r}: did") if odd else ""
        raise RowError(f"{where}: needs 'messages', or 'question' and 'response', or 'text'; its columns are {', '.join(columns)}{hint}")


def _tables(paths, name):
    """Return the Tables of files that the datasets library reads, each kind by itself."""
    import datasets
    for suffix in (".parquet", ".json", ".csv", ".txt"):
        some = [p for p in paths if p.suffix == suffix]
        if not some:
            continue
        where = some[0] if len(some) == 1 else some[0].parent
        if suffix == ".parquet":
            _check_columns(_parquet_columns(some), name, where)
        kind = {"sample_by": "document"} if suffix == ".txt" else {}
        try:
            made = datasets.load_dataset({".txt": "text"}.get(suffix, suffix[1:]), data_files=[str(p) for p in some], split="train", **kind)
        except datasets.exceptions.DatasetGenerationError as e:
            raise RowError(f"{where}: cannot be read: {str(e.__cause__ or e)[:200]}") from None
        _check_columns(made.column_names, name, where)
        yield Table(made, name, str(where))


def found(path, name=""):
    """Return the readable files of a file or folder, sorted; of a source's folder those that its `files` says, or all but those of test and validation."""
    pattern = SOURCES[name].files if name else ""
    return files(path, SUFFIXES, f"**/{pattern or '*'}", NOT_TRAIN if name and not pattern else None)


def _where(spec, data):
    """Return (name of the source or "", local path or None) of what `rows` names."""
    name, _, path = spec.partition(":")
    if name in SOURCES and path:
        return name, Path(path)
    if spec in SOURCES:
        if data and not (Path(data) / spec).exists():
            raise ValueError(f"the source {spec!r} is not in {data}: there is no folder {Path(data) / spec}. Put its files there as they lie on the hub "
                             f"({SOURCES[spec].hub}), or leave `data` empty to take it from there")
        return spec, Path(data) / spec if data else None
    if not Path(spec).exists() and "/" not in spec and "." not in spec:
        raise ValueError(f"no source, mixture, file or folder named {spec!r}{nearest(spec, SOURCES)}")
    return "", Path(spec)


def _hub(name, **how):
    """Load a source from the hub; raise an error that says how to go on without."""
    import datasets
    source = SOURCES[name]
    try:
        return datasets.load_dataset(source.hub, source.config or None, data_files=source.files or None, revision=source.revision or None, split="train", **how)
    except (OSError, ValueError) as e:  # no network, no such data set, not allowed to see it
        raise ValueError(f"the source {name!r} could not be had from the hub ({source.hub}): {str(e)[:160]}. Without the hub: put its files into a folder "
                         f"named {name}, and give the folder above as `data`") from None


def pools(sources, data=""):
    """Return the rows behind names of sources and paths, joined by commas: a list of sequences that stay on disk.

    Args:
        sources: a source's name (`openorca`), a name with a folder laid out as on the hub (`openorca:FOLDER`), or a path of files with columns of ours.
        data: folder that holds a folder for each name; empty takes the names from the hub.

    Raises:
        ValueError, RowError: nothing there, a damaged file, a missing column, files of different schemas; says which.
    """
    out = []
    for spec in listed(sources):
        name, path = _where(spec, data)
        if path is None:
            made = _hub(name)
            _check_columns(made.column_names, name, SOURCES[name].hub)
            out.append(Table(made, name, SOURCES[name].hub))
            continue
        paths = found(path, name)
        for suffix, reader in ((".jsonl", partial(_line, name) if name else None), (".tsv", tsv)):
            if some := [p for p in paths if p.suffix == suffix]:
                out.append(Lines(some, reader))
        out += _tables(paths, name)
    return out


def stream(source, data=""):
    """Yield the rows of one source as they come, from the hub without downloading it, or from a folder laid out alike."""
    name, path = _where(source, data)
    if path is not None:
        for pool in pools(source, data):
            yield from pool
        return
    for number, item in enumerate(_hub(name, streaming=True), 1):
        yield made(name, item, f"{SOURCES[name].hub}:{number}", number)


def origin(sources, data=""):
    """Identify what `pools` would read, for a prepared folder's digest: names and contents of files, or the hub's fingerprint."""
    out = []
    for spec in listed(sources):
        name, path = _where(spec, data)
        out.append([name, *(origin_of(found(path, name)) if path is not None else [SOURCES[name].hub, _hub(name)._fingerprint])])
    return out


def licence(name):
    """Return the licence of a row's source."""
    return SOURCES[name].licence if name in SOURCES else "the rows' own"


def table():
    """Return (rows, head) of what is known about every source."""
    return [[n, s.hub, f"{s.rows:,}" if s.rows else "", s.teacher, s.licence, s.note] for n, s in SOURCES.items()], ["name", "where it lies", "rows", "teacher", "licence", "note"]
