"""What should not be learned: refusals, wrong answers, the same row twice, rows that stand in an evaluation set."""

import json
import re
from collections import Counter
from hashlib import blake2b
from itertools import chain, repeat

import numpy as np

from orcalab.config import RowError
from orcalab.rows import files, parse
from orcalab.strategies import FINAL

SORRY = r"\b(?:sorry|apologi[sz]e|apologies|unfortunately|regret)\b"
CANNOT = (r"i(?: cannot| can't| can not| won't| will not|(?:'m| am) (?:unable|not able) to)(?: be able to)? (?:assist|help(?! (?:it|but|my|him|her|them|us|\w+ing)\b)|fulfill?|"
          r"comply|provide|answer|complete|do (?:that|this)|engage|support|generate|create|write|discuss|access|browse|offer)")
AN_AI = r"(?:as|i(?:'m| am)(?: just| only)?) an? (?:ai|artificial intelligence|(?:large )?language model)\b"
REFUSAL = re.compile(rf"^(?:i(?:'m| am)? |my )?(?:\w+ )?{SORRY},? but (?:i|as|that|this|there|the|your|it)\b|"  # so begins an answer that is none
                     rf'(?:^|[.!?]\s+)(?:(?:[^.!?"]{{0,30}}{SORRY}[^.!?"]{{0,60}}\b)?{CANNOT}|{AN_AI}[^.!?"]{{0,60}}(?:n\'t|not|unable))\b', re.I)
MARKS = re.compile(rf"{FINAL}|####|\\boxed\{{|(?:answer|correct option|correct choice) (?:is|would be)\b:?|answer:", re.I)
JUNK = " \n\t:;,!?()[]{}$*_`'\"“”‘’"  # around a result; a full stop only behind it: .5
NUMBER = r"(?<!\d)-?\d*\.?\d+"
LETTER = re.compile(r"(?![ai] [a-z])([a-z])(?:\)|[.:,]?(?:\s|$))\s*(.*)")  # of an option, and the option
ASCII = {code: " " for code in range(128) if not re.match(r"\w", chr(code))}
NGRAM = 13  # words, as is customary since GPT-3
SHORT = 5  # a question of fewer words says nothing by itself
SHIFT = np.uint64(64 - 22)  # the first bits of a hash, by which most runs are told apart from those of questions
POWERS = np.cumprod(np.full(NGRAM, 0x9E3779B97F4A7C15, np.uint64))  # a run's hash is the sum of its words' hashes times these


def refuses(said):
    """Tell whether an answer declines to answer, by the sentences that it begins with.

    >>> refuses("I'm sorry, but I cannot answer this."), refuses("The model is sorry.")
    (True, False)
    """
    return bool(REFUSAL.search(said.lstrip()[:200].replace("’", "'")))


def agrees(said, gold):
    """Tell whether an answer's last stated result is the gold one; None if none is stated, there is no gold, or the two cannot be compared.

    A result is what follows the last "Final answer:", "####", "the answer is", "Answer:" or "\\boxed{", or a short answer as a whole. Case, punctuation
    around it and commas in numbers do not count; numbers are compared as numbers; an option's letter stands for the option.

    >>> agrees("3 x 4 = 12.\\nFinal answer: 12", "12"), agrees("The answer is (B) five.", "B"), agrees("So 1,200 it is", "1200")
    (True, True, None)
    """
    plain = lambda text: re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text).replace("−", "-").lstrip(JUNK).rstrip(JUNK + ".").lower()
    holds = lambda text, word, before: bool(re.search(before + re.escape(word) + r"(?![./,:^-]?\w)", text))
    marks = list(MARKS.finditer(said))
    stated = said[marks[-1].end():] if marks else said if len(said.strip()) <= 2 * len(gold) + 2 else ""
    stated, gold = plain(plain(stated).split("\n")[0]), plain(gold)
    a, b = LETTER.match(stated), LETTER.match(gold)
    if a and b:
        return a[1] == b[1]
    stated, gold = a[2] if a else stated, b[2] if b else gold
    if not stated or not gold:
        return None
    if re.fullmatch(NUMBER, gold):
        told, gold = [float(n) for n in re.findall(NUMBER, re.split(r"[.!?]\s", stated)[0])], float(gold)
        return gold in told[:1] + told[-1:] or (None if not told or gold in told or re.search(r"[\\^/]", stated) else False)
    if holds(stated, gold, "^"):
        return True
    return None if holds(stated, gold, r"(?<!\w)") or re.search(r"[\d\\]", gold) or re.match(r"[\d\\]", stated) else False  # 1/2 may be 0.5


def digest_of(*texts):
    """Hash texts into 64 bits, the same on every machine."""
    return int.from_bytes(blake2b("\0".join(texts).encode(), digest_size=8).digest(), "little")


def words_of(text):
    """Return the runs of letters, digits and underscores of a text, in lower case."""
    return text.lower().translate(ASCII).split() if text.isascii() else re.findall(r"\w+", text.lower())


def sketches(texts):
    """Return a MinHash of each text's word triples (rensa's RMinHash, 128 values); a text of fewer words is one triple."""
    from rensa import RMinHash
    return RMinHash.from_token_sets([[*map(" ".join, zip(w, w[1:], w[2:]))] or [" ".join(w) or t] for w, t in zip(map(words_of, texts), texts)], num_perm=128, seed=1)


class Seen:
    """Near-duplicates, by rensa's MinHash and LSH: rows are added in order, the first of those that are alike is kept.

    Two rows are alike from an estimated Jaccard similarity of word triples of `threshold` on; under a long instruction, so are all short questions.
    """

    def __init__(self, threshold=0.8):
        from rensa import RMinHashDeduplicator
        self.index, self.count = RMinHashDeduplicator(threshold, 128, True, num_bands=16, seed=1), 0

    def new(self, sketches):
        """Return for each sketch whether nothing like it was added before, and add those."""
        self.count += len(sketches)
        return self.index.add_pairs([(str(key), sketch) for key, sketch in enumerate(sketches, self.count - len(sketches))])


class Overlap:
    """Which questions of evaluation sets share a run of 13 words with training rows.

    Words are as in `words_of`. A run of words that stands in several questions is a set's own template, identifies none of them, and is not counted;
    questions of the same words are one. A question of 5 to 12 words is one run; a shorter one is left out, and counted in `short`.

    Args:    sets: {name: [questions]}.
    """

    def __init__(self, sets):
        asked, owner, self.maybe = {}, {}, np.zeros(1 << 22, bool)  # maybe: whether a run of a question begins with five words of this hash
        for who, question in (((name, n), q) for name, some in sets.items() for n, q in enumerate(some)):
            asked.setdefault(tuple(words_of(question)), set()).add(who)
        self.short = sum(len(who) for words, who in asked.items() if len(words) < SHORT)
        self.words = {w: digest_of(w) for words in asked for w in words}
        for words, who in ((words, who) for words, who in asked.items() if len(words) >= SHORT):
            size = min(NGRAM, len(words))
            windows = self._windows(words)[: len(words) - size + 1, :size]
            self.maybe[windows[:, :SHORT] @ POWERS[:SHORT] >> SHIFT] = True
            for run in set((windows @ POWERS[:size]).tolist()):
                owner[run] = who if owner.get(run, who) is who else ()
        self.owner = {run: who for run, who in owner.items() if who}
        self.identified = len(set().union(*self.owner.values()))

    def _windows(self, words):
        """Return the hashes of the 13 words from each word on, (words, 13); a word of no question is 0, and so is what lies behind the last."""
        return np.lib.stride_tricks.sliding_window_view(np.fromiter(map(self.words.get, chain(words, [""] * (NGRAM - 1)), repeat(0)), np.uint64), NGRAM)

    def of_rows(self, rows):
        """Return what `of` gives for what rows say, their system messages left out."""
        return self.of(["\n".join([m["content"] for m in r.messages if m["role"] != "system"] or [r.text]) for r in rows])

    def of(self, texts):
        """Return for each text the set of (name, number) of the questions that share a run of words with it."""
        if not texts:
            return []
        words, out = [[*words_of(text), ""] for text in texts], [set() for _ in texts]  # "" is in no question, so no run of one goes on into the next text
        ends, windows = np.cumsum([len(w) for w in words]), self._windows(chain.from_iterable(words))
        at = np.flatnonzero(self.maybe[windows[:, :SHORT] @ POWERS[:SHORT] >> SHIFT])
        runs = np.cumsum(windows[at] * POWERS, axis=1)[:, SHORT - 1:]  # from each of these words on, one run of each size
        for i, some in zip(at.tolist(), runs.tolist()):
            out[int(np.searchsorted(ends, i, side="right"))].update(*[self.owner[run] for run in some if run in self.owner])
        return out


def questions(paths):
    """Return {name: [questions]} of evaluation sets: BBH's JSON files, AGIEval's JSONL, or any JSONL with a question.

    Raises:  RowError: a file that cannot be read, or has no question in it; says which.
    """
    sets = {}
    for path in files(paths, (".json", ".jsonl")):
        try:
            text = path.read_text(encoding="utf-8-sig")
            items = json.loads(text)["examples"] if path.suffix == ".json" else [parse(path, n, line) for n, line in enumerate(text.split("\n"), 1) if line.strip()]
            asked = ["\n".join(str(x) for x in (*map(i.get, ("passage", "context", "question", "input", "prompt")), *(i.get("options") or ())) if x) for i in items]
        except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError, AttributeError) as e:
            raise RowError(f"{path}: not an evaluation set that we can read ({type(e).__name__}: {e}): BBH's JSON, or JSONL with a question") from None
        if not any(asked):
            raise RowError(f"{path}: no passage, context, question, input or prompt in it")
        name = path.stem if path.stem not in sets else f"{path.parent.name}/{path.stem}"
        sets[name] = sets.get(name, []) + asked
    return sets


def report(hits, sets):
    """Return the contamination report: for each evaluation set the questions that training rows overlap with, and with how many of which task.

    Args:    hits: Counter of (set, number of the question, task of the row), a row once for each question.  sets: {name: number of questions}.
    """
    asked, tasks = {name: set() for name in sets}, {name: Counter() for name in sets}
    for (name, number, task), count in hits.items():
        asked[name].add(number)
        tasks[name][task] += count
    return {name: {"questions": size, "overlap": len(asked[name]), "rows": dict(tasks[name].most_common(10))} for name, size in sets.items()}
