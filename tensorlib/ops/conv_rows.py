"""What the rows of the convolutions say beside the kernels: NumPy references, samplers and gradients.

With x the input, w the weight and g the gradient of the result, dx is the transposed convolution of g with w. dw is a
convolution of x with g where batch and channels change places, and stride and dilation too: dw[o, c, k] = sum over n, p
of g[n, o, p] x[n, c, p stride - padding + k dilation]. In one and two dims the channels c become one more spatial dim,
so that all of dw is one output row. For a transposed convolution x and g change places. All are public ops: gradients
of any order follow.
"""

from tensorlib.ops import conv_weight, create, movement, reduce
from tensorlib.registry import FUNCTIONS


def _each(value, dims):
    """One value per dim."""
    found = (value,) * dims if isinstance(value, int) else tuple(value)
    return found * dims if len(found) == 1 else found


def _paddings(padding, kernel, dilation):
    """(before, after) per dim."""
    if not isinstance(padding, str):
        return [(p, p) for p in _each(padding, len(kernel))]
    total = [d * (k - 1) if padding == "same" else 0 for d, k in zip(dilation, kernel)]
    return [(t // 2, t - t // 2) for t in total]


# ---- references ------------------------------------------------------------------------------------------------------


def _steps(taps, size, stride, dilation):
    """Per dim, where in the padded input a tap meets the outputs."""
    return tuple(slice(t * d, t * d + s * (n - 1) + 1, s) for t, n, s, d in zip(taps, size, stride, dilation))


def _conv_ref(np, input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    dims, kernel = weight.ndim - 2, weight.shape[2:]
    x = input.reshape(-1, *input.shape[-dims - 1 :])
    stride, dilation = _each(stride, dims), _each(dilation, dims)
    x = np.pad(x, ((0, 0), (0, 0), *_paddings(padding, kernel, dilation)))
    size = [(n - d * (k - 1) - 1) // s + 1 for n, k, s, d in zip(x.shape[2:], kernel, stride, dilation)]
    x = x.reshape(len(x), groups, -1, *x.shape[2:])
    w = weight.reshape(groups, -1, *weight.shape[1:])
    out = np.zeros((len(x), groups, w.shape[1], *size))
    for taps in np.ndindex(*kernel):
        part = x[(..., *_steps(taps, size, stride, dilation))]
        out += np.einsum("ngc...,goc->ngo...", part, w[(..., *taps)])
    return _finished(out, bias, input, dims)


def _transpose_ref(np, input, weight, bias=None, stride=1, padding=0, output_padding=0, groups=1, dilation=1):
    dims, kernel = weight.ndim - 2, weight.shape[2:]
    x = input.reshape(-1, groups, input.shape[-dims - 1] // groups, *input.shape[-dims:])
    stride, dilation, size = _each(stride, dims), _each(dilation, dims), x.shape[3:]
    w = weight.reshape(groups, -1, *weight.shape[1:])
    extra = _each(output_padding, dims)
    whole = [(n - 1) * s + d * (k - 1) + 1 + e for n, s, d, k, e in zip(size, stride, dilation, kernel, extra)]
    out = np.zeros((len(x), groups, w.shape[2], *whole))
    for taps in np.ndindex(*kernel):
        out[(..., *_steps(taps, size, stride, dilation))] += np.einsum("ngc...,gco->ngo...", x, w[(..., *taps)])
    inside = tuple(slice(p, n - p) for p, n in zip(_each(padding, dims), whole))
    return _finished(out[(..., *inside)], bias, input, dims)


def _finished(out, bias, input, dims):
    out = out.reshape(len(out), -1, *out.shape[3:])
    if bias is not None:
        out = out + bias.reshape(-1, *(1,) * dims)
    return out if input.ndim == dims + 2 else out[0]


# ---- samplers --------------------------------------------------------------------------------------------------------


def _operands(s, dims, channels, weight, outputs, size):
    batch = () if s.boolean() else (s.integer(1, 3),)
    arrays = [s.array((*batch, channels, *size), low=-2, high=2), s.array(weight, low=-2, high=2)]
    return [*arrays, s.array((outputs,), low=-2, high=2)] if s.boolean() else arrays


def _draw(s, dims):
    """(kernel, stride, dilation, groups, input and output channels per group)"""
    kernel, stride, dilation = (tuple(s.integer(1, most) for _ in range(dims)) for most in (3, 3, 2))
    return kernel, stride, dilation, s.pick((1, 1, 2, 3)), s.integer(1, 3), s.integer(1, 3)


def _conv_domain(dims):
    def domain(s, dtype):
        kernel, stride, dilation, groups, c, o = _draw(s, dims)
        padding = s.pick(("same", "valid", 0, 1, tuple(s.integer(0, 2) for _ in range(dims))))
        stride = (1,) * dims if padding == "same" else stride
        pads, reach = _paddings(padding, kernel, dilation), [d * (k - 1) + 1 for d, k in zip(dilation, kernel)]
        size = [max(1, r - sum(p)) + s.integer(0, 3) for r, p in zip(reach, pads)]
        args = _operands(s, dims, groups * c, (groups * o, c, *kernel), groups * o, size)
        return args, {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}

    return domain


def _transpose_domain(dims):
    def domain(s, dtype):
        kernel, stride, dilation, groups, c, o = _draw(s, dims)
        extra = tuple(s.integer(0, max(a, b) - 1) for a, b in zip(stride, dilation))
        size = [s.integer(1, 4) for _ in range(dims)]
        whole = [(n - 1) * t + d * (k - 1) + e for n, t, d, k, e in zip(size, stride, dilation, kernel, extra)]
        padding = tuple(s.integer(0, min(2, n // 2)) for n in whole)
        args = _operands(s, dims, groups * c, (groups * c, o, *kernel), groups * o, size)
        fields = {"stride": stride, "padding": padding, "output_padding": extra}
        return args, {**fields, "groups": groups, "dilation": dilation}

    return domain


# ---- gradients -------------------------------------------------------------------------------------------------------


def _cropped(x, size):
    """The first `size` elements of the last dims."""
    for d, n in enumerate(size, x.ndim - len(size)):
        x = movement.narrow(x, d, 0, n) if x.shape[d] != n else x
    return x


def _extended(x, pads):
    """x with a zero behind every dim whose padding is one more there."""
    for d, (before, after) in enumerate(pads, x.ndim - len(pads)):
        if after > before:
            shape = (*x.shape[:d], after - before, *x.shape[d + 1 :])
            x = movement.cat([x, create.zeros(type(x), shape, dtype=x.dtype, device=x.device)], d)
    return x


def _weight_gradient(x, g, shape, stride, padding, dilation, groups):
    """dw, of `shape`: x (N, C, ...) and g (N, O, ...) give (O, C / groups, ...); see the module."""
    dims = len(shape) - 2
    if x.ndim == dims + 1:
        x, g = movement.unsqueeze(x, 0), movement.unsqueeze(g, 0)
    if not x.numel() or not g.numel():
        return create.zeros(type(x), shape, dtype=x.dtype, device=x.device)
    if conv_weight.fits(x, g, shape):
        return conv_weight.weight_gradient(x, g, shape, stride, padding, dilation, groups)
    n, spatial, channels = x.shape[0], x.shape[2:], x.shape[1] // groups
    g = movement.transpose(g, 0, 1)
    x = movement.reshape(x, (n, groups, channels, *spatial)) if groups > 1 else movement.unsqueeze(x, 1)
    rest = range(3, 3 + dims)
    if dims < 3:
        x = movement.reshape(movement.permute(x, (1, 0, 2, *rest)), (1, groups * n, channels, *spatial))
        function, g = FUNCTIONS[f"conv{dims + 1}d"], movement.unsqueeze(g, 2)
        stride, padding, dilation = (1, *stride), (0, *padding), (1, *dilation)
        found = movement.squeeze(function(x, g, None, dilation, padding, stride, groups), 0)
    else:
        x = movement.reshape(movement.permute(x, (2, 1, 0, *rest)), (channels, groups * n, *spatial))
        found = movement.transpose(FUNCTIONS["conv3d"](x, g, None, dilation, padding, stride, groups), 0, 1)
    return _cropped(found, shape[2:])


def _bias_gradient(dims):
    return lambda g: reduce.sum(g, tuple(d for d in range(g.ndim) if d != g.ndim - dims - 1))


def conv(dims):
    """What `define` takes for the convolution in so many dims."""

    def to_input(g, input_shape, weight, stride, padding, dilation, groups):
        stride, dilation, kernel = _each(stride, dims), _each(dilation, dims), weight.shape[2:]
        before, size = [b for b, _ in _paddings(padding, kernel, dilation)], input_shape[-dims:]
        least = zip(g.shape[-dims:], stride, before, dilation, kernel)
        least = [(p - 1) * s - 2 * b + d * (k - 1) + 1 for p, s, b, d, k in least]
        extra = tuple(max(0, n - m) for n, m in zip(size, least))  # negative where the end is padded by one more
        found = FUNCTIONS[f"conv_transpose{dims}d"](g, weight, None, stride, tuple(before), extra, groups, dilation)
        return _cropped(found, size)

    def to_weight(g, input, weight_shape, stride, padding, dilation, groups):
        stride, dilation = _each(stride, dims), _each(dilation, dims)
        pads = _paddings(padding, weight_shape[2:], dilation)
        before = tuple(b for b, _ in pads)
        return _weight_gradient(_extended(input, pads), g, weight_shape, stride, before, dilation, groups)

    vjp = {"input": to_input, "weight": to_weight, "bias": _bias_gradient(dims)}
    return {"ref": _conv_ref, "arity": 2, "domain": _conv_domain(dims), "vjp": vjp}


def transpose(dims):
    """What `define` takes for the transposed convolution in so many dims."""

    def to_input(g, input_shape, weight, stride, padding, dilation, groups):
        found = FUNCTIONS[f"conv{dims}d"](g, weight, None, stride, padding, dilation, groups)
        return _cropped(found, input_shape[-dims:])  # one more where output_padding reaches the stride

    def to_weight(g, input, weight_shape, stride, padding, dilation, groups):
        stride, padding, dilation = (_each(v, dims) for v in (stride, padding, dilation))
        return _weight_gradient(g, input, weight_shape, stride, padding, dilation, groups)

    vjp = {"input": to_input, "weight": to_weight, "bias": _bias_gradient(dims)}
    return {"ref": _transpose_ref, "arity": 2, "domain": _transpose_domain(dims), "vjp": vjp}
