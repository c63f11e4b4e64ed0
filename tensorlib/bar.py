"""A bar for what takes a while: in terminals and notebooks; nothing where nobody looks on."""

import sys
import time

DELAY = 0.5  # seconds: what is done sooner needs no bar, nor what draws it to be imported


def notebook():
    """Whether this runs in a Jupyter kernel; IPython is not imported to know it."""
    get = getattr(sys.modules.get("IPython"), "get_ipython", None)
    shell = get() if get is not None else None
    return "IPKernelApp" in getattr(shell, "config", ())


def seen():
    """Whether somebody looks on: standard error is a terminal, or goes to a notebook."""
    return sys.stderr is not None and (sys.stderr.isatty() or notebook())


def tqdm():
    """tqdm's class for where this runs. Its own choice, `tqdm.auto`, warns in notebooks without ipywidgets."""
    from importlib.util import find_spec

    if notebook() and find_spec("ipywidgets"):
        from tqdm.notebook import tqdm
    else:
        from tqdm import tqdm
    return tqdm


class Line:
    """A line on standard error, where somebody looks on, that gives way to the next one. Spaces wipe it: a notebook
    knows no terminal's codes.
    """

    MOST = 79  # letters: what is wrapped is not wiped

    def __init__(self):
        self._width = 0

    def show(self, text):
        """Shows `text` instead of what stands there."""
        if seen():
            text = text[: self.MOST]
            print(f"\r{text:{self._width}}" if self._width else text, end="", file=sys.stderr, flush=True)
            self._width = len(text)

    def clear(self):
        """Shows nothing."""
        if self._width:
            print(f"\r{'':{self._width}}\r", end="", file=sys.stderr, flush=True)
            self._width = 0


class Bar:
    """`add(n)` of `total`, drawn on standard error by tqdm once DELAY seconds have passed. `options` are tqdm's.

    >>> with Bar("loading", 2) as bar:
    ...     bar.add(1)
    >>> bar.done
    1
    """

    def __init__(self, label, total, delay=None, **options):
        self.done, self._total, self._options, self._bar = 0, total, {"desc": label, **options}, None
        self._from = time.perf_counter() + (DELAY if delay is None else delay) if seen() else float("inf")

    def add(self, n):
        """So much more is done."""
        self.done += n
        if self._bar is not None:
            self._bar.update(n)
        elif time.perf_counter() >= self._from:
            self._bar = tqdm()(total=self._total, initial=self.done, leave=False, file=sys.stderr, **self._options)

    def note(self, text):
        """What stands behind the bar."""
        if self._bar is not None:
            self._bar.set_postfix_str(text, refresh=False)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self._bar is not None:
            self._bar.close()
