"""Between the event loop, where requests live, and the threads that compute for them.

A request has a Generation with a Sequence for each of its answers; the Runner's thread drives the engine and sends
what a round of it gives through one `call_soon_threadsafe`. Nothing here waits for a client: who reads too slowly is
cancelled.
"""

import asyncio
import contextlib
import queue
import threading
import traceback

import numpy as np

from zoo.serve_errors import ApiError, busy, over

BUFFER = 1024  # tokens that may wait for a slow reader, for each answer


class Sequence:
    """One answer: `arguments` of the engine's submit. `logs`: the LogProbs among its processors."""

    def __init__(self, ids, most, sampler, stop_ids, processors, logs=None):
        self.arguments = ids, most, sampler, stop_ids, (*processors, allowed) if processors else ()
        self.handle = self.generation = self.index = None
        self._ids, self._logs = list(ids), logs

    def took(self, token):
        """The engine chose a token: what is said of it, None without logs."""
        if self._logs is None:
            return None
        self._ids.append(token)
        self._logs.finish(self._ids)
        return self._logs.rows.pop(0)


def allowed(ids, scores):
    """The last of a sequence's processors: ApiError if the others have left nothing."""
    if scores.max() == -np.inf:
        raise ApiError(500, "No token may come next: the format and the biases exclude all", "response_format")


class Generation:
    """The sequences of a request, from the event loop. `deadline`: of the loop's clock. `close()` when it is over."""

    def __init__(self, runner, sequences, deadline):
        if not runner.alive:
            raise ApiError(503, "The engine has stopped", code="engine_stopped")
        if len(sequences) > runner.limit:
            raise ApiError(400, f"{len(sequences)} answers at once; the server's limit is {runner.limit}", "n")
        if runner.count + len(sequences) > runner.limit:
            raise busy()
        self.loop, self._runner, self._sequences = asyncio.get_running_loop(), runner, sequences
        self._items, self._came, self._closed = [], asyncio.Event(), False
        self._timer = self.loop.call_at(deadline, lambda: self._fail(over()))
        runner.count += len(sequences)
        for index, sequence in enumerate(sequences):
            sequence.generation, sequence.index = self, index
            runner.submit(sequence)

    def close(self):
        """Give up what has not ended. May be called again."""
        if not self._closed:
            self._closed = True
            self._timer.cancel()
            self._runner.count -= len(self._sequences)
            for sequence in self._sequences:
                self._runner.cancel(sequence)

    def cancel(self, index):
        """No more of one answer."""
        self._runner.cancel(self._sequences[index])

    async def __aiter__(self):
        """Lists of (index, token, logprobs) and, at the end of an answer, (index, None, None); errors are raised."""
        left = len(self._sequences)
        while left:
            await self._came.wait()
            self._came.clear()
            items, self._items = self._items, []
            for _, token, error in items:
                if token is None and error is not None:
                    raise error
                left -= token is None
            yield items

    def put(self, item):
        """One more of what `__aiter__` gives, on the event loop."""
        if self._closed:
            return
        if len(self._items) >= BUFFER * len(self._sequences):
            self.close()
            self._fail(ApiError(503, "The answer was read too slowly", code="slow_reader"))
            return
        self._items.append(item)
        self._came.set()

    def _fail(self, error):
        self._items.append((None, None, error))
        self._came.set()


def hand_out(items):
    """[(generation, item)] to each its own."""
    for generation, item in items:
        generation.put(item)


class Runner:
    """The thread that drives an engine. `count`: sequences that requests hold, `limit` at most; both are the event
    loop's.
    """

    def __init__(self, engine, limit):
        self.engine, self.limit, self.count, self.healthy = engine, limit, 0, True
        self._inbox, self._live, self._out = queue.SimpleQueue(), {}, {}
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    @property
    def alive(self):
        """Whether anything submitted now would be computed."""
        return self._thread.is_alive()

    def submit(self, sequence):
        self._inbox.put((self._submitted, sequence))

    def cancel(self, sequence):
        self._inbox.put((self._cancelled, sequence))

    def close(self):
        """End the thread, after the round that it is in."""
        self._inbox.put((None, None))
        self._thread.join()

    def _run(self):
        while True:
            while not (self._inbox.empty() and (self._live or (self.healthy and self.engine.busy))):
                action, sequence = self._inbox.get()
                if action is None:
                    return
                action(sequence)
                self._hand_out()
            try:
                for handle, token in self.engine.step():
                    self._given(handle, token)
                self.healthy = True
            except Exception as error:  # every client is told, and the next ones get another try
                traceback.print_exc()
                self.healthy = False
                for sequence in list(self._live.values()):
                    self._cancelled(sequence, error)
            self._hand_out()

    def _send(self, sequence, token, row):
        """The last of a sequence is that without a token."""
        of = sequence.generation
        self._out.setdefault(of.loop, []).append((of, (sequence.index, token, row)))
        if token is None:
            sequence.generation = None  # each has the other, and would wait for the collector

    def _hand_out(self):
        """What has come goes to its event loop, which wakes up once."""
        for loop, items in self._out.items():
            with contextlib.suppress(RuntimeError):  # the loop has ended, and nobody listens
                loop.call_soon_threadsafe(hand_out, items)
        self._out.clear()

    def _submitted(self, sequence):
        try:
            sequence.handle = self.engine.submit(*sequence.arguments)
            self._live[sequence.handle] = sequence
        except Exception as error:
            self._send(sequence, None, error)

    def _given(self, handle, token):
        sequence = self._live.get(handle)
        if sequence is not None and token is not None:
            self._send(sequence, token, sequence.took(token))
        elif sequence is not None:
            del self._live[handle]
            self._send(sequence, None, handle.error)

    def _cancelled(self, sequence, error=None):
        if self._live.pop(sequence.handle, None) is not None:
            self.engine.cancel(sequence.handle)
            self._send(sequence, None, error)
