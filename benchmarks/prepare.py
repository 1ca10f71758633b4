"""Rows in, packed data folder out: `orcalab prepare` against TRL's SFTTrainer, which tokenizes, masks and packs the same rows.

Both read one JSONL file of FLAN's chain-of-thought rows (their folder is given) or of the laptop recipe's procedural ones,
with a system message, and end with packs of 2,048 tokens. TRL runs as its users run it (`assistant_only_loss`, `packing`), with
as many processes as orcalab; its clock covers reading the file and building the trainer around a model of under a million
parameters. Ours also reads and checks every line before it chooses, decodes and proves the targets of every row, keeps the rows with their provenance and writes everything,
with its data card, to disk. Whole processes take turns, and each side reports its own work without the imports.

    pip install trl
    python benchmarks/prepare.py [rows [folder of FLAN files [tokenizer]]]
    python benchmarks/prepare.py many [rows [folder of FLAN files [tokenizer [processes]]]]   # ours alone, minutes: memory, disk, and rows/s by processes (1+2)
"""

import json
import os
import statistics
import subprocess
import sys
import time
from itertools import cycle, islice
from pathlib import Path
from tempfile import TemporaryDirectory

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
SEQ_LEN = 2048


def write_rows(path, count, folder):
    """Write `count` rows of real text as JSONL, as stage 2 dresses them; more than there are come again, numbered."""
    from orcalab import corpus, data, recipes
    recipe = recipes.get("laptop")
    cfg = recipe.stage("stage2_chatgpt")
    rows = data.read(folder, 0) if folder else list(islice(corpus.rows_of(recipe, cfg)[0], min(count, 15_000)))
    talks = [r.messages for r in data.dressed(rows, cfg)]
    with open(path, "w", encoding="utf-8") as f:
        for n, messages in enumerate(islice(cycle(talks), count)):
            again = f" ({n // len(talks)})" if n >= len(talks) else ""
            messages = [*messages[:-2], {**messages[-2], "content": messages[-2]["content"] + again}, messages[-1]]
            f.write(json.dumps({"messages": messages}, ensure_ascii=False) + "\n")


def ours(path, name, processes, out):
    """Prepare the file with orcalab; return seconds, tokens and targets."""
    from orcalab import corpus, model
    from orcalab.config import Config, Recipe
    tokenizer = model.load_tokenizer(name)
    begun = time.perf_counter()
    cfg = Config(name="bench", rows=str(path), system="keep", seq_len=SEQ_LEN, processes=processes, out=out, steps=0, epochs=1, drop="nothing")
    made = corpus.prepare(Recipe(), cfg, tokenizer)
    seconds = time.perf_counter() - begun
    assert made.card["report"]["rows"] == made.card["chosen"]["rows"]["rows"], "not every row was prepared"
    size = sum(p.stat().st_size for p in made.folder.iterdir())
    return {"seconds": seconds, "gib": round(size / 2**30, 2), "fill": round(made.card["fill"], 4), "steps": made.steps, **made.card["report"]}


def trl(path, name, processes, out):
    """Prepare the file with TRL's trainer; return seconds, tokens and targets."""
    from datasets import disable_progress_bars, load_dataset
    from orcalab import model
    from transformers import LlamaConfig, LlamaForCausalLM
    from trl import SFTConfig, SFTTrainer
    disable_progress_bars()
    tokenizer = model.load_tokenizer(name)
    small = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2))
    args = SFTConfig(output_dir=out, max_length=SEQ_LEN, packing=True, assistant_only_loss=True, dataset_num_proc=processes if processes > 1 else None,
                     report_to="none", use_cpu=True, bf16=False)
    begun = time.perf_counter()
    rows = load_dataset("json", data_files=str(path), split="train", cache_dir=out + "/cache")
    made = SFTTrainer(model=small, args=args, train_dataset=rows, processing_class=tokenizer).train_dataset
    seconds = time.perf_counter() - begun
    return {"seconds": seconds, "tokens": sum(map(len, made["input_ids"])), "targets": sum(y != -100 for row in made["labels"] for y in row)}


def child(side, *rest):
    """Run one side in a process of its own, and return what it says with its peak memory (of the whole tree)."""
    import psutil

    from laptop import memory
    job, peak = psutil.Popen([sys.executable, __file__, "--", side, *map(str, rest)], stdout=subprocess.PIPE, text=True), 0
    while job.poll() is None:
        peak = max(peak, memory(job))
        time.sleep(1)  # looking costs, too
    said = job.stdout.read()
    job.stdout.close()
    if job.returncode:
        raise SystemExit(said)
    return {**json.loads(said.splitlines()[-1]), "peak_gib": round(peak / 2**30, 2)}


def main(count=12_000, folder="", name="llama-standin", repeats=2):
    with TemporaryDirectory() as out:
        path, speed, said = Path(out) / "rows.jsonl", {}, {}
        write_rows(path, int(count), folder)
        for processes in (1, os.cpu_count()):
            for n in range(repeats):
                for side in ("ours", "trl"):
                    said[side] = child(side, path, name, processes, f"{out}/{side}-{processes}-{n}")
                    speed.setdefault((side, processes), []).append(int(count) / said[side]["seconds"])
            assert [said["ours"][k] for k in ("tokens", "targets")] == [said["trl"][k] for k in ("tokens", "targets")], "the two sides did other work"
            a, b = (statistics.median(speed[side, processes]) for side in ("ours", "trl"))
            print(f"{processes} process(es): ours {a:.0f} rows/s, TRL {b:.0f}, ratio {a / b:.2f}; tokens {said['ours']['tokens']} and {said['trl']['tokens']}, "
                  f"targets {said['ours']['targets']} and {said['trl']['targets']}, peak {said['ours']['peak_gib']} and {said['trl']['peak_gib']} GiB", flush=True)
    rate = {f"{side}_{p}": round(statistics.median(v)) for (side, p), v in speed.items()}
    n = os.cpu_count()
    print(json.dumps({"peer": "TRL SFTTrainer: load_dataset, assistant_only_loss, packing", "ratio": round(rate["ours_1"] / rate["trl_1"], 2),
                      f"ratio_{n}_processes": round(rate[f"ours_{n}"] / rate[f"trl_{n}"], 2), "scaling": round(rate[f"ours_{n}"] / rate["ours_1"], 2), "rows_per_s": rate,
                      "work": f"{count} rows, {said['ours']['tokens']} tokens, {'FLAN CoT' if folder else 'procedural'}, packs of {SEQ_LEN}"}))


def many(count=1_000_000, folder="", name="llama-standin", processes=""):
    """Ours alone: a tenth of the rows and all of them, so that one sees how memory grows; and by processes."""
    with TemporaryDirectory() as out:
        path, few = Path(out) / "rows.jsonl", Path(out) / "few.jsonl"
        write_rows(path, int(count), folder)
        with open(path, encoding="utf-8") as f, open(few, "w", encoding="utf-8") as g:
            g.writelines(islice(f, int(count) // 10))
        every = [int(n) for n in processes.split("+")] if processes else [1, os.cpu_count()]
        small = child("ours", few, name, every[-1], f"{out}/few")
        said = {n: child("ours", path, name, n, f"{out}/ours-{n}") for n in every}
        rate = {n: round(s["rows"] / s["seconds"]) for n, s in said.items()}
        last = said[every[-1]]
        print(json.dumps({"rows": last["rows"], "tokens": last["tokens"], "packs of": SEQ_LEN, "steps": last["steps"], "fill": last["fill"], "file_gib": round(path.stat().st_size / 2**30, 2),
                          "prepared_gib": last["gib"], "seconds": {n: round(s["seconds"]) for n, s in said.items()}, "rows_per_s": rate, "scaling": round(rate[every[-1]] / rate[every[0]], 2),
                          "peak_gib": {n: s["peak_gib"] for n, s in said.items()}, "peak_gib_of_a_tenth": small["peak_gib"],
                          "bytes_a_row": round((last["peak_gib"] - small["peak_gib"]) * 2**30 / (0.9 * last["rows"]))}))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--"]:
        side, path, name, processes, out = sys.argv[2:]
        print(json.dumps({"ours": ours, "trl": trl}[side](path, name, int(processes), out)))
    elif sys.argv[1:2] == ["many"]:
        many(*sys.argv[2:])
    else:
        main(*sys.argv[1:])
