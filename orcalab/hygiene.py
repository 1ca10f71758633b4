"""What should not be learned: empty answers, refusals, wrong answers, the same row twice, rows that stand in an evaluation set."""

import json
import re
from collections import Counter
from hashlib import blake2b

import numpy as np

from orcalab.config import RowError
from orcalab.rows import files
from orcalab.strategies import FINAL

REFUSAL = re.compile(
    r"\b(as an (ai|artificial intelligence)( language)? (model|assistant)|i(?:'| a)m (just |only )?an ai\b|i (cannot|can't|can not|won't|will not|(?:'| a)m (unable|not able) to) "
    r"(assist|help|fulfil|fulfill|comply|provide|answer|complete|do that|engage|support)|i(?:'| a)m sorry,? but (i|as|that)\b|i apologi[sz]e,? but)", re.I)
MARKS = re.compile(rf"{FINAL}|####|(?:final |correct )?answer is:?|answer:", re.I)
NGRAM = 13  # words, as is customary since GPT-3
SHORT = 5  # a question of fewer words says nothing by itself
MERSENNE = np.uint64(0x9E3779B97F4A7C15)


def refuses(said):
    """Tell whether an answer declines to answer, by how it begins.

    >>> refuses("I'm sorry, but I cannot answer this."), refuses("The model is sorry.")
    (True, False)
    """
    return bool(REFUSAL.search(said[:200].replace("’", "'")))


def agrees(said, gold):
    """Tell whether an answer's last stated result is the gold one; None if no result is stated, or there is no gold.

    A result is what follows the last "Final answer:", "####", "the answer is" or "Answer:", or a short answer as a whole. Case, punctuation around
    it and commas in numbers do not count; an option's letter stands for the option.

    >>> agrees("3 x 4 = 12.\\nFinal answer: 12", "12"), agrees("The answer is (B) five.", "B"), agrees("So 1,200 it is", "1200")
    (True, True, None)
    """
    found = list(MARKS.finditer(said))
    stated = said[found[-1].end():] if found else said if len(said.strip()) <= 2 * len(gold) + 2 else ""
    plain = lambda text: re.sub(r"(?<=\d),(?=\d{3})", "", text).strip(" \n\t.:;,!?()[]{}$*'\"").lower()
    if not gold or not plain(stated):
        return None
    stated, gold = plain(stated.strip().split("\n")[0]), plain(gold)
    return stated == gold or bool(re.match(re.escape(gold) + r"[\s).:,]", stated))


def digest_of(*texts):
    """Hash texts into 64 bits, the same on every machine."""
    return int.from_bytes(blake2b("\0".join(texts).encode(), digest_size=8).digest(), "little")


def words_of(text):
    return re.findall(r"\w+", text.lower())


def shingles(text, words=3):
    """Return the runs of `words` words of a text, for MinHash; a shorter text is one of them."""
    found = words_of(text)
    return [" ".join(found[i : i + words]) for i in range(max(1, len(found) - words + 1))]


def sketches(texts):
    """Return a MinHash of each text (rensa's RMinHash, 128 values)."""
    from rensa import RMinHash
    return RMinHash.from_token_sets([shingles(t) for t in texts], num_perm=128, seed=1)


class Seen:
    """Near-duplicates, by rensa's MinHash and LSH: rows are added in order, the first of those that are alike is kept.

    Args:
        threshold: estimated Jaccard similarity of word triples from which two rows count as the same.
    """

    def __init__(self, threshold=0.8):
        from rensa import RMinHashDeduplicator
        self.index, self.count = RMinHashDeduplicator(threshold, 128, True, num_bands=16, seed=1), 0

    def new(self, sketches):
        """Return for each sketch whether nothing like it was added before, and add those."""
        keys = [str(self.count + i) for i in range(len(sketches))]
        self.count += len(sketches)
        return self.index.add_pairs(list(zip(keys, sketches)))


# ------------------------------------------------------------------------------------------ contamination

class Overlap:
    """Which questions of evaluation sets share a run of 13 words with training rows.

    Words are runs of letters and digits, lower case. A run of words that stands in several questions is a set's own template, identifies none of them,
    and is not counted. A question of 5 to 12 words is one run; a shorter one is left out, and counted.

    Args:
        sets: {name: [questions]}.
    """

    def __init__(self, sets):
        self.words, self.sets = {}, {name: len(q) for name, q in sets.items()}
        owners, self.short = {}, 0
        for name, questions in sets.items():
            for number, question in enumerate(questions):
                ids = self._ids([question])[0]
                size = min(NGRAM, len(ids))
                self.short += size < SHORT
                if size >= SHORT:
                    for h in set(self._runs(ids)[size].tolist()):
                        owners.setdefault((size, h), set()).add((name, number))
        once = {key: next(iter(who)) for key, who in owners.items() if len(who) == 1}
        self.owner = {h: who for (_, h), who in once.items()}
        self.sizes = sorted({size for size, _ in once})
        self.known = {size: np.array(sorted(h for s, h in once if s == size), np.uint64) for size in self.sizes}
        self.identified = len(set(once.values()))

    def _ids(self, texts):
        """Return the 64-bit hashes of each text's words; words met before are looked up."""
        out = []
        for text in texts:
            found = words_of(text)
            try:
                out.append([self.words[w] for w in found])
            except KeyError:
                if len(self.words) > 500_000:
                    self.words.clear()
                out.append([self.words.get(w) or self.words.setdefault(w, digest_of(w)) for w in found])
        return out

    def _runs(self, ids):
        """Return {size: hash of the run of `size` words that begins at each word}, sizes 5 to 13; runs that do not fit are 0."""
        ids, out = np.array(ids, np.uint64), {}
        total = np.zeros(len(ids), np.uint64)
        for k in range(NGRAM):
            ahead = np.zeros(len(ids), np.uint64)
            ahead[: max(0, len(ids) - k)] = ids[k:]
            total = total * MERSENNE + ahead
            if k + 1 >= SHORT:
                out[k + 1] = total[: max(0, len(ids) - k)]
        return out

    def of(self, texts):
        """Return for each text the set of (name, number) of the questions that share a run of words with it."""
        words = self._ids(texts)
        flat = [h for ids in words for h in (*ids, 0)]  # 0 between two texts: a run across is a run of no question
        ends, out = np.cumsum([len(ids) + 1 for ids in words]), [set() for _ in texts]
        runs = self._runs(flat)
        for size in self.sizes:
            known, found = self.known[size], runs[size]
            hit = np.flatnonzero(known[np.minimum(np.searchsorted(known, found), len(known) - 1)] == found)
            for at, h in zip(hit.tolist(), found[hit].tolist()):
                out[int(np.searchsorted(ends, at, side="right"))].add(self.owner[h])
        return out


def questions(paths):
    """Return {name: [questions]} of evaluation sets: BBH's JSON files, AGIEval's JSONL, or any JSONL with a question.

    Raises:
        RowError: a file without a question in it; says which.
    """
    sets = {}
    for path in files(paths, (".json", ".jsonl")):
        try:
            text = path.read_text(encoding="utf-8")
            items = json.loads(text)["examples"] if path.suffix == ".json" else [json.loads(line) for line in text.splitlines() if line.strip()]
            parts = [[i.get(k) for k in ("passage", "context", "question", "input", "prompt")] + list(i.get("options") or ()) for i in items]
        except (ValueError, KeyError, TypeError, AttributeError) as e:
            raise RowError(f"{path}: not an evaluation set that we can read ({type(e).__name__}: {e}): BBH's JSON, or JSONL with a question") from None
        sets[path.stem] = ["\n".join(str(x) for x in p if x) for p in parts]
        if not any(sets[path.stem]):
            raise RowError(f"{path}: no passage, context, question, input or prompt in it")
    return sets


def report(hits, sets):
    """Return the contamination report: for each evaluation set the questions that training rows overlap with, and with how many of which task.

    Args:
        hits: Counter of (set, number of the question, task of the row).
        sets: {name: number of questions}.
    """
    out = {}
    for name, size in sets.items():
        mine = {(n, task): count for (s, n, task), count in hits.items() if s == name}
        tasks = Counter()
        for (_, task), count in mine.items():
            tasks[task] += count
        out[name] = {"questions": size, "overlap": len({n for n, _ in mine}), "rows": dict(tasks.most_common(10))}
    return out
