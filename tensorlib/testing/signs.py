"""Eigenvectors and singular vectors, whose signs mathematics leaves free: LAPACK's on the CPU, others on GPUs."""

import numpy as np

VECTORS = {"eigh": (1,), "svd": (0, 2)}  # results that hold them, in columns; those of svd's last are rows


def aligned(name, found, want):
    """Results of a row, NumPy arrays, each vector (of a pair: the first) with the sign that it has in `want`.

    >>> import numpy as np
    >>> aligned("eigh", [np.array([2.0]), np.array([[-1.0]])], [np.array([2.0]), np.array([[1.0]])])[1].tolist()
    [[1.0]]
    """
    if name not in VECTORS:
        return found
    first = VECTORS[name][0]
    return turned(name, found, np.sum(np.asarray(found[first]) * want[first], -2))


def canonical(name, results):
    """Results of a row, Tensors, each vector with the sign that makes its product with a fixed one positive: what is
    computed from them does not depend on the signs, nor do its gradients.
    """
    if name not in VECTORS:
        return results
    vectors = results[VECTORS[name][0]].detach().cpu().numpy()
    fixed = np.random.default_rng(7).normal(size=(vectors.shape[-2], 1))
    return turned(name, results, np.sum(vectors * fixed, -2))


def turned(name, results, products):
    """The vectors times the signs of `products` (..., k)."""
    from tensorlib.tensor import from_numpy

    results, signs = list(results), np.where(products < 0, -1.0, 1.0)[..., None, :]
    for place in VECTORS[name]:
        x, s = results[place], signs.astype(np.float32) if place < 2 else signs.astype(np.float32).swapaxes(-1, -2)
        results[place] = x * (s if isinstance(x, np.ndarray) else from_numpy(s.copy()).to(x.dtype).to(x.device))
    return results
