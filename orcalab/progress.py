"""Progress with time left: a bar in a terminal or a notebook, plain lines where nobody watches.

`orcalab run` sets ORCALAB_PROGRESS to a file; the notebook's long work writes its state there, so that the command in the terminal can show what happens inside.
"""

import json
import os
import sys
import time
from contextlib import AbstractContextManager
from pathlib import Path


def clock(seconds):
    """Format seconds as m:ss.

    >>> clock(75.2)
    '1:15'
    """
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


class Progress(AbstractContextManager):
    """Count `total` units of work named `what`; `note` is free text such as tokens/s.

    Headless (no terminal, no notebook front end), prints a line at the start, then at most one every `every` seconds, and one at the end.
    """

    def __init__(self, total, what, every=15.0):
        self.total, self.what, self.every = total, what, every
        self.done, self.before, self.begun, self.last, self.note = 0, 0, time.time(), 0.0, ""
        self.file = os.environ.get("ORCALAB_PROGRESS")
        watched = bool(what) and (sys.stdout.isatty() or ("ipykernel" in sys.modules and not self.file))
        self.bar = None
        if watched:
            from tqdm import tqdm
            self.bar = tqdm(total=total, desc=what, file=sys.stdout, mininterval=0.5, dynamic_ncols=True)

    def __exit__(self, *error):
        if self.bar is not None:
            self.bar.close()
        elif error[0] is None and self.what:
            self._line(final=True)

    def advance(self, units=1, note=""):
        """Say that `units` more are done."""
        self.done, self.note = self.done + units, note or self.note
        if self.bar is not None:
            self.bar.set_postfix_str(self.note, refresh=False)
            self.bar.update(units)
        elif self.what and time.time() - self.last >= self.every:
            self._line()
        if self.file and self.what:
            state = {"what": self.what, "done": self.done, "total": self.total, "left": self.left, "note": self.note}
            Path(self.file).write_text(json.dumps(state), encoding="utf-8")

    def resume(self, done):
        """Start from `done` units that an earlier run finished."""
        self.done = self.before = done
        if self.bar is not None:
            self.bar.update(done)

    @property
    def left(self):
        """Seconds left at the pace so far; 0 before there is one."""
        new = self.done - self.before
        return (time.time() - self.begun) / new * (self.total - self.done) if new else 0.0

    def _line(self, final=False):
        self.last = time.time()
        when = f"took {clock(self.last - self.begun)}" if final else f"{clock(self.left)} left"
        print(f"{self.what}: {self.done}/{self.total}, {when}{', ' + self.note if self.note else ''}", flush=True)
