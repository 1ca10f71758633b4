"""Sources: public data sets by name, each a small reader from its own columns to rows, with licence, teacher and size."""

import ast
import hashlib
import re
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, chain
from pathlib import Path, PurePosixPath
from random import Random

from orcalab.config import RowError, listed, nearest
from orcalab.rows import FIELDS, Lines, OnDisk, Stacked, files, parse, row_of, tsv

HUB = "hf://datasets"
LINES, TABLES = (".jsonl", ".tsv"), {".parquet": "parquet", ".json": "json", ".csv": "csv", ".txt": "text"}  # how the datasets library calls its readers
NOT_TRAIN = re.compile(r"(?i)(^|[/_.-])(test|val|valid|validation|dev|eval)([/_.-]|$)|dataset_infos?\.json$")
SHAPES = ({"messages"}, {"question", "response"}, {"text"})  # columns of ours that make a row
NOTE = "Write the clinical note of this visit, with the sections Symptoms, Diagnosis, History of Patient, Plan of Action."
COLLECTIONS = {"cot": "cot", "niv": "niv2", "niv2": "niv2", "t0": "t0", "flan": "flan2021"}  # the first word of an OpenOrca id


def _submix(item):
    kind = re.sub("^(zs|fs)_?", r"\1_", item["template_type"])  # zsopt and zs_opt are both in use
    return {"question": item["inputs"], "response": item["targets"], "answer": item["targets"], "task": item["task_name"], "kind": kind}


def _openorca(item):
    return {**item, "task": COLLECTIONS.get(str(item["id"]).split(".")[0], "unknown")}


def _sharegpt(item):
    roles = {"human": "user", "gpt": "assistant"}
    return {"messages": [{"role": roles.get(m["from"], m["from"]), "content": m["value"]} for m in item["conversations"]]}


def _orca_chat(item):
    turns = [{"role": role, "content": pair[key]} for pair in item["conversation"] for role, key in (("user", "input"), ("assistant", "output"))]
    return {"messages": [*([{"role": "system", "content": item["instruction"]}] if item["instruction"] else []), *turns]}


def _solved(question, gold, explanation="", **more):
    return {"question": question, "response": gold, "answer": gold, "explanation": explanation, "strategy": "step-by-step" if explanation else "direct-answer", **more}


def _gsm8k(item):
    worked, _, gold = re.sub("<<.*?>>", "", item["answer"]).rpartition("####")
    return _solved(item["question"], gold.strip().replace(",", ""), worked.strip())


def _math(item):
    """The last \\boxed{...} is the gold answer; its braces may nest."""
    _, boxed, tail = item["solution"].rpartition("\\boxed{")
    depths = accumulate((c == "{") - (c == "}") for c in tail) if boxed else []
    return _solved(item["problem"], tail[: next((i for i, depth in enumerate(depths) if depth < 0), 0)], item["solution"], task=f"math_{item['type']}")


def _plainly(item):
    """In one of them, texts are written as Python shows bytes."""
    texts = item["question"].strip(), item["answer"].strip()
    return _solved(*(ast.literal_eval(t).decode().strip() if re.fullmatch(r"""b(['"]).*\1""", t) else t for t in texts))


@dataclass(frozen=True)
class Source:
    """A public data set. `rows` is 0 and `licence` "unknown" where we could not confirm them."""

    hub: str  # id on the Hugging Face hub, or where else it lies
    to: Callable  # its columns to fields of ours
    columns: tuple  # that the reader needs
    teacher: str
    licence: str
    rows: int = 0
    files: str = "*.*"  # which files of its folder, less those of test and validation
    note: str = ""
    revision: str = "main"  # on the hub


_MIXED = "mixed: each task keeps its own"
_SUBMIX = {"flan2021": 5_362_361, "t0": 1_650_308, "niv2": 10_066_896, "cot": 183_848, "dialog": 0}
_TURNS = ("id", "system_prompt", "question", "response")
SOURCES = {
    **{name: Source(f"DataProvenanceInitiative/{name}_submix_original", _submix, ("inputs", "targets", "task_name", "template_type"), "human", _MIXED, rows,
                    note="FLAN-v2, zero- and few-shot; was conceptofmind/…") for name, rows in _SUBMIX.items()},
    "flan_cot": Source("github.com/google-research/FLAN, flan/v2/cot_data", tsv, (), "human", _MIXED, 74_771, "*_train.tsv", "nine files: question, answer, why"),
    "openorca_gpt4": Source("Open-Orca/OpenOrca", _openorca, _TURNS, "GPT-4", "MIT", 0, "*GPT4*.*", "about 1 M rows; stands in for Orca 1's 1 M"),
    "openorca_gpt35": Source("Open-Orca/OpenOrca", _openorca, _TURNS, "GPT-3.5", "MIT", 0, "*GPT3_5*.*", "about 3.2 M rows; stands in for Orca 1's 5 M"),
    "slimorca": Source("Open-Orca/SlimOrca", _sharegpt, ("conversations",), "GPT-4", "MIT", 517_982, note="OpenOrca's, less those that contradict FLAN"),
    "dolphin": Source("cognitivecomputations/dolphin", lambda i: {"system_prompt": i["instruction"], "question": i["input"], "response": i["output"]},
                      ("instruction", "input", "output"), "GPT-4", "Apache-2.0", 0, "flan1m-alpaca-uncensored.jsonl", "about 892,000 rows, refusals left out"),
    "orca_chat": Source("shahules786/orca-chat", _orca_chat, ("conversation", "instruction"), "GPT-4", "Apache-2.0", 0, "orca-chat-gpt4.json", "Dolphin's, joined to "
                        "236,053 conversations (counted back from OpenAssistant's); later revisions hold the 8k file only", "eb77efaee0e0eccc9b00bedabf21f510dbfc4b6c"),
    "gsm8k": Source("openai/gsm8k", _gsm8k, ("question", "answer"), "human", "MIT", 7_473, "main/*.*", "also inside FLAN's CoT"),
    "aqua": Source("deepmind/aqua_rat", lambda i: _solved("\n".join([i["question"], "Options:", *i["options"]]), i["correct"], i["rationale"]),
                   ("question", "options", "rationale", "correct"), "human", "Apache-2.0", 97_467, "raw/*.*"),
    "math": Source("EleutherAI/hendrycks_math", _math, ("problem", "type", "solution"), "human", "MIT, under a copyright claim", 7_500, note="seven folders"),
    "math_dataset": Source("deepmind/math_dataset", _plainly, ("question", "answer"), "program", "unknown", 0, "arithmetic__mixed/*.*",
                           "DeepMind Mathematics, 2 M a module; arithmetic only, as in the paper", "refs/pr/5"),
    "numglue": Source("HHazard/numglue", _plainly, ("question", "answer"), "human", "MIT", 71_281),
    "lila": Source("allenai/lila", lambda i: _solved(i["input"], i["output_answer"], task=f"lila_{i['dataset'].removesuffix('.json')}"),
                   ("input", "output_answer", "dataset"), "human", "CC-BY-4.0", 0, "iid/**/*.*", "AddSub, GenArith, Algebra and others", "refs/convert/parquet"),
    "doctor_patient": Source("har1/MTS_Dialogue-Clinical_Note", lambda i: {"question": f"{i['dialogue']}\n\n{NOTE}", "response": i["section_text"], "strategy": "extract-generate"},
                             ("dialogue", "section_text"), "unknown", "MIT", 1_201, "*Train*.*",
                             "stands in for 2,000 conversations by GPT-4; ACI-Bench would be a test set of the paper"),
    "redpajama": Source("togethercomputer/RedPajama-Data-1T-Sample", dict, ("text",), "none", "unknown", 0, "*.jsonl", "plain text; each subset keeps its terms"),
    "fanfics": Source("atom-in-the-universe/fanfics-10k-50k", lambda i: {"text": i["TEXT"]}, ("TEXT",), "none", "unknown", note="plain text; names no licence: do not pass on"),
}


def _fit(columns, name, where):
    """Raise a RowError if an item, or a table, with these columns is not what its reader needs."""
    if name in SOURCES:
        if missing := [c for c in SOURCES[name].columns if c not in columns]:
            raise RowError(f"{where}: no column {', '.join(map(repr, missing))}, which the source {name!r} has{nearest(missing[0], columns).replace('known', 'its columns are')}")
    elif not any(shape <= columns.keys() for shape in SHAPES):
        like = [n for n, s in SOURCES.items() if s.columns and set(s.columns) <= columns.keys()]
        if like and not {"id", "task"} & columns.keys():
            own = "; if they are questions of your own, add a column 'id' or 'task'" if "question" in columns else ""
            raise RowError(f"{where}: needs 'messages', or 'question' and 'response', or 'text'{own}; its columns are those of the source {' or '.join(like)}: write {like[0]}:PATH")
        row_of(dict.fromkeys(columns, ""), where, "", 0)  # says what is missing


def _row(name, item, path, number):
    """Return the row of an item with a source's columns, or with ours if `name` is no source's. A text that is None is empty."""
    where = f"{path}:{number}"
    if source := SOURCES.get(name):
        _fit(item, name, where)
        try:
            item = {"teacher": source.teacher, **source.to({k: "" if item[k] is None else item[k] for k in source.columns})}
        except (AttributeError, KeyError, SyntaxError, TypeError, ValueError) as e:
            raise RowError(f"{where}: not laid out as the source {name!r} has it ({type(e).__name__}: {e})") from None
    elif None in item.values() or not ("messages" in item or "question" in item and "response" in item or "text" in item):
        _fit(item, name, where)
        told = {k: v for k, v in item.items() if v is not None}
        item = told if any(shape <= told.keys() for shape in SHAPES) else {**{k: "" for k in FIELDS[:5] if k in item}, **told}
    return row_of(item, where, name or path.stem, number)


def _line(name, path, number, text):
    return _row(name, parse(path, number, text), path, number)


class Table(OnDisk):
    """The rows of a datasets.Dataset, which lies on disk: a source's, or with columns of ours."""

    def __init__(self, dataset, name, path):
        self.dataset, self.name, self.path = dataset, name, path

    def __len__(self):
        return len(self.dataset)

    def get(self, i):
        return _row(self.name, self.dataset[i], self.path, i + 1)


def _tables(paths, name):
    """Yield the Tables of files: the datasets library keeps an Arrow file of each in its cache, but for CSV files, which stay in memory."""
    import datasets
    from pyarrow import csv, parquet, string
    first, shown = {}, datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        for path in paths:
            dataset, size = [], path.stat().st_size
            if path.suffix == ".parquet":
                size, schema = parquet.read_metadata(path).num_rows, parquet.read_schema(path)
                here = dict(zip(schema.names, map(str, schema.types)))
                _fit(here, name, path)
                first = first or here
                if odd := sorted(k for k in {**here, **first} if here.get(k) != first.get(k)):
                    raise RowError(f"{path}: its schema is not that of {paths[0].name}: {odd[0]!r} is {here.get(odd[0], 'missing')} here and "
                                   f"{first.get(odd[0], 'missing')} there; give files of one schema, or name the others apart")
            if path.suffix == ".csv" and size:  # all of it is text: None is a word, 4 is no number
                text = csv.ConvertOptions(default_column_type=string(), strings_can_be_null=True, null_values=[""])
                dataset = datasets.Dataset(csv.read_csv(path, csv.ReadOptions(block_size=1 << 24), csv.ParseOptions(newlines_in_values=True), text))
            elif size:
                how = {"sample_by": "document"} if path.suffix == ".txt" else {}
                dataset = datasets.load_dataset(TABLES[path.suffix], data_files=[str(path)], split="train", **how)
            if not len(dataset):
                raise RowError(f"{path}: the file is empty")
            _fit(dataset.features, name, path)
            if dates := [c for c in FIELDS if path.suffix == ".json" and "timestamp" in str(dataset.features.get(c))]:
                raise RowError(f"{path}: {dates[0]!r} was taken for dates; write the file as JSONL, where text stays as it is")
            yield Table(dataset, name, path)
    except RowError:
        raise
    except Exception as e:  # of many types, by kind of file
        why = "the file is empty" if "no data" in str(e) else f"cannot be read as {TABLES[path.suffix]} (is it cut off?): {str(e.__cause__ or e)[:120]}"
        raise RowError(f"{path}: {why}") from None
    finally:
        if shown:
            datasets.enable_progress_bars()


def _source(name):
    return SOURCES.get(name) or Source(name, dict, (), "", "")


@contextmanager
def _hub(source, name):
    """Turn what goes wrong with the hub into an error that says how to go on without."""
    try:
        yield
    except Exception as e:  # no network, no such data set, not allowed to see it: of many types
        raise ValueError(f"{name!r} could not be had from the hub ({source.hub}): {str(e).split('. ')[0][:400]}. To go on without the hub, put its files "
                         f"into a folder, laid out as there, and write {name + ':' if name in SOURCES else ''}FOLDER") from e


def found(path, name=""):
    """Return the readable files of a file or folder, sorted; of a source's folder those that its `files` says, less test and validation."""
    some = files(path, (*LINES, *TABLES), f"**/{_source(name).files}", NOT_TRAIN if name else None)
    return [p for p in some if p.suffix != ".txt"] or some  # beside data, a .txt says something about it


def _where(spec, data, fetch=True):
    """Return (name, folder or file) of what `rows` names; the name is empty for a path, the folder None for what is on the hub and not to be fetched."""
    name, _, path = spec.partition(":")
    if name == "hub" and path:
        name = path
    elif name not in SOURCES:
        if not Path(spec).exists() and "/" not in spec and "." not in spec:
            raise ValueError(f"no source, mixture, file or folder named {spec!r}{nearest(spec, SOURCES)}")
        return "", Path(spec)
    elif path or data:
        folder = Path(path) if path else Path(data, name)
        if not path and not folder.exists():
            raise ValueError(f"the source {name!r} is not in {data}: there is no folder {folder}. Put its files there as they lie on the hub "
                             f"({SOURCES[name].hub}), or leave `data` empty to take it from there")
        return name, folder
    if not fetch:
        return name, None
    from huggingface_hub import snapshot_download
    source = _source(name)
    with _hub(source, name):
        wanted = source.files.replace("**/", "*")
        folder = Path(snapshot_download(source.hub, repo_type="dataset", revision=source.revision, allow_patterns=[wanted, f"*/{wanted}"]))
        found(folder, name)
    return name, folder


def pools(sources, data=""):
    """Return the rows behind names of sources and paths, joined by commas: a list of sequences that stay on disk.

    Args:    sources: a source's name (`gsm8k`), a name with a folder laid out as on the hub (`gsm8k:FOLDER`), a path of files with columns of ours, or a data
                 set of the hub with columns of ours (`hub:OWNER/NAME`).
             data: folder that holds a folder for each name; empty takes the names from the hub.
    Raises:  ValueError, RowError: nothing there, a damaged file, a missing column, files of different schemas; says which.
    """
    out = []
    for name, path in [_where(spec, data) for spec in listed(sources)]:
        paths = found(path, name)
        for suffix, reader in ((".jsonl", partial(_line, name)), (".tsv", tsv)):
            if lines := [p for p in paths if p.suffix == suffix]:
                out.append(Lines(lines, reader))
        if tables := [p for p in paths if p.suffix in TABLES]:  # the datasets library takes seconds to load
            out += _tables(tables, name)
    return out


def read(paths, seed=0, check=True):
    """Return every row behind `paths`, files, folders or sources joined by commas, shuffled by `seed` so that files mix (None: in order).

    Args:    check: read every row now, in the files' order, and raise for the first that is wrong. `data.prepare` does that anyway.
    Raises:  RowError, ValueError: before anything is trained; names file, line and field.
    """
    rows = Stacked(pools(str(paths)))
    for _ in rows if check else ():
        pass
    if seed is not None:
        rows.order = list(range(len(rows)))
        Random(seed).shuffle(rows.order)
    return rows


def stream(source, data=""):
    """Yield the rows of one source as they come: those of `pools`, but Parquet and JSONL files of the hub are read as they arrive, and not kept."""
    name, path = _where(source, data, fetch=False)
    remote, known = [], _source(name)
    if path is None:
        import fsspec
        from pyarrow import parquet
        with _hub(known, name):
            system, root = fsspec.url_to_fs(f"{HUB}/{known.hub}@{known.revision}")
            remote = [PurePosixPath(p) for p in sorted(system.glob(f"{root}/**/{known.files}")) if not NOT_TRAIN.search(p.removeprefix(root))]
    if not {p.suffix for p in remote} & {".jsonl", ".parquet"}:
        yield from chain.from_iterable(pools(source, data))
    for path in remote:
        with system.open(str(path)) as f:
            if path.suffix == ".jsonl":
                yield from (_line(name, path, number, line.decode("utf-8-sig")) for number, line in enumerate(f, 1) if line.strip())
            elif path.suffix == ".parquet":
                items = (item for batch in parquet.ParquetFile(f).iter_batches(1000) for item in batch.to_pylist())
                yield from (_row(name, item, path, number) for number, item in enumerate(items, 1))


def origin(sources, data="", fetch=True):
    """Identify what `pools` would read, for a prepared folder's digest: names and contents of files; without `fetch`, of the hub the data set and its revision."""
    out = []
    for name, path in (_where(spec, data, fetch) for spec in listed(sources)):
        out.append([name] if path else [name, _source(name).hub, _source(name).revision])
        for file in found(path, name) if path else ():
            with open(file, "rb") as f:
                out[-1].append([file.name, hashlib.file_digest(f, "sha256").hexdigest()[:16]])
    return out


def licence(name):
    """Return the licence of a row's source."""
    return SOURCES[name].licence if name in SOURCES else "the rows' own"


def table():
    """Return (rows, head) of what is known about every source."""
    head = ["name", "where it lies", "rows", "teacher", "licence", "note"]
    return [[n, s.hub, f"{s.rows:,}" if s.rows else "", s.teacher, s.licence, s.note] for n, s in SOURCES.items()], head
