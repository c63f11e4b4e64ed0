"""Calls that a row's sampler draws, and the row's reference held against its function."""

import numpy as np

import tensorlib
from tensorlib.registry import FUNCTIONS, OPS
from tensorlib.testing.sampler import seeded


def calls(name, count, dtype="f64", **options):
    """`count` calls (args, kwargs) of row `name`."""
    for seed in range(count):
        args, kwargs = OPS[name].domain(seeded(seed, dtype, **{"smooth": True, **options}), dtype)
        yield tuple(args), dict(kwargs)


def tensors(args):
    return [tensorlib.from_numpy(a) if isinstance(a, np.ndarray) else a for a in args]


def check_values(name, args, kwargs, tolerance=1e-10):
    """The op in f64 agrees with the row's reference to `tolerance` of the largest element."""
    found = FUNCTIONS[name](*tensors(args), **kwargs)
    wanted = OPS[name].ref(np, *args, **kwargs)
    pairs = zip(found, wanted, strict=True) if isinstance(wanted, tuple) else [(found, wanted)]
    for got, want in pairs:
        want = np.asarray(want)
        assert got.shape == want.shape, (args, kwargs)
        scale = np.abs(want[np.isfinite(want)]).max(initial=1.0) if want.dtype.kind == "f" else 1.0
        np.testing.assert_allclose(got.numpy(), want, rtol=0, atol=tolerance * scale, err_msg=f"{name} {kwargs}")
