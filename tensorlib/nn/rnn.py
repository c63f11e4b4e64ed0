"""Recurrent layers: torch.nn's RNN, LSTM and GRU, stacked and in both directions, and their cells.

Inputs of all steps are projected in one product; each step is one more with the state. Weights begin uniform within
1 / sqrt(hidden_size), in PyTorch's names and order of gates (LSTM: i f g o; GRU: r z n).

>>> import tensorlib
>>> from tensorlib import nn
>>> out, (h, c) = nn.LSTM(3, 5, num_layers=2, bidirectional=True)(tensorlib.zeros(7, 2, 3))
>>> out.shape, h.shape, c.shape
((7, 2, 10), (4, 2, 5), (4, 2, 5))
"""

from tensorlib.errors import ShapeError
from tensorlib.nn import init
from tensorlib.nn.module import Module, Parameter
from tensorlib.ops import linalg, movement
from tensorlib.random import dropout
from tensorlib.tensor import zeros


def _rnn_step(gates, hidden, state, nonlinearity="tanh"):
    total = gates + hidden
    return (total.tanh() if nonlinearity == "tanh" else total.relu(),)


def _lstm_step(gates, hidden, state):
    i, f, g, o = (gates + hidden).chunk(4, dim=-1)
    c = f.sigmoid() * state[1] + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def _gru_step(gates, hidden, state):
    (r, z, n), (hr, hz, hn) = gates.chunk(3, dim=-1), hidden.chunk(3, dim=-1)
    n = (n + (r + hr).sigmoid() * hn).tanh()
    z = (z + hz).sigmoid()
    return (n + z * (state[0] - n),)


class _Recurrent(Module):
    """x (L, N, in), (N, L, in) if batch_first, or (L, in); state (layers * directions, N, hidden), zeros if None."""

    step, gates, states = None, 1, 1

    def __init__(
        self, input_size, hidden_size, num_layers=1, bias=True, batch_first=False, dropout=0.0, bidirectional=False,
        proj_size=0, dtype="f32",
    ):  # fmt: skip
        if proj_size:
            raise NotImplementedError(f"{type(self).__name__}: proj_size is not there yet; put a Linear behind it")
        self.input_size, self.hidden_size, self.num_layers = input_size, hidden_size, num_layers
        self.bias, self.batch_first, self.dropout, self.bidirectional = bias, batch_first, dropout, bidirectional
        within = init.fan_uniform(hidden_size)
        for name, shape in self._shapes():
            setattr(self, name, Parameter(*shape, init=within, dtype=dtype))

    def _suffixes(self):
        """The endings of a layer's names, one per direction, for all layers."""
        ways = ("", "_reverse") if self.bidirectional else ("",)
        return [[f"_l{layer}{way}" for way in ways] for layer in range(self.num_layers)]

    def _shapes(self):
        size = self.input_size
        rows = self.gates * self.hidden_size
        for suffixes in self._suffixes():
            for suffix in suffixes:
                yield f"weight_ih{suffix}", (rows, size)
                yield f"weight_hh{suffix}", (rows, self.hidden_size)
                if self.bias:
                    yield f"bias_ih{suffix}", (rows,)
                    yield f"bias_hh{suffix}", (rows,)
            size = self.hidden_size * len(suffixes)

    def forward(self, input, hx=None):
        x, alone = self._checked(input)
        begins = self._states(x, hx, alone)
        ends = []
        for layer, suffixes in enumerate(self._suffixes()):
            if layer and self.dropout:
                x = dropout(x, self.dropout, self.training)
            outputs = []
            for way, suffix in enumerate(suffixes):
                at = layer * len(suffixes) + way
                out, end = self._run(x, suffix, [state[at] for state in begins], reverse=way == 1)
                outputs.append(out)
                ends.append(end)
            x = outputs[0] if len(outputs) == 1 else movement.cat(outputs, -1)
        states = [movement.stack([end[i] for end in ends]) for i in range(self.states)]
        if alone:
            x, states = x.squeeze(1), [state.squeeze(1) for state in states]
        elif self.batch_first:
            x = x.transpose(0, 1)
        return x, (tuple(states) if self.states > 1 else states[0])

    def _run(self, x, suffix, state, reverse):
        """(outputs of all steps, last state) of one direction of one layer."""
        weight_ih, weight_hh = getattr(self, f"weight_ih{suffix}"), getattr(self, f"weight_hh{suffix}")
        bias_ih, bias_hh = (getattr(self, f"bias_{k}h{suffix}") if self.bias else None for k in "ih")
        projected = linalg.linear(x, weight_ih, bias_ih).unbind(0)
        outputs = []
        for gates in reversed(projected) if reverse else projected:
            state = self._step(gates, linalg.linear(state[0], weight_hh, bias_hh), state)
            outputs.append(state[0])
        return movement.stack(outputs[::-1] if reverse else outputs), state

    def _step(self, gates, hidden, state):
        return type(self).step(gates, hidden, state)

    def _checked(self, x):
        """(x as (L, N, in), whether it had no batch)."""
        if x.ndim not in (2, 3) or x.shape[-1] != self.input_size or not all(x.shape):
            order = "(N, L, in)" if self.batch_first else "(L, N, in)"
            expected = f"{order} or (L, in), in = {self.input_size}, none of them 0"
            raise ShapeError(type(self).__name__, f"shape {x.shape}", expected, "reshape the input")
        if x.ndim == 2:
            return x.unsqueeze(1), True
        return (x.transpose(0, 1) if self.batch_first else x), False

    def _states(self, x, hx, alone):
        shape = (self.num_layers * (2 if self.bidirectional else 1), x.shape[1], self.hidden_size)
        if hx is None:
            return [zeros(shape, dtype=x.dtype, device=x.device)] * self.states
        given = list(hx) if self.states > 1 else [hx]
        given = [state.unsqueeze(1) if alone else state for state in given]
        for state in given:
            if state.shape != shape:
                raise ShapeError(type(self).__name__, f"a state of shape {state.shape}", f"{shape}", "reshape it")
        return given

    def extra_repr(self):
        text = f"{self.input_size}, {self.hidden_size}"
        usual = {"num_layers": 1, "bias": True, "batch_first": False, "dropout": 0.0, "bidirectional": False}
        for name, value in usual.items():
            text += f", {name}={vars(self)[name]}" if vars(self)[name] != value else ""
        return text


class RNN(_Recurrent):
    """h' = tanh(W_ih x + b_ih + W_hh h + b_hh), or relu (Elman, 1990). Returns (outputs, last h)."""

    def __init__(self, input_size, hidden_size, num_layers=1, nonlinearity="tanh", **options):
        if nonlinearity not in ("tanh", "relu"):
            raise ValueError(f"RNN: got nonlinearity {nonlinearity!r}; expected tanh or relu")
        super().__init__(input_size, hidden_size, num_layers, **options)
        self.nonlinearity = nonlinearity

    def _step(self, gates, hidden, state):
        return _rnn_step(gates, hidden, state, self.nonlinearity)


class LSTM(_Recurrent):
    """c' = sig(f) c + sig(i) tanh(g), h' = sig(o) tanh(c') (Hochreiter and Schmidhuber, 1997). Returns (outputs,
    (last h, last c)).
    """

    step, gates, states = staticmethod(_lstm_step), 4, 2


class GRU(_Recurrent):
    """n = tanh(W_in x + b_in + sig(r) (W_hn h + b_hn)), h' = n + sig(z) (h - n) (arXiv:1406.1078). Returns (outputs,
    last h).
    """

    step, gates = staticmethod(_gru_step), 3


class _Cell(Module):
    step, gates, states = None, 1, 1

    def __init__(self, input_size, hidden_size, bias=True, dtype="f32"):
        self.input_size, self.hidden_size = input_size, hidden_size
        rows, within = self.gates * hidden_size, init.fan_uniform(hidden_size)
        self.weight_ih = Parameter(rows, input_size, init=within, dtype=dtype)
        self.weight_hh = Parameter(rows, hidden_size, init=within, dtype=dtype)
        self.bias_ih = Parameter(rows, init=within, dtype=dtype) if bias else None
        self.bias_hh = Parameter(rows, init=within, dtype=dtype) if bias else None

    def forward(self, input, hx=None):
        if hx is None:
            begin = zeros((*input.shape[:-1], self.hidden_size), dtype=input.dtype, device=input.device)
            state = (begin,) * self.states
        else:
            state = tuple(hx) if self.states > 1 else (hx,)
        gates = linalg.linear(input, self.weight_ih, self.bias_ih)
        state = type(self).step(gates, linalg.linear(state[0], self.weight_hh, self.bias_hh), state)
        return state if self.states > 1 else state[0]

    def extra_repr(self):
        return f"{self.input_size}, {self.hidden_size}"


class RNNCell(_Cell):
    """One step of `RNN`: x (N, in), h (N, hidden) -> h'."""

    step = staticmethod(_rnn_step)


class LSTMCell(_Cell):
    """One step of `LSTM`: x (N, in), (h, c) -> (h', c')."""

    step, gates, states = staticmethod(_lstm_step), 4, 2


class GRUCell(_Cell):
    """One step of `GRU`: x (N, in), h (N, hidden) -> h'."""

    step, gates = staticmethod(_gru_step), 3
