"""The bridge to EleutherAI's harness (lm-eval): its tasks asked of our students, and its reading of an answer beside ours.

Its own model class (HFLM) does the asking; what it would do otherwise than we do is put right by a chat template, ours with two additions. It leaves an empty system
message out: with system "" the template opens an empty turn, as our students know it. And the prompt ends behind what every answer begins with (ChatML's newline): else
a task that ends answers at a newline would get none, and options would be weighed as the rest of the word "assistant". So its ids are Student.prompt's and that newline:
one BOS, and a task's own description behind the system message. Answers are greedy and end at any end in the model's generation_config, which models.load
fills with the tokenizer's and the template's, or where the task says ("Q:").

Two things stay the harness's way: a question that spells a special token names it, and a prompt that is too long loses its beginning, with a warning.
"""

import json
import shlex
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

from orcalab import chatml
from orcalab.config import choose, read_json, write_json
from orcalab.strategies import system_of

LIKE = {"bbh": "bbh/cot_zeroshot/{}.yaml", "gsm8k": "gsm8k/gsm8k-cot-zeroshot.yaml"}  # benchmark -> lm-eval's task for answers that explain


def chat_template(name, system):
    """Return the chat template, in Jinja, that makes the harness ask as we do; `name` is one of ours, `system` the message as text, or None."""
    ours = chatml.TEMPLATES[name]
    turn = "{%- if messages[0]['role'] != 'system' -%}{%- set messages = [{'role': 'system', 'content': ''}] + messages -%}{%- endif -%}" if system == "" else ""
    return turn + ours.jinja + f"{{%- if add_generation_prompt -%}}{{{{ {ours.lead!r} }}}}{{%- endif -%}}"


def check():
    """Raise a ValueError if lm-eval is not installed."""
    if not find_spec("lm_eval"):
        raise ValueError("lm-eval is not installed: pip install -c constraints.txt -e '.[eval]'")


def lm(source, system="", batch_size=8, device="auto", dtype="auto"):
    """Return a student as the harness wants it; `source` is whatever generate.Student loads, an adapter, too, which is merged in memory."""
    from lm_eval.models.huggingface import HFLM
    from orcalab import adapter, generate
    student = generate.Student(source, device, dtype)
    if hasattr(student.model, "note"):  # HFLM ties a model's tables, and finds none where an adapter stands around them
        adapter.merge(student.model, student.model.device)
    return HFLM(pretrained=student.model, tokenizer=student.tokenizer, batch_size=batch_size,
                chat_template_args={"chat_template": chat_template(student.encoder.name, system)})


def run(source, tasks, system="", include="", limit=0, max_new_tokens=512, **how):
    """Ask a student tasks of lm-eval's; return its results, {"results": {task: {...}}, "samples": {task: [...]}, ...}.

    Args:    source: a stage's folder, a model's or an adapter's, a base model's name, a hub id.
             tasks: names of tasks or groups, joined by commas.  include: a folder with YAML files of further tasks.
             system: a strategy's or message's name, or a text; "" is an empty system turn, None is none.
             limit: questions of each task, 0 for all.  how: batch_size, device, dtype.
    Raises:  ValueError: lm-eval is not installed, or knows no such task.
    """
    check()
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager
    names, system, manager = tasks.split(","), system and system_of(system), TaskManager(include_path=include or None, include_defaults=False)
    if not set(names) <= set(manager.all_tasks):
        manager = TaskManager(include_path=include or None)  # reads its own thousands, which takes seconds
    for name in names:
        choose(name, manager.all_tasks, "task of lm-eval")
    return simple_evaluate(lm(source, system, **how), tasks=names, system_instruction=system, apply_chat_template=True, fewshot_as_multiturn=True,
                           limit=limit or None, gen_kwargs={"do_sample": False, "max_gen_toks": max_new_tokens}, task_manager=manager)


def command(source, tasks, system="", include="", limit=0, max_new_tokens=512, batch_size=8, device="auto", dtype="auto"):
    """Return a line for the shell that asks the same with lm-eval alone; the arguments are those of `run`.
    Raises:  ValueError: the source is no model folder of ours, so lm-eval would not load it as we do.
    """
    from orcalab import adapter, model as models
    folder, system, (device, dtype) = Path(adapter.folder_of(source)), system and system_of(system), models.pick(device, dtype)
    if not (folder / "config.json").exists() or not (folder / "orcalab.json").exists():
        raise ValueError(f"{source} is no model folder of ours, and lm-eval by itself would not load it as we do: write one with orcalab export --model {source} --to FOLDER")
    template = chat_template(read_json(folder / "orcalab.json")["template"], system)
    model = {"pretrained": str(folder), "dtype": str(dtype).removeprefix("torch."), "chat_template_args": {"chat_template": template}}
    given = {"system_instruction": system, "include_path": include, "limit": limit}
    return shlex.join(["lm_eval", "--model", "hf", "--model_args", json.dumps(model), "--tasks", tasks, "--apply_chat_template",
                       *[x for k, v in given.items() if v for x in (f"--{k}", str(v))], "--gen_kwargs", json.dumps({"do_sample": False, "max_gen_toks": max_new_tokens}),
                       "--batch_size", str(batch_size), "--device", device])


def local(folder, name, like, rows):
    """Write a task that is one of lm-eval's, zero-shot, but for its rows, which come from a file: <folder>/<name>.yaml and .json.

    Args:  like: the YAML file of lm-eval's, below lm_eval/tasks ("bbh/zeroshot/navigate.yaml").  rows: list of dicts with its columns (of BBH input and target).
    """
    check()
    import lm_eval.tasks
    folder = Path(folder).resolve()
    write_json(folder / f"{name}.json", rows)
    write_json(folder / f"{name}.yaml", {  # JSON is YAML
        "include": str(Path(lm_eval.tasks.__file__).parent / like), "task": name, "num_fewshot": 0, "dataset_path": "json", "dataset_name": None,
        "dataset_kwargs": {"data_files": dict.fromkeys(("train", "test"), str(folder / f"{name}.json")), "cache_dir": str(folder / "cache")}})


def parity(records, like=LIKE):
    """Read stored answers with lm-eval's filters and metric, as they are, and compare with ours item by item.
    Args:    records: those of tasks "bbh/<task>" and "gsm8k".  like: {benchmark: YAML file of lm-eval's}; {} in it stands for what is behind the slash.
    Returns: {filter of lm-eval's: {"n", "ours", "theirs", "items"}}; ours and theirs are shares right, items the answers that are right with one alone: dicts of
             task, number, end (of the text), gold, ours, theirs (as read), right ("ours" or "theirs"). So ours - theirs is (right with us - right with them) / n.
    Raises:  ValueError: a task has no counterpart in `like`, or lm-eval is not installed.
    """
    by, read = {}, {}
    for r in records:
        by.setdefault(r["task"].replace("/", "_"), []).append(r)
    with TemporaryDirectory() as side:
        for name, own in by.items():
            benchmark, _, task = own[0]["task"].partition("/")
            golds = [f"({r['gold']})" if r.get("labels") else r["gold"] for r in own]
            local(side, name, like[choose(benchmark, like, "benchmark with a counterpart in lm-eval")].format(task),
                  [{"input": r["question"], "target": gold, "question": r["question"], "answer": gold} for r, gold in zip(own, golds)])
        from lm_eval.tasks import TaskManager
        theirs = TaskManager(include_path=side, include_defaults=False).load([*by])["tasks"]
        for name, own in by.items():
            task = theirs[name]
            task.build_all_requests()
            for r, asked in zip(own, task.instances):
                asked.resps = [r["text"]]
            task.apply_filters()
            for r, asked in zip(own, task.instances):
                for how, said in asked.filtered_resps.items():
                    read.setdefault(how, []).append((r, said, task.process_results(asked.doc, [said])["exact_match"] == 1))
    return {how: {"n": len(all_), "ours": sum(bool(r["right"]) for r, _, _ in all_) / len(all_), "theirs": sum(right for _, _, right in all_) / len(all_),
                  "items": [{"task": r["task"], "number": r["number"], "end": r["text"][-80:], "gold": r["gold"], "ours": r["answer"], "theirs": said,
                             "right": "theirs" if right else "ours"} for r, said, right in all_ if r["right"] != right]} for how, all_ in read.items()}
