"""Rows to ids and mask in one process: orcalab's encoder against transformers' apply_chat_template, same rows, same ids, one run.

The peer is what a careful tutorial does: one call for all rows, with the tokenizer's own chat template and its mask of the
assistant's tokens. Both sides take turns on blocks of rows, so that other load on the machine hits both, and each
starts cold: orcalab has met no word before. Rows are FLAN's chain-of-thought ones under Orca 1's system messages where their
folder is given, else the laptop recipe's procedural rows; the tokenizer is the Llama-family stand-in, or a folder's.

    python benchmarks/encode.py [rows [folder of FLAN files [tokenizer]]]
"""

import gc
import json
import os
import statistics
import sys
import time
from itertools import islice

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # one process, one thread: the peer's Rust part too

from orcalab import chatml, corpus, data, model, recipes

BLOCK = 1000


def rows_of(count, folder=None):
    """Return `count` conversations, dressed as in stage 2."""
    recipe = recipes.get("laptop")
    cfg = recipe.stage("stage2_chatgpt")
    rows = data.read(folder, 0) if folder else corpus.rows_of(recipe, cfg)[0]
    return [r.messages for r in islice(data.dressed(rows, cfg), count)]


def main(count=10_000, folder=None, name="llama-standin"):
    talks, tokenizer = rows_of(int(count), folder), model.load_tokenizer(name)
    fresh = chatml.Encoder(tokenizer)  # its cache of words is empty; what chatml.encode uses is not touched
    times, tokens = {"ours": [], "peer": []}, 0
    tokenizer.apply_chat_template(talks[:1], return_dict=True, return_assistant_tokens_mask=True)  # compile the template
    gc.disable()  # as timeit does, for both sides
    for at in range(0, len(talks), BLOCK):
        part = talks[at : at + BLOCK]
        begun = time.perf_counter()
        theirs = tokenizer.apply_chat_template(part, return_dict=True, return_assistant_tokens_mask=True)
        times["peer"].append((time.perf_counter() - begun) / len(part))
        begun = time.perf_counter()
        ours = [chatml.encode(m, fresh) for m in part]
        times["ours"].append((time.perf_counter() - begun) / len(part))
        assert ours == list(zip(theirs["input_ids"], theirs["assistant_masks"])), "the two sides gave other ids"
        tokens += sum(len(ids) for ids, _ in ours)
    speed = {side: 1 / statistics.mean(t) for side, t in times.items()}
    print(f"peer {speed['peer']:.0f} rows/s, ours {speed['ours']:.0f}; the last block, with the words known, {1 / times['ours'][-1]:.0f}")
    print(json.dumps({
        "peer": "transformers apply_chat_template(return_assistant_tokens_mask=True), one call per 1,000 rows", "ratio": round(speed["ours"] / speed["peer"], 2),
        "ours_rows_per_s": round(speed["ours"]), "peer_rows_per_s": round(speed["peer"]), "ours_tokens_per_s": round(tokens / len(talks) * speed["ours"]),
        "warm_ratio": round(times["peer"][-1] / times["ours"][-1], 2),
        "work": f"{len(talks)} rows, {tokens} tokens, {'FLAN CoT' if folder else 'procedural'}, system messages repeat, one process"}))


if __name__ == "__main__":
    main(*sys.argv[1:])
