"""What a loop shows while it runs: one line in a terminal, a live curve in a notebook, CSV to keep."""

import csv
import time

from tensorlib.bar import notebook, seen, tqdm

WIDTH, HEIGHT = 480, 160  # of the curve, pixels


class Progress:
    """Iterates over `steps` (an iterable, or a number) and shows `log(loss=..., lr=...)` beside the bar.

    In a terminal one line on standard error, nothing where it is no terminal; in a notebook a bar, and under it the
    curve of the first value. `history` keeps (step, values), `save(path)` writes them as CSV.

    >>> progress = Progress(3, show=False)
    >>> for step in progress:
    ...     progress.log(loss=1.0 / (step + 1))
    >>> [round(values["loss"], 2) for _, values in progress.history]
    [1.0, 0.5, 0.33]
    """

    def __init__(self, steps, first=0, label="training", show=None, every=0.2):
        self._steps = range(first, steps) if isinstance(steps, int) else steps
        total = steps if isinstance(steps, int) else getattr(steps, "__len__", lambda: None)()
        hidden = not seen() if show is None else not show
        self._bar = tqdm()(total=total, initial=first, desc=label, disable=hidden, leave=True)
        self._display, self._every, self._drawn = None, every, 0.0
        self._hidden, self._step, self.history = hidden, first, []

    def __iter__(self):
        try:
            for item in self._steps:
                yield item
                self._step += 1
                self._bar.update()
        finally:
            self._draw(last=True)
            self._bar.close()

    def log(self, **values):
        """Keeps the values of this step, and shows them."""
        values = {name: float(value) for name, value in values.items()}
        self.history.append((self._step, values))
        now = time.perf_counter()
        if not self._hidden and now - self._drawn >= self._every:
            self._drawn = now
            self._bar.set_postfix_str(", ".join(f"{name} {value:.4g}" for name, value in values.items()))
            self._draw()

    def save(self, path):
        """Writes the history as CSV: a column for the step and one per name."""
        names = list(dict.fromkeys(name for _, values in self.history for name in values))
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["step", *names])
            writer.writerows([step, *(values.get(name, "") for name in names)] for step, values in self.history)

    def _draw(self, last=False):
        if self._hidden or not notebook() or len(self.history) < 2:
            return
        from IPython.display import HTML, display

        name = next(iter(self.history[-1][1]))
        shown = HTML(curve([(s, v[name]) for s, v in self.history if name in v], name))
        if self._display is None:
            self._display = display(shown, display_id=True)
        elif self._display is not None:
            self._display.update(shown)

    def _repr_html_(self):
        names = dict.fromkeys(name for _, values in self.history for name in values)
        return "".join(curve([(s, v[n]) for s, v in self.history if n in v], n) for n in names)


def curve(points, name):
    """An SVG of (step, value) points: at most 400 of them, means of neighbours; what is no number is left out.

    >>> curve([(0, 2.0), (1, 1.0)], "loss").startswith("<svg")
    True
    """
    points = [(s, v) for s, v in points if v - v == 0]
    if not points:
        return f"<p>{name}: no numbers yet</p>"
    size = -(-len(points) // 400)
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    points = [(g[-1][0], sum(v for _, v in g) / len(g)) for g in groups]
    (x0, x1), (y0, y1) = ((min(c), max(c)) for c in zip(*points))
    sx, sy = (WIDTH - 60) / ((x1 - x0) or 1), (HEIGHT - 30) / ((y1 - y0) or 1)
    line = " ".join(f"{50 + (x - x0) * sx:.1f},{HEIGHT - 20 - (y - y0) * sy:.1f}" for x, y in points)
    texts = ((2, 14, f"{y1:.4g}"), (2, HEIGHT - 22, f"{y0:.4g}"), (50, HEIGHT - 4, f"{x0}"))
    texts += ((WIDTH - 60, HEIGHT - 4, f"step {x1}"), (WIDTH // 2 - 40, 14, f"{name} {points[-1][1]:.4g}"))
    labels = "".join(f'<text x="{x}" y="{y}" font-size="12" fill="currentColor">{t}</text>' for x, y, t in texts)
    path = f'<polyline points="{line}" fill="none" stroke="#1f77b4" stroke-width="1.5"/>'
    return f'<svg width="{WIDTH}" height="{HEIGHT}" xmlns="http://www.w3.org/2000/svg">{path}{labels}</svg>'
