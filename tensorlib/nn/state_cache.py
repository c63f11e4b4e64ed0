"""States of a fixed size, whatever the number of tokens: those of recurrent and state space layers, and of short
convolutions.

>>> import tensorlib
>>> from tensorlib import nn
>>> cache = nn.StateCache({0: [(3, 8)]}, max_len=16)
>>> cache.keep(0, 0, tensorlib.ones(3, 8))
>>> cache.past(0, 0).shape, cache.rewinds
((3, 8), False)
"""

from tensorlib.errors import ContextError, ShapeError
from tensorlib.nn.attention import KVCache
from tensorlib.nn.batch_cache import BatchCache
from tensorlib.ops import index, movement
from tensorlib.tensor import empty, zeros


class StateCache(KVCache):
    """`states`: {layer: shapes of its states}, f32, which begin as zeros. `attention`: the layers that have keys and
    values instead, as a KVCache's; [kv_heads, max_len, head_dim] each, in `dtype`. See KVCache for the rest.

    A state is that after the last token: `reset` goes back to no token, or to as many as there are. ContextError.
    """

    rewinds = False

    def __init__(self, states, max_len, attention=(), kv_heads=1, head_dim=1, dtype="f16", device=None):
        self.states = {layer: list(shapes) for layer, shapes in states.items()}
        self._states = {
            (layer, i): zeros(shape, device=device)
            for layer, shapes in states.items()
            for i, shape in enumerate(shapes)
        }
        super().__init__(tuple(attention), kv_heads, max_len, head_dim, dtype, device)

    def _memory(self, layers, heads, max_len, width, dtype, device):
        shape = (heads, max_len, width)
        return {i: tuple(empty(shape, dtype=dtype, device=device) for _ in range(2)) for i in layers}

    def reset(self, length=0):
        """Forgets all tokens; with `length`, which has to be how many there are, none. ContextError."""
        if length and length != self.length:
            got, fix = f"reset to {length} of {self.length} tokens", "reset to 0 and compute those before again"
            raise ContextError("StateCache", got, "0: a state has no way back", fix)
        if not length:
            for state in self._states.values():
                state.zero_()
        super().reset(length)

    def past(self, layer, i):
        """State i of a layer before the tokens that come."""
        return self._states[layer, i]

    def keep(self, layer, i, state):
        """State i of a layer after them, which is copied (recorded like any kernel). ShapeError."""
        mine = self._states[layer, i]
        if mine.shape != state.shape:
            raise ShapeError("StateCache", f"state {state.shape}", f"{mine.shape}", "give one sequence, as declared")
        mine[...] = state


class BatchStateCache(BatchCache):
    """States of up to `streams` sequences, a row of memory each, beside the pages of layers that have keys and values.

    What one has of a beginning of its ids, no other finds: a state has no way back. Tokens of a step of one sequence
    are [T], one of each of several are [B, 1]. Place 0 is nobody's. See StateCache and BatchCache.

    >>> import tensorlib
    >>> cache = BatchStateCache({0: [(3, 8)]}, streams=2, tokens=64, page_size=16)
    >>> first = cache.new()
    >>> cache.step([first], [1])
    >>> cache.keep(0, 0, tensorlib.ones(3, 8))
    >>> second, slots = cache.fork(first), cache.slots(2, 1)
    >>> slots.take([first, second], [5, 6])
    >>> cache.past(0, 0).shape, cache.past(0, 0).sum().item()
    ((2, 3, 8), 48.0)
    """

    apart = True

    def __init__(
        self, states, streams, tokens, attention=(), kv_heads=1, head_dim=1, dtype="f16", device=None, page_size=64
    ):  # fmt: skip
        super().__init__(tuple(attention), kv_heads, head_dim, tokens, dtype, device, page_size)
        self._shapes = {(layer, i): shape for layer, shapes in states.items() for i, shape in enumerate(shapes)}
        self._states = {key: zeros((streams + 1, *shape), device=device) for key, shape in self._shapes.items()}
        self._places, self._unused = {}, list(range(streams, 0, -1))

    @classmethod
    def like(cls, cache, streams, context, tokens, page_size=64):
        """What a model gets in place of a StateCache: see `BatchCache.like`. Without keys tokens take no memory."""
        if not cache.layers:
            return cls(cache.states, streams, streams * context, device=cache.start.device, page_size=context)
        keys = next(iter(cache.layers.values()))[0]
        sizes = keys.shape[0], keys.shape[2], keys.dtype, cache.start.device
        return cls(cache.states, streams, tokens, tuple(cache.layers), *sizes, page_size)

    def begin(self, ids):
        """(an empty sequence, 0)."""
        return self.new(), 0

    def known(self, sequence, ids):
        """Nothing: no other can begin with its tokens."""

    def new(self):
        """An empty sequence. ContextError if there are as many as `streams`."""
        if not self._unused:
            expected = f"at most {len(self._places)} sequences"
            raise ContextError("BatchStateCache", "one more sequence", expected, "free one, or make a larger cache")
        name = super().new()
        self._places[name] = self._unused.pop()
        self._written(name, dict.fromkeys(self._states, 0))
        return name

    def fork(self, sequence):
        """A sequence with the same tokens: pages are shared, states copied."""
        name = super().fork(sequence)
        self._written(name, {key: state[self._places[sequence]] for key, state in self._states.items()})
        return name

    def _written(self, sequence, values):
        for key, state in self._states.items():
            state[self._places[sequence]] = values[key]

    def free(self, sequence):
        super().free(sequence)
        self._unused.append(self._places.pop(sequence))

    def reset(self, sequence=None, length=0):
        """Forgets the tokens of a sequence or of all; with `length`, how many it has, none. ContextError."""
        if length and length != self._lengths[sequence]:
            got, fix = f"reset to {length} of {self._lengths[sequence]} tokens", "reset to 0 and compute those before"
            raise ContextError("BatchStateCache", got, "0: a state has no way back", fix)
        super().reset(sequence, length)
        if sequence is not None and not length:
            self._written(sequence, dict.fromkeys(self._states, 0))

    def step(self, sequences, counts):
        """`counts[0]` tokens of sequences[0] come next. ShapeError for several: see `slots`."""
        if len(sequences) != 1:
            raise ShapeError("BatchStateCache.step", f"{len(sequences)} sequences", "one", "step with slots")
        super().step(sequences, counts)
        self._place_of_step = self._places[sequences[0]]

    def _place(self, sequence):
        return self._places[sequence]

    def past(self, layer, i):
        """State i of a layer before the tokens that come: of one sequence, or [B, ...]."""
        rows, state = self._step, self._states[layer, i]
        if rows.starts is not None:
            return movement.select(state, 0, self._place_of_step)
        return index.index_select(state, 0, rows.states)

    def keep(self, layer, i, state):
        """State i of a layer after them, which is copied (recorded like any kernel). ShapeError."""
        rows, shape = self._step, self._shapes[layer, i]
        expected = shape if rows.starts is not None else (rows.states.shape[0], *shape)
        if state.shape != expected:
            raise ShapeError("BatchStateCache", f"state {state.shape}", f"{expected}", "give those of the step")
        self._states[layer, i][self._place_of_step if rows.starts is not None else rows.states] = state
