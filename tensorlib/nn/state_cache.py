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
from tensorlib.tensor import empty, zeros


class StateCache(KVCache):
    """`states`: {layer: shapes of its states}, f32, which begin as zeros. `attention`: the layers that have keys and
    values instead, as a KVCache's; [kv_heads, max_len, head_dim] each, in `dtype`. See KVCache for the rest.

    A state is that after the last token: `reset` goes back to no token, or to as many as there are. ContextError.
    """

    rewinds = False

    def __init__(self, states, max_len, attention=(), kv_heads=1, head_dim=1, dtype="f16", device=None):
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
