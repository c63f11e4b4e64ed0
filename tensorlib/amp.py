"""Mixed precision: `autocast` (products in bf16 or f16, weights and sums in f32) and `GradScaler` (for f16).

>>> import tensorlib
>>> from tensorlib import amp, nn
>>> model, x = nn.Linear(4, 2), tensorlib.ones(3, 4)
>>> with amp.autocast(dtype="bf16"):
...     y = model(x)
>>> y.dtype, tensorlib.mse_loss(y, tensorlib.zeros(3, 2)).dtype, model.weight.dtype
(bf16, f32, f32)
"""

import math

from tensorlib import dtype as _dtype
from tensorlib import tape
from tensorlib.autograd import no_grad
from tensorlib.device import Array
from tensorlib.errors import DTypeError
from tensorlib.ops import elementwise

# ops that are products of many terms: their operands are cast down
LOW = frozenset(
    "matmul linear conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d attention"
    " scaled_dot_product_attention".split()
)
ON_GPUS = frozenset({"attention"})  # of these; its kernels for CPUs take queries of f32
# ops whose results need the range or the digits of f32
HIGH = frozenset(
    "exp expm1 log log2 log10 log1p pow sum prod mean cumsum cumprod softmax log_softmax logsumexp norm vector_norm"
    " cross_entropy_rows nll_loss cosine_similarity erfinv softplus".split()
)


class autocast:
    """Context manager and decorator: within it, products take `dtype` (bf16 or f16), and ops that would lose by it f32.

    Only floats of f32, bf16 and f16 are cast. Gradients arrive in the dtype of what was cast. Weights stay as they are,
    f32, so optimisers see all their digits. DTypeError for other dtypes.
    """

    def __init__(self, device_type=None, dtype="bf16", enabled=True):
        self.dtype, self.enabled, self._before = _dtype.get(dtype), enabled, []
        if self.dtype.name not in ("bf16", "f16"):
            raise DTypeError("autocast", f"dtype {self.dtype}", "bf16 or f16", "use Module.to(dtype) for others")

    def __enter__(self):
        self._before.append(tape.mode.casting)
        tape.mode.casting = self._cast if self.enabled else None
        tape.used = True  # so that ops ask
        return self

    def __exit__(self, *error):
        tape.mode.casting = self._before.pop()

    def __call__(self, function):
        def wrapped(*args, **kwargs):
            with type(self)(dtype=self.dtype, enabled=self.enabled):
                return function(*args, **kwargs)

        return wrapped

    def _cast(self, op, args, kwargs):
        """The arguments of an op in the dtype that it is to compute in."""
        name = op.name.strip("_")
        wanted = self.dtype if name in LOW else _dtype.f32 if name in HIGH else None
        if name in ON_GPUS and args[0].device.type == "cpu":
            wanted = _dtype.f32
        if wanted is None or kwargs.get("out") is not None:
            return args, kwargs
        return [_in(x, wanted) for x in args], {key: _in(x, wanted) for key, x in kwargs.items()}


def _in(x, dtype):
    if isinstance(x, Array) and x.dtype is not dtype and x.dtype.name in ("f32", "bf16", "f16"):
        return elementwise.cast(x, dtype)
    return x


class GradScaler:
    """Keeps gradients of f16 out of its underflow: losses times a scale, gradients divided by it, steps with infinite
    ones left out, the scale halved then, and doubled after `growth_interval` good steps (torch.amp.GradScaler's names).
    """

    def __init__(self, init_scale=65536.0, growth_factor=2.0, backoff_factor=0.5, growth_interval=2000, enabled=True):
        self._scale, self.growth_factor, self.backoff_factor = float(init_scale), growth_factor, backoff_factor
        self.growth_interval, self.enabled = growth_interval, enabled
        self._good, self._found, self._unscaled = 0, False, False

    def get_scale(self):
        """The scale now."""
        return self._scale if self.enabled else 1.0

    def scale(self, loss):
        """The loss to call backward on."""
        return loss * self._scale if self.enabled else loss

    @no_grad()
    def unscale_(self, optimizer):
        """Divides the gradients by the scale, for clipping them before `step`."""
        if self.enabled and not self._unscaled:
            self._unscaled = True
            for group in optimizer.param_groups:
                for p in group["params"]:
                    if p.grad is not None:
                        p.grad = p.grad * (1.0 / self._scale)

    @no_grad()
    def step(self, optimizer):
        """optimizer.step() with unscaled gradients, unless one of them is no number; returns whether it was done."""
        if not self.enabled:
            optimizer.step()
            return True
        grads = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        self._found = any(not math.isfinite(g.abs().amax().item()) for g in grads if g.numel())
        if not self._found:
            optimizer.step(scale=1.0 if self._unscaled else 1.0 / self._scale)
        return not self._found

    def update(self):
        """After a step: the scale for the next."""
        self._unscaled = False
        if not self.enabled:
            return
        if self._found:
            self._scale, self._good = self._scale * self.backoff_factor, 0
        else:
            self._good += 1
            if self._good == self.growth_interval:
                self._scale, self._good = self._scale * self.growth_factor, 0

    def state_dict(self):
        """All there is to resume from."""
        return {"scale": self._scale, "good": self._good}

    def load_state_dict(self, state):
        """Goes on from what `state_dict` gave."""
        self._scale, self._good = float(state["scale"]), int(state["good"])
