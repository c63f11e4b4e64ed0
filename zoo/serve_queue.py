"""Between the event loop, where requests live, and the threads that compute for them.

A request has a Generation with a Sequence for each of its answers; the Runner's thread drives the engine and sends
what comes back through `call_soon_threadsafe`. Nothing here waits for a client: who reads too slowly is cancelled.
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
        self.handle = self.send = None
        self._ids, self._logs = list(ids), logs

    def took(self, token):
        """The engine chose a token."""
        row = None
        self._ids.append(token)
        if self._logs is not None:
            self._logs.finish(self._ids)
            row = self._logs.rows.pop(0)
        self.send(token, row)

    def ended(self, error):
        """There is no more, for a reason if `error` is not None."""
        self.send(None, error)


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
        self._loop, self._runner, self._sequences = asyncio.get_running_loop(), runner, sequences
        self._items, self._deadline, self._closed = asyncio.Queue(), deadline, False
        runner.count += len(sequences)
        for index, sequence in enumerate(sequences):
            sequence.send = lambda token, row, index=index: self._sent((index, token, row))
            runner.submit(sequence)

    def close(self):
        """Give up what has not ended. May be called again."""
        if not self._closed:
            self._closed = True
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
            try:
                async with asyncio.timeout_at(self._deadline):  # Python 3.11's wait_for may swallow a cancellation
                    items = [await self._items.get()]
            except TimeoutError:
                raise over() from None
            while not self._items.empty():
                items.append(self._items.get_nowait())
            for _, token, error in items:
                if token is None and error is not None:
                    raise error
                left -= token is None
            yield items

    def _sent(self, item):
        with contextlib.suppress(RuntimeError):  # the loop has ended, and nobody listens
            self._loop.call_soon_threadsafe(self._put, item)

    def _put(self, item):
        if self._closed:
            return
        if self._items.qsize() >= BUFFER * len(self._sequences):
            self.close()
            item = None, None, ApiError(503, "The answer was read too slowly", code="slow_reader")
        self._items.put_nowait(item)


class Runner:
    """The thread that drives an engine. `count`: sequences that requests hold, `limit` at most; both are the event
    loop's.
    """

    def __init__(self, engine, limit):
        self.engine, self.limit, self.count, self.healthy = engine, limit, 0, True
        self._inbox, self._live = queue.SimpleQueue(), {}
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
            try:
                for handle, token in self.engine.step():
                    self._given(handle, token)
                self.healthy = True
            except Exception as error:  # every client is told, and the next ones get another try
                traceback.print_exc()
                self.healthy = False
                for sequence in list(self._live.values()):
                    self._cancelled(sequence, error)

    def _submitted(self, sequence):
        try:
            sequence.handle = self.engine.submit(*sequence.arguments)
            self._live[sequence.handle] = sequence
        except Exception as error:
            sequence.ended(error)

    def _given(self, handle, token):
        sequence = self._live.get(handle)
        if sequence is not None and token is not None:
            sequence.took(token)
        elif sequence is not None:
            del self._live[handle]
            sequence.ended(handle.error)

    def _cancelled(self, sequence, error=None):
        if self._live.pop(sequence.handle, None) is not None:
            self.engine.cancel(sequence.handle)
            sequence.ended(error)
