r"""What an answer says: an option, a number, a span, a word or a list, read off its text by rules that can be told.

A statement stands behind a delimiter ("Final answer:", "the correct option is", "####", "\boxed{", bold at the end); the last one that can be read counts. What it
rejects ("not (B)", "(A) is wrong") does not count, and one that hedges ("either A or B") says nothing. Where none can be read, an answer may be nothing but an option or
a number, begin with an option ("B. Because"), or name exactly one in its last sentence (not where an "Answer:" cannot be read, nor in code). Else it is not parsed.

Paper: Orca 2, section 5.3: delimiters, then the option's id, then its text; the share parsed is its format-OK rate. Its patterns are unpublished: these are ours.
"""

import re
import unicodedata
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

KEY = re.compile(r"answer|option|choice|boxed|####|correct|best|sorted|alphabetical|conclusion|solution|result|choose|select|go with|ans[:. ]|答案|\*\*")  # in lower case: where to look
IS = r"(?:(?:is|are|was|would be|should be|must be|will be|has to be|can only be)\b\s*:?|[:：=]|[-–—>]+(?=\s)|[是为])"
GAP = r"[\s\"'*_`\],]{0,4}(?:(?:choice|option|letter|here|thus|therefore|then|(?:to|of|for|in|among|from)\s[^\n.:?!]{1,60}?)[\s\"'*_`\],]{1,4}){0,2}"
MARK = re.compile(r"(?P<box>boxed\s*\{)|\*\*(?=[^*\n]+\*\*[^*\w]*$)|####\s*(?=\S+[ \t]*(?:\n|$)|\()|"  # a delimiter; bold at the end is one
                  r"(?:(?<=i )|(?<= would )|(?<= will )|(?<=['’]d )|(?<=['’]ll ))(?:choose|select|go with)\b|"
                  r"(?<![a-z])(?:answer|option|choice|conclusion|(?:correct|best|sorted|alphabetical)\s\w+|solution|result|ans|答案)"
                  rf"(?:{GAP}{IS}|[*_]*[ \t]*\n|\s(?=\W?\w\W? is (?:the )?(?:correct|right|best))|(?<!option)(?<!choice)\s(?=[(*])|(?<=ans|wer)[.\s](?=\(?[A-J]\)?\W*(?:\n|$)))", re.I)
IDLE = re.compile(r"\b(?:wrong|incorrect|other|common|each|every|assume|suppose|if|be|are)(?:[ ,]+(?:that|the|wrong|correct|right|best|final|answer))*[ ,]*$|\bif\b.*\byour $", re.I)  # a delimiter behind it states nothing
BOX = re.compile(r"(?:[^{}]|\{(?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*\})*")
END = re.compile(r"[.!?](?<!\b(?:St|Mr|Dr|Ms|Jr|vs|Rs)[.!?])(?<!\bMrs[.!?])(?:(?<!\b[A-Z][.!?])|(?=\s+(?:So|Thus|Therefore|Hence)\b))[\"'”)*]*\s+(?!No\W)(?=\S*\w)")  # of a sentence
LEAD = re.compile(r"\W*(?:(?:that|therefore|thus|hence|so|then|indeed|clearly|simply|most|likely|probably|it(?:['’]s)?|this|is|be|must|would|should|the|correct|right|best|final|answer|option|"
                  r"choice|letter|we|i(?:['’](?:d|ll))?|have|choose|select|go|with|say|pick|overall|in|conclusion|but|wait|actually)\b\W*)*", re.I)  # may stand before an option that is stated
HEAD, JOIN = re.compile(r"\W*(?:(?:option|choice)\W*)?", re.I), re.compile(r"\W*(?:(?:and/or|or|and|nor)\b\W*(?:(?:the|option|choice)\b\W*)*)?", re.I)
STOPS = re.compile(r"\s*(?:$|[).:,;\]}\"'*!?–—/])|\s+[^\w\s+*/=<>^|×÷]|\s(?:(?:or|and) \W?[a-z](?!\w)|(?:because|since|as|is(?! an?\b)|for|which)\b)", re.I)  # follows an option
NOT = re.compile(r"(?:\b(?:not|cannot|never|no longer|assum(?:e|ing)|suppos(?:e|ing)|than|instead of|neither|nor|except|(?:rul|eliminat|exclud|reject)\w+(?: out)?)|n['’]t)\W+"  # rejects what follows, and WRONG what stands before
                 r"(?:(?:be|is|the|options?|choices?|answer|it|\w+ly|think|believe|true(?= that)|that|an?|correct|right)\b\W*){0,8}$", re.I)
WRONG = re.compile(r"(?:(?:[\s,()]+(?:(?:and|or)[\s(]+)?[A-J]\b)+(?=\W*are\b))?\W*"  # of "A, B and C are wrong" each
                   r"(?:(?:which\s)?(?:is|are|was)\s(?:\w+ly\s|also\s)?(?:not|wrong|incorrect|false|impossible|out|ruled|eliminated|excluded|rejected)\b|(?:\w+n['’]t|cannot|can (?:not|never)|no\W+wait|wait\W+no)\b)|\W*\?\W*no\b", re.I)
BEFORE = re.compile(r"[\w\\]-?$"), re.compile(r"[\w.\\][-(]?$|[-+*/^×÷<>]\s*$|\d,$")  # what no option's text may follow, where it begins with a letter, and where not
AFTER = re.compile(r"-?\w"), re.compile(r"\w|[%°^!(√\\/]|\s*[-+*/×÷<>=]\s*[\w(\\.]|[.,:]\d")  # nor come before
BOUND = re.compile(r"(?<!\w)[(\[【{] ?$|(?:options?|choices?|letter) $", re.I)  # before a label that is surely one
N = r"(?>[-+]?(?:\d{1,30} )?\d{1,30}/[1-9]\d{0,30}|[-+]?\d{1,30}(?:\.\d{1,30})?|[-+]?\.\d{1,30})(?!\.?\d)"
FIRST = rf"[^\w.+-]*(?:[a-z]\w?\s?=\s?)?(?:(?:rs|usd)\b\.?|[€£¥₹])?\s*({N})"  # a number, with what may stand before it
VALUE, FIRST = re.compile(rf"{FIRST}\s*(%|°|[^\W\d]+(?:[ /][^\W\d]+)?)?\W*", re.I), re.compile(rf"{FIRST}(?!\w*\d|\s*[-+*/^×÷=x]\s*(?:[\d(.\\]|$)|\s*\\)", re.I)
SEVERAL = re.compile(rf"\W*(?:\w+\W+)?(?:or|and|to)\W+{N}|\s*,\s*{N}", re.I)
COMMA, BULLET, UNITS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))"), re.compile(r"[ \t]*(?:\d+[.)]|[-*•])[ \t]+"), re.compile(r"illion|thousand|hundred|dozen|\d(?:st|nd|rd|th)\b", re.I)
LATEX = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mathit|operatorname)\s*\{([^{}]*)\}|\\(?:left|right|quad|displaystyle)(?![a-z])|\\[()\[\],;!$ ]|~")
DEEP = re.compile(r"[^\x20-\x7e]|!|\d{13}|\^\s*\{?[^{}^]*\^|\^\s*\{?\s*-?\d{3}|[)}]\s*\^\s*\{?\s*\d\d|(?<!\\)\b[A-Za-z]{3}|"  # prose, towers, large powers: not for math-verify
                  r"\\(?!(?:[dt]?frac|sqrt|pi|times|cdot|pm|leq?|geq?|neq?|cos|sin|tan|div)(?![a-z]))")


class Read(NamedTuple):
    answer: str | None  # an option's label (its text where options have none), a number, a span, a word, or a list with single spaces; None: not parsed
    ok: bool  # whether something was parsed
    how: str  # the rule that found it: boxed, stated, whole, first, last; hedged, or "" for none


def read(text, question):
    """Return what an answer says: Read(answer, ok, how).

    >>> read("It cannot be (A). Final answer: (B)", {"kind": "choice", "question": "Who has it?", "options": ["Alice", "Bob"], "labels": ["A", "B"]})
    Read(answer='B', ok=True, how='stated')
    """
    if question["kind"] == "open":
        return Read(text.strip() or None, bool(text.strip()), "whole")
    rejected, text = set(), text.replace(question["question"].strip() or "\0", " ")  # an echo says nothing
    text = re.sub(r"(?i)\b(?:next|missing|last) word\b", "answer", text) if question["kind"] == "word" else text
    for how, part in parts(text):
        answer = {"choice": _choice, "number": _number}.get(question["kind"], _words)(part, question, how, rejected)
        if answer is not None:
            return Read(answer, True, how) if answer else Read(None, False, "hedged")
    return Read(None, False, "")


def right(answer, question):
    """Tell whether an answer, as parsed, is the gold one or one of `golds`; only as a whole."""
    form = {"span": lambda t: {*map(span, re.split(r",\s+(?:and\s+)?|\s+and\s+", t))} - {""}, "exact": listed}.get(question["kind"], str.lower)
    golds = (question["answer"], *question.get("golds", ())) if answer is not None and question["kind"] != "open" else ()
    number = lambda gold: question["kind"] == "number" or question["kind"] == "span" and value(gold) and not value(gold)[1] and not UNITS.search(answer)  # "12 yards" is 12
    return any(number(gold) and equal(answer, gold) or question["kind"] != "number" and form(answer) == form(gold) != type(form(gold))() for gold in golds)


def first_capital(text, labels):
    """Return AGIEval's official zero-shot reading: the first capital letter from A to F; None for none, or one that is no label (src/post_process.py of ruixiangcui/AGIEval)."""
    found = re.search("[A-F]", text)
    return found[0] if found and found[0] in labels else None


def parts(text):
    """Yield (how, part) of a text in the order in which it is read: what stands behind each delimiter, the last first; then all of it, once for each rule."""
    shut = False  # whether an "Answer:" stands there that says nothing: then neither beginning nor end counts
    for m in (m for key in reversed([*KEY.finditer(text.lower())]) if (m := MARK.match(text, key.start()))):
        begin = max(0, (at := m.start()) - 50, text.rfind("\n", 0, at), text.rfind(".", 0, at))
        if not IDLE.search(text, begin, at) and not NOT.search(text, begin, at):
            yield ("boxed", BOX.match(text, m.end())[0]) if m["box"] else ("stated", text[m.end():].lstrip(" \t\n:*_"))
            shut = shut or re.search(r"\w", text[m.end():]) and (text[at - 6:at].lower() == "final " or ":" in text[m.end() - 1:m.end() + 3] and "nswer" in m[0].lower())
    yield from ((how, text) for how in ("whole", "first", "last")[:1 if shut or "```python" in text or "print(" in text else 3])  # nor is code an answer


def clean(text):
    """Return a text on one line without bold, dollars and LaTeX's wrapping, with plain brackets, minus signs and fractions; case stays."""
    text = text if text.isascii() else unicodedata.normalize("NFKC", text).translate({0x2212: "-", 0x2013: "-", 0x2044: "/"})
    if "\\" in text:
        text = re.sub(r"\\[dt]?frac\{?(\d+)\}?\{?(\d+)\}?", r"\1/\2", LATEX.sub(r" \1", text.replace("\\%", "%").replace("{,}", ",")))
    return " ".join(text.replace("**", "").replace("$", "").split())


@lru_cache(1 << 14)
def names(options):
    """Return [(an option in lower case, its number)] of a tuple of options, the longest first."""
    return sorted(((clean(o).lower().strip(" .,;:!?\"'"), i) for i, o in enumerate(options)), key=lambda x: -len(x[0]))


def mentions(said, question):
    """Return ([(start, end, option)], the set of options that are rejected) of a cleaned text."""
    labels, low, found, last = question["labels"], said.lower() if said.isascii() else "".join(c.lower()[:1] for c in said), [], None
    for name, i in names(tuple(question["options"])):
        b = 0
        while name and (a := low.find(name, b)) >= 0:
            b = a + len(name)
            prose = name in ("a", "i", "no", "none", "one", "all", "not") and re.match(r" \w", low[b:b + 2]) and not STOPS.match(low, b)  # words of prose
            apart = not BEFORE[not name[0].isalpha()].search(low, max(0, a - 3), a) and not AFTER[not name[-1].isalpha()].match(low, b)
            if apart and not prose and not any(a < f[1] and f[0] < b for f in found):
                found.append((a, b, i))
    for m in re.finditer(r"\b[A-Za-z0-9]\b", said) if labels else ():
        (a, b), letter = m.span(), m[0].upper()
        if letter in labels and not any(a < f[1] and f[0] < b for f in found):
            i, sure = labels.index(letter), BOUND.search(said, max(0, a - 8), a)
            ends = STOPS.match(said, b) or said[b] == " " and m[0] in labels and letter not in "AI" or any(0 <= f[0] - b < 3 and f[2] == i for f in found)
            if sure or ends and said[max(0, a - 1):a] not in tuple("$\\'’.,^-") and (LEAD.fullmatch(said, 0, a) or said[:a].endswith((" is ", " be ", " No, ", " wait, ")) or last and JOIN.fullmatch(said, last, a)):
                found.append((a, last := b, i))
    wrong = lambda b: (m := WRONG.match(said, b)) and not any(f[0] < m.end() <= f[1] for f in found)  # but "False is False" rejects nothing
    rejected = {i for a, b, i in found if NOT.search(said, max(0, a - 50), a) or wrong(b)}
    return sorted(f for f in found if f[2] not in rejected), rejected


def pick(said, question, how, rejected):
    """Return the number of the option that a cleaned part of an answer says by one rule, None, or -1 where it hedges; what it rejects is added to `rejected`."""
    found, no = mentions(said, question)
    rejected |= no
    if not found:
        math = how not in ("first", "last") and not no and re.search(r"[\d\\^=<>+√π]", said)
        same = [i for i, o in enumerate(question["options"]) if math and equal(END.split(said, 1)[0], o)]
        said = how in ("stated", "boxed") and re.fullmatch(r"(?:the )?([a-z]{3,}(?: [a-z]+){0,3})\W*", said.lower())  # "the owl" of "The owl is the leftmost"
        same = same or [i for i, o in enumerate(question["options"]) if said and re.match(rf"(?:the )?{said[1]}\b", o.lower())]
        return same[0] if len(same) == 1 else None
    (start, stop, first), end = found[0], END.search(said, found[0][1])
    one = len({f[2] for f in found}) == 1
    fits = {"last": one, "whole": one and LEAD.fullmatch(said[:start] + said[found[-1][1]:]),
            "first": HEAD.fullmatch(said, 0, start) and (STOPS.match(said, stop) or said[:start].endswith(("(", "[")))}
    if not fits.get(how, True):
        return None
    found = [f for f in found if not end or f[0] < end.start()]
    titled = lambda a, b: a[1] - a[0] == 1 < b[1] - b[0] and not re.search(r"\w", said[a[1]:b[0]])  # "(C) 12/25/1937": a label counts before the text behind it
    joined = any(a[2] == first != b[2] and JOIN.fullmatch(said, a[1], b[0]) and not titled(a, b) for a, b in zip(found, found[1:]))
    return -1 if joined or len({f[2] for f in found}) > 1 and not LEAD.fullmatch(said, 0, start) else first


def _choice(part, question, how, rejected):
    """Return the option that a part of an answer says by one rule, "" where it hedges, None where it says none; so do the next two."""
    labels, most = question["labels"], 80 + max(map(len, question["options"]))
    lines = [x for x in part.split("\n") if re.search(r"\w", x)] or [""] if how in ("first", "last") else [part if how == "whole" else part.partition("\n")[0]]
    if how == "first":  # the options repeated say nothing
        heads = [pick(clean(x[:most]), question, how, rejected) for x in dict.fromkeys(lines[:2] + lines[-2:])]
        i = -1 if len({*heads} - {None}) > 1 or labels and all(f"({x})" in part for x in labels) else heads[0]
    else:
        said = END.split(lines[-1])[-1] if how == "last" else lines[0]
        said = clean(said[:800]) if how in ("whole", "last") else END.split(clean(said[:800]), 1)[0]
        i = pick(said, question, how, rejected) if how != "whole" or len(part) < most else None
    row = i is not None and how in ("first", "last") and len({pick(x, question, "first", set()) for x in END.split(clean(part[:800]))} - {None}) > 2  # three are affirmed
    return None if i is None or i in rejected else "" if i == -1 or row else (labels or question["options"])[i]


def _number(part, question, how, rejected):
    if how == "first" or how == "whole" and (len(part) > 80 or "\n" in part.strip()):
        return None
    line = part.strip().rpartition("\n")[2][-500:] if how == "last" else ""
    last = END.split(clean(line))[-1] if "=" in line or re.search(r"[.!]\W*$", line[-9:]) and re.search("[A-Za-z]", line) else ""
    said = COMMA.sub("", clean(part) if how == "whole" else last if how == "last" else END.split(clean(part.partition("\n")[0][:300]), 1)[0])
    said = re.sub(rf"(?:\bnot|than|instead of|n['’]t)\s(?:be\s)?{N}", "", said)
    many = re.findall(rf"(?<![\d.]){N}", said) if not re.search(r"[\\^]", said) else [said] if formula(said) is not None else []
    found = FIRST.match(said) if how not in ("whole", "last") or len(many) == 1 else None
    found = found or "=" in said and FIRST.match(said.rpartition("=")[2])
    return "" if found and SEVERAL.match(found.string, found.end()) else found[1] if found else many[0] if len(many) == 1 else None


def _words(part, question, how, rejected):
    kind, lines = question["kind"], [clean(x) for x in part.strip().split("\n")]
    if how in ("first", "last") or how == "whole" and kind != "exact" and len(part.split()) > 10:
        return None
    if kind == "exact":  # on one line, or an item a line; without a delimiter, of the question's own words
        items = all(BULLET.match(x) or " " not in x for x in lines)
        echo, _, said = ("", "", " ".join(BULLET.sub("", x) for x in lines)) if items else END.split(lines[0], 1)[0].rpartition(":")
        fits = how != "whole" or {*listed(said)} <= {*listed(question["question"]), *"()[]{}<>"} and (not echo or echo not in question["question"])
        return " ".join(listed(said)) or None if fits else None
    said = re.sub(r"^[^\w$€£¥.-]+|[^\w%)]+$", "", END.split(lines[0], 1)[0])
    return said or None if kind == "span" else (re.findall(r"\w[\w'’-]*", said) or [None])[0]


@lru_cache(1 << 14)
def value(text):
    """Return (number, unit) of a text that is a number and no more, else None."""
    return (found := VALUE.fullmatch(COMMA.sub("", clean(text[:100])))) and (sum(map(Fraction, found[1].lstrip("+-").split())) * (-1 if found[1][0] == "-" else 1), (found[2] or "").lower())


@lru_cache(1 << 14)
def formula(text):
    """Return what math-verify reads in a formula; None for none, or for one that might take it long: its alarms ring in the main thread alone, so the work is bounded instead."""
    text = re.sub(r"√\s*(\w+|\([^()]*\))", r"\\sqrt{\1}", clean(text)).replace("π", "\\pi ").strip(" .")
    if len(text) > 60 or not re.search(r"[\d\\^=<>+]", text) or DEEP.search(text) or len({*re.findall(r"(?<![\\a-z])[a-zA-Z]", text)}) > 5:
        return None
    import math_verify
    math_verify.parser.TIMEOUT_WARNING_SHOWN = math_verify.grader.TIMEOUT_WARNING_SHOWN = True
    return (math_verify.parse(f"${text}$", [math_verify.LatexExtractionConfig()], "no_fallback", parsing_timeout=None) or [None])[0]


@lru_cache(1 << 14)
def equal(a, b):
    """Tell whether two texts have one value: as numbers (a unit that only one of them has does not count), letter for letter, or as formulas, by math-verify."""
    x, y = value(a), value(b)
    if x and y:
        return x[0] == y[0] and (x[1] == y[1] or not x[1] or not y[1])
    x, y = (clean(t).replace(" ", "").strip(".").lower() for t in (a, b))
    if x == y or formula(a) is None or formula(b) is None:
        return x == y
    import math_verify
    return math_verify.verify(formula(b), formula(a), timeout_seconds=None)


def span(text):
    """Return a span without articles, punctuation and case, numbers as numbers: DROP's official script, in idea."""
    some = (re.sub(r"[^\w.]|(?<!\d)\.(?!\d)|(?<=\w)\.(?!\d)", "", w) for w in re.split(r"[\s-]+", COMMA.sub("", clean(text).lower())))
    return " ".join(str(float(w)) if re.fullmatch(r"\d{0,15}\.?\d{1,15}", w) else w for w in some if w not in ("", "a", "an", "the"))


def listed(text):
    """Return the items of a list: words in lower case, or brackets where it has none."""
    return re.findall(r"\w(?:[^\s,]*\w)?", re.sub(r",\s*and\s", ", ", text.lower())) or re.findall(r"[()\[\]{}<>]", text)
