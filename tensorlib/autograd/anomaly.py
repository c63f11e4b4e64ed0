"""Where a NaN comes from: `with tensorlib.autograd.detect_anomaly():` names the op that gave the first one.

Each result and each gradient is looked at, so it is slow: several times the time of small ops.

>>> import tensorlib
>>> x = tensorlib.zeros(2, requires_grad=True)
>>> with detect_anomaly():
...     (x / x).sum().backward()
Traceback (most recent call last):
tensorlib.errors.AnomalyError: div: got 2 NaN of 2 elements, shape (2,), dtype f32; expected numbers; look at what ...
"""

from tensorlib import tape
from tensorlib.errors import AnomalyError
from tensorlib.ops import elementwise, exchange, reduce


class detect_anomaly:
    """Context manager: AnomalyError at the first NaN in a recorded op's result or gradient; with `infinite`, at the
    first infinity too.
    """

    def __init__(self, infinite=False):
        self.infinite, self._before = infinite, []

    def __enter__(self):
        self._before.append(tape.mode.watching)
        tape.mode.watching = self._watch
        return self

    def __exit__(self, *error):
        tape.mode.watching = self._before.pop()

    def _watch(self, where, out):
        """Raises if a tensor of `out` holds what is no number."""
        for x in out if isinstance(out, (tuple, list)) else (out,):
            if not tape.is_array(x) or x.dtype.kind != "f" or not x.numel():
                continue
            count = self._count(x)
            if count:
                kind = "NaN or infinities" if self.infinite else "NaN"
                got = f"{count} {kind} of {x.numel()} elements, shape {x.shape}, dtype {x.dtype}"
                fix = "look at what it was given: a division by 0, a logarithm of 0, a learning rate too large"
                raise AnomalyError(where, got, "numbers", fix)

    def _count(self, x):
        watching, recording = tape.mode.watching, tape.mode.recording
        tape.mode.watching, tape.mode.recording = None, False
        try:
            bad = elementwise.logical_not(elementwise.isfinite(x)) if self.infinite else elementwise.isnan(x)
            return exchange.item(reduce.sum(bad))
        finally:
            tape.mode.watching, tape.mode.recording = watching, recording
