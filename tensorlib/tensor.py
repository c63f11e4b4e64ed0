"""Tensor: an Array with PyTorch's names: operators, indexing, methods made from the op rows, printing, exchange.

>>> import tensorlib
>>> x = tensorlib.arange(6, dtype="f32").reshape(2, 3)
>>> (x[:, ::2] + 1).sum(dim=1)
tensor([ 4., 10.])
>>> x[x > 2] = 0
>>> x
tensor([[0., 1., 2.],
        [0., 0., 0.]])
"""

import functools
import importlib
from types import FunctionType

from tensorlib import dtype as _dtype
from tensorlib import random, tape
from tensorlib.autograd.variable import Variable
from tensorlib.device import Array
from tensorlib.errors import DTypeError, ShapeError
from tensorlib.ops import (
    create,
    elementwise,
    exchange,
    getitem,
    index,
    linalg,
    movement,
    reduce,
    softmax,
    text,
    transfer,
)


class Tensor(Variable, Array):
    """A strided view of typed memory on a device. Make one with `tensorlib.tensor(...)`, `zeros`, `from_numpy` and so
    on.

    Methods are PyTorch's; views share memory; in-place methods end in an underscore.
    """

    __slots__ = ()
    __array_priority__ = 1000
    __hash__ = object.__hash__

    # ---- what it is ------------------------------------------------------------------------------------------------

    def dim(self):
        """Number of dims."""
        return self.ndim

    def size(self, dim=None):
        """The shape, or one size of it."""
        return self.shape if dim is None else self.shape[dim]

    def stride(self, dim=None):
        """Strides in elements, or one of them."""
        return self.strides if dim is None else self.strides[dim]

    def element_size(self):
        """Bytes per element."""
        return self.dtype.itemsize

    def data_ptr(self):
        """Address of the first element."""
        return self.ptr

    @property
    def nbytes(self):
        """Bytes that the elements take (not the buffer, which may be larger)."""
        return self.numel() * self.dtype.itemsize

    def is_floating_point(self):
        """Whether the dtype is a float."""
        return self.dtype.kind == "f"

    @property
    def T(self):
        """Dims in reverse order: a view."""
        return self.permute(*reversed(range(self.ndim)))

    @property
    def mT(self):
        """The last two dims swapped: a view."""
        return self.transpose(-2, -1)

    def __len__(self):
        if not self.shape:
            raise DTypeError("len", "a 0-d tensor", "at least one dim", "use .numel()")
        return self.shape[0]

    def __iter__(self):
        if not self.shape:
            raise DTypeError("iter", "a 0-d tensor", "at least one dim", "use .item()")
        return iter(self.unbind(0))

    def __repr__(self):
        return text.to_text(self)

    def _repr_html_(self):
        return text.to_html(self)

    def __format__(self, spec):
        return self.item().__format__(spec) if spec and not self.shape else repr(self)

    def __bool__(self):
        if self.numel() != 1:
            fix = "use .any() or .all()"
            raise ShapeError("bool", f"a tensor of {self.numel()} elements", "one element", fix)
        return bool(self.item())

    def __int__(self):
        return int(self.item())

    def __float__(self):
        return float(self.item())

    def __index__(self):
        if self.dtype.kind == "f" or self.numel() != 1:
            raise DTypeError("index", f"shape {self.shape}, dtype {self.dtype}", "one integer", "use int(x)")
        return int(self.item())

    def __contains__(self, value):
        return bool((self == value).any())

    def __deepcopy__(self, memo):
        return self.detach().clone().requires_grad_(self.requires_grad)

    # ---- conversion ------------------------------------------------------------------------------------------------

    to, type_as, cpu, cuda = transfer.to, transfer.type_as, transfer.cpu, transfer.cuda

    def detach(self):
        """The same memory without the tape: no gradient passes."""
        return self.handle()

    def view_as(self, other):
        """`view` with the shape of another tensor."""
        return movement.view(self, other.shape)

    def reshape_as(self, other):
        """`reshape` with the shape of another tensor."""
        return movement.reshape(self, other.shape)

    def expand_as(self, other):
        """`expand` to the shape of another tensor."""
        return movement.expand(self, other.shape)

    def copy_(self, other):
        """Writes `other`, broadcast and cast, into this tensor."""
        self[...] = other
        return self

    def fill_(self, value):
        """Writes one number to every element."""
        self[...] = value
        return self

    def zero_(self):
        """Writes 0 to every element."""
        return self.fill_(0)

    def new_tensor(self, data, dtype=None):
        """`tensorlib.tensor` with this tensor's dtype and device."""
        return create.tensor(type(self), data, dtype or self.dtype, self.device)

    def __array__(self, dtype=None, copy=None):
        array = exchange.numpy(self)
        if dtype is not None and array.dtype != dtype:
            return array.astype(dtype)
        return array.copy() if copy else array

    __dlpack__ = exchange.dlpack
    __dlpack_device__ = exchange.dlpack_device
    __getitem__ = getitem.getitem
    __setitem__ = getitem.setitem


create.made = Tensor

# ---- methods made from functions -------------------------------------------------------------------------------------

_METHODS = {
    **{n: getattr(elementwise, n) for n in elementwise.NAMES},
    **{
        n: getattr(movement, n)
        for n in (
            "reshape view transpose t permute movedim unsqueeze squeeze expand broadcast_to narrow select flatten"
            " unflatten flip diagonal contiguous clone repeat repeat_interleave split chunk unbind roll"
        ).split()
    },
    **{
        n: getattr(index, n)
        for n in (
            "index_select gather scatter scatter_ scatter_add scatter_add_ index_add nonzero masked_select tril triu"
        ).split()
    },
    **{
        n: getattr(reduce, n)
        for n in ("sum mean prod amax amin max min any all argmax argmin var std norm count_nonzero").split()
    },
    **{n: getattr(softmax, n) for n in ("softmax", "log_softmax", "logsumexp")},
    **{n: getattr(exchange, n) for n in ("item", "tolist", "numpy", "to_torch")},
    "matmul": linalg.matmul,
}
_ALIASES = {
    "multiply": "mul", "subtract": "sub", "divide": "div", "true_divide": "div", "negative": "neg", "absolute": "abs",
    "clip": "clamp", "swapaxes": "transpose", "to_dtype": "to", "broadcast_as": "broadcast_to", "arctan2": "atan2",
}  # fmt: skip
_OPERATORS = {
    "add": "add", "sub": "sub", "mul": "mul", "truediv": "div", "floordiv": "floor_divide", "mod": "remainder",
    "pow": "pow", "matmul": "matmul", "and": "bitwise_and", "or": "bitwise_or", "xor": "bitwise_xor",
    "lshift": "bitwise_left_shift", "rshift": "bitwise_right_shift",
}  # fmt: skip
_COMPARISONS = ("eq", "ne", "lt", "le", "gt", "ge")
_DTYPE_METHODS = {
    "float": "f32", "double": "f64", "half": "f16", "bfloat16": "bf16", "int": "i32", "long": "i64", "short": "i16",
    "char": "i8", "byte": "u8", "bool": "bool",
}  # fmt: skip

_LATER = {
    "lapack": "det slogdet inv pinv cholesky qr svd matrix_power",
    "sort": "sort argsort msort topk kthvalue unique unique_consecutive bincount histc",
    "scan": "cumsum cumprod cummax cummin logcumsumexp",
    "special": "sinc lgamma digamma erfinv signbit hypot logaddexp logaddexp2 xlogy heaviside fmax fmin gcd lcm"
    " nextafter"
    " logit deg2rad rad2deg frac nan_to_num isclose allclose equal prelu hardshrink",
    "contract": "dot mv mm bmm outer inner kron cross addmm addmv addr baddbmm addbmm trace diag diag_embed",
    "statistics": "median nanmedian mode quantile nanquantile nansum nanmean aminmax diff cov corrcoef",
    "scatter": "index_copy index_copy_ index_fill index_fill_ index_reduce index_reduce_ index_add_ scatter_reduce"
    " scatter_reduce_ index_put index_put_ put put_ masked_scatter masked_scatter_ select_scatter slice_scatter"
    " diagonal_scatter",
    "lookup": "take take_along_dim argwhere",
    "arrange": "tile swapdims moveaxis flipud fliplr rot90 tensor_split hsplit vsplit dsplit",
    "windows": "unfold as_strided",
    "signal": "stft istft",
}


def _is_operand(value):
    return isinstance(value, (Array, bool, int, float)) or hasattr(value, "item")


def _operator(function):
    """x op other. NotImplemented for what is no operand, so that its class may answer."""

    def operator(self, other, out=None):
        return function(self, other) if _is_operand(other) else NotImplemented

    if "plans" not in function.__globals__:
        return operator
    # the same quick code without a call in between: only what it does not know comes here
    scope = {"recorded": operator, "watched": lambda args: operator(*args)}
    quick = FunctionType(function.__code__, {**function.__globals__, **scope}, function.__name__, function.__defaults__)
    quick.__doc__ = function.__doc__
    return quick


def _reflected(function):
    def operator(self, other):
        return function(other, self) if _is_operand(other) else NotImplemented

    return operator


def _in_place(function):
    @functools.wraps(function)
    def method(self, *args, **kwargs):
        return function(self, *args, out=self, **kwargs)

    method.__doc__ = f"In place: {function.__doc__}"
    return method


def _converter(name):
    def method(self):
        return self.to(name)

    method.__doc__ = f"In dtype {name}; itself if it is already."
    return method


def _later(module, name):
    """A method whose module is imported when it is first called: start-up pays only for what text generation needs."""

    def method(self, *args, **kwargs):
        return getattr(importlib.import_module(f"tensorlib.ops.{module}"), name)(self, *args, **kwargs)

    method.__name__, method.__doc__ = name, f"See `tensorlib.{name}`."
    return method


def _plain(function):
    """The function inside its wrappers."""
    while hasattr(function, "__wrapped__"):
        function = function.__wrapped__
    return function


def _attach():
    for name, function in _METHODS.items():
        setattr(Tensor, name, function)
        if "out" in tape.parameters(_plain(function))[0] and name not in ("where", "matmul"):
            setattr(Tensor, name + "_", _in_place(function))
    for alias, name in _ALIASES.items():
        setattr(Tensor, alias, getattr(Tensor, name))
    for name, dtype in _DTYPE_METHODS.items():
        setattr(Tensor, name, _converter(dtype))
    for operator, name in _OPERATORS.items():
        function = _METHODS[name]
        setattr(Tensor, f"__{operator}__", _operator(function))
        setattr(Tensor, f"__r{operator}__", _reflected(function))
        if name != "matmul":
            setattr(Tensor, f"__i{operator}__", _in_place(function))
    for name in _COMPARISONS:
        setattr(Tensor, f"__{name}__", _operator(_METHODS[name]))
    Tensor.__neg__, Tensor.__abs__, Tensor.__invert__ = elementwise.neg, elementwise.abs, elementwise.bitwise_not
    Tensor.where = lambda self, condition, other: elementwise.where(condition, self, other)
    Tensor.masked_fill_ = _masked_fill_
    for name in "uniform_ normal_ exponential_ bernoulli bernoulli_ multinomial".split():
        setattr(Tensor, name, getattr(random, name))
    for module, names in _LATER.items():
        for name in names.split():
            setattr(Tensor, name, _later(module, name))
    Tensor.inverse = Tensor.inv


def _masked_fill_(self, mask, value):
    """Writes `value` where `mask` is true."""
    self[...] = elementwise.masked_fill(self, mask, value)
    return self


_attach()
Array.usual = Tensor


# ---- functions that make Tensors -------------------------------------------------------------------------------------


def _factory(function):
    """`function(cls, ...)` with cls = Tensor."""

    @functools.wraps(function)
    def make(*args, requires_grad=False, **kwargs):
        made = function(Tensor, *args, **kwargs)
        return made.requires_grad_() if requires_grad else made

    return make


def _like(function):
    def make(x, dtype=None, device=None):
        return function(Tensor, x.shape, dtype=dtype or x.dtype, device=device or x.device)

    make.__name__, make.__doc__ = function.__name__ + "_like", f"{function.__doc__} Of x's shape, dtype and device."
    return make


empty, full, zeros, ones, arange, linspace, eye, tensor = map(
    _factory,
    (create.empty, create.full, create.zeros, create.ones, create.arange, create.linspace, create.eye, create.tensor),
)
rand, randn, randint, randperm, uniform, normal, exponential = map(
    _factory,
    (random.rand, random.randn, random.randint, random.randperm, random.uniform, random.normal, random.exponential),
)
from_numpy, from_dlpack, from_torch = map(_factory, (exchange.from_numpy, exchange.from_dlpack, exchange.from_torch))
zeros_like, ones_like, empty_like = map(_like, (create.zeros, create.ones, create.empty))
rand_like, randn_like = map(_like, (random.rand, random.randn))


def full_like(x, value, dtype=None, device=None):
    """`full` of x's shape, dtype and device."""
    return full(x.shape, value, dtype=dtype or x.dtype, device=device or x.device)


def as_tensor(data, dtype=None, device=None):
    """A Tensor of `data`:
    itself if it is one of that dtype, sharing memory with NumPy arrays where dtypes allow, else a copy.
    """
    if isinstance(data, Tensor):
        return data.to(dtype or data.dtype)
    if hasattr(data, "__array_interface__"):
        return from_numpy(data).to(dtype or _dtype.get(data.dtype))
    if hasattr(data, "__dlpack__"):
        return from_dlpack(data).to(dtype or _dtype.get(data.dtype))
    return tensor(data, dtype, device)
