"""Choosing the next token where the logits are: parameters, history and the random counter live in memory, Python sees
an id.
"""

import os
import struct

from tensorlib import backend
from tensorlib.errors import ShapeError
from tensorlib.nn.module import Module
from tensorlib.tensor import empty

PARAMS = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "window", "capacity")
SCRATCH_PER_TOKEN, SCRATCH = 17, 2048  # bytes, kernels_numba/random.py


class Sampler(Module):
    """Logits [1, V] (or [T, V]: the last row counts) to `token`, an i64 Tensor of one element, by one kernel.

    `reset` sets parameters, history and seed. Sampling is recorded by a capture like any kernel: every replay draws
    anew. `device`: where the logits are.
    """

    def __init__(self, vocab_size, capacity, device=None):
        self._vocab_size, self._capacity = vocab_size, capacity
        self.token, self._params, self._state, self._length, self._history = (
            empty((n,), dtype="i64", device=device) for n in (1, len(PARAMS), 2, 1, capacity)
        )
        self._scratch = empty((SCRATCH_PER_TOKEN * vocab_size + SCRATCH,), dtype="u8", device=device)

    def reset(self, history=(), temperature=0.0, top_k=0, top_p=1.0, min_p=0.0, repetition_penalty=1.0, seed=None):
        """`history`: ids that the repetition penalty counts; `seed` None takes one from the system.

        Meaning and order of the parameters are Hugging Face's; `temperature` 0 is greedy. ShapeError if the history is
        longer than the capacity.
        """
        if len(history) > self._capacity:
            raise ShapeError("Sampler", f"{len(history)} ids", f"at most {self._capacity}", "shorten the history")
        values = (
            float(temperature),
            int(top_k),
            float(top_p),
            float(min_p),
            float(repetition_penalty),
            0,
            self._capacity,
        )
        seed = int.from_bytes(os.urandom(8), "little", signed=True) if seed is None else _signed(seed)
        written = (self._params, backend.words(values)), (self._state, [seed, 0]), (self._length, [len(history)])
        for array, words in (*written, (self._history, history)):
            if words:
                array.buffer.write(array.ptr, struct.pack(f"{len(words)}q", *words))

    def forward(self, logits):
        """Launches the choice; returns `token`."""
        kernel = backend.kernel("random", "sample", device=logits.device.type)
        last = logits.ptr + 4 * self._vocab_size * (logits.shape[0] - 1)
        inside = (self._params, self._history, self._length, self._state, self._scratch)
        args = (last, self._vocab_size, *(a.ptr for a in inside), self.token.ptr)
        backend.launch(kernel, args, reads=(logits, self._params), writes=(*inside[1:], self.token))
        return self.token

    def token_id(self):
        """The chosen id, as a Python int."""
        return int.from_bytes(self.token.buffer.read(self.token.ptr, 8), "little", signed=True)


def _signed(seed):
    """Any int as 64 bits, two's complement."""
    return (seed + 2**63) % 2**64 - 2**63
