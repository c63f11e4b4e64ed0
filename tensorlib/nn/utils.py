"""What training does to gradients and weights between the layers: torch.nn.utils' names.

>>> import tensorlib
>>> from tensorlib import nn
>>> w = tensorlib.ones(4, requires_grad=True)
>>> (w * 3).sum().backward()
>>> nn.utils.clip_grad_norm_([w], max_norm=1.0), w.grad.round(decimals=3).tolist()
(6.0, [0.5, 0.5, 0.5, 0.5])
"""

from math import isfinite

from tensorlib.autograd import no_grad
from tensorlib.device import Array
from tensorlib.errors import AnomalyError, ShapeError
from tensorlib.nn import parametrizations
from tensorlib.nn.parametrizations import SpectralNorm, WeightNorm
from tensorlib.ops import movement


def _gradients(parameters):
    parameters = [parameters] if isinstance(parameters, Array) else list(parameters)
    return [p for p in parameters if p.grad is not None]


@no_grad()
def get_total_norm(tensors, norm_type=2.0):
    """The norm of all elements together, as a number; infinite or NaN if one is."""
    tensors = [x if x.dtype.name == "f64" else x.float() for x in tensors]
    if not tensors:
        return 0.0
    norms = movement.stack([x.norm(norm_type).double() for x in tensors])  # one number to wait for
    return norms.norm(norm_type).item()


@no_grad()
def clip_grad_norm_(parameters, max_norm, norm_type=2.0, error_if_nonfinite=False):
    """Scales all gradients so that their norm together is at most `max_norm`; returns the norm before, a number.

    AnomalyError for a norm that is no number, if `error_if_nonfinite`.
    """
    found = _gradients(parameters)
    total = get_total_norm([p.grad for p in found], norm_type)
    if error_if_nonfinite and not isfinite(total):
        fix = "find the op with autograd.detect_anomaly()"
        raise AnomalyError("clip_grad_norm_", f"gradients of norm {total}", "numbers", fix)
    clip = max_norm / (total + 1e-6)
    if not clip >= 1.0:
        for p in found:
            p.grad = p.grad.detach() * clip
    return total


@no_grad()
def clip_grad_value_(parameters, clip_value):
    """Clamps every element of the gradients to [-clip_value, clip_value]."""
    for p in _gradients(parameters):
        p.grad = p.grad.detach().clamp(-clip_value, clip_value)


def parameters_to_vector(parameters):
    """All elements of the parameters, one behind the other."""
    return movement.cat([p.flatten() for p in parameters])


@no_grad()
def vector_to_parameters(vec, parameters):
    """Writes the elements of `vec` into the parameters, in order. ShapeError for another number of elements."""
    parameters = list(parameters)
    total = sum(p.numel() for p in parameters)
    if vec.ndim != 1 or vec.numel() != total:
        raise ShapeError("vector_to_parameters", f"shape {vec.shape}", f"({total},)", "give parameters_to_vector's")
    at = 0
    for p in parameters:
        p.copy_(vec[at : at + p.numel()].reshape(p.shape))
        at += p.numel()


def weight_norm(module, name="weight", dim=0):
    """`parametrizations.weight_norm` with the weights NAME_g and NAME_v."""
    return parametrizations.attach(module, name, WeightNorm(f"{name}_g", f"{name}_v", dim))


def remove_weight_norm(module, name="weight"):
    """The weight as it is now, as one of its own again; the module. ShapeError if it is not computed by that."""
    return parametrizations.detach(module, name, WeightNorm)


def spectral_norm(module, name="weight", n_power_iterations=1, eps=1e-12, dim=None):
    """`parametrizations.spectral_norm` of a weight NAME_orig, buffers NAME_u and NAME_v; no iteration now."""
    paths = (f"{name}_orig", f"{name}_u", f"{name}_v")
    return parametrizations.attach(module, name, SpectralNorm(*paths, n_power_iterations, eps, dim, u_first=False))


def remove_spectral_norm(module, name="weight"):
    """The weight as it is now, as one of its own again; the module. ShapeError if it is not computed by that."""
    return parametrizations.detach(module, name, SpectralNorm)
