"""Continuous batching (Orca, Yu et al., OSDI 2022): one step of the model serves all streams, which come and go at any
step. Keys and values lie in pages (arXiv:2309.06180); streams that begin alike share them.
"""

import threading
from collections import deque

import tensorlib
from tensorlib import nn
from zoo.batch import Batch
from zoo.generate import CHUNK, GREEDY
from zoo.steps import room

USUAL = 1024  # tokens of a stream that pages are made for by default


class Handle:
    """A generation. `ids`: what was given so far; `finish_reason`, once it has ended: "stop", "length", "cancelled", or
    "error", which a processor raised (`error`). `all_ids`: with the prompt.
    """

    def __init__(self, prompt, max_tokens, sampler, stop_ids, processors):
        self.prompt, self.max_tokens, self.config, self.stop_ids = prompt, max_tokens, sampler, frozenset(stop_ids)
        self.processors, self.all_ids = list(processors), list(prompt)
        self.finish_reason = self.error = self.sampler = self.sequence = None
        self.cancelled, self.fresh = False, True  # fresh: its last token is not one that was just drawn

    @property
    def ids(self):
        """The tokens behind the prompt."""
        return self.all_ids[len(self.prompt) :]


class Engine:
    """Streams of one TextModel. `submit` and `cancel` from any thread; one thread calls `step`, `wait` when not `busy`.

    streams: how many run at once, others wait. context: tokens of the longest stream; tokens: of all together that
    there is memory for. When they are not enough, the youngest stream waits again, and is computed anew.
    Any decoder: of those that keep states no beginnings are shared. DTypeError for encoder-decoders.
    """

    def __init__(self, model, streams=8, context=None, cache_dtype="f16", tokens=None, page_size=64):
        self.model, self.streams = model, streams
        self.context = min(context or model.context_length, model.context_length)
        self.tokens = max(self.context, streams * min(self.context, USUAL) if tokens is None else tokens)
        self._batch = Batch(model, streams, self.context, self.tokens, cache_dtype, page_size)
        self._cache = self._batch.cache
        self._inbox, self._waiting, self._active, self._samplers = deque(), deque(), [], []
        self._wake = threading.Event()

    def submit(self, prompt_ids, max_tokens=None, sampler=GREEDY, stop_ids=(), processors=()):
        """A Handle whose tokens `step` gives: as `TextModel.generate`. ContextError at once for what cannot fit."""
        prompt = list(prompt_ids)
        count = room("submit", prompt, max_tokens, self.context)
        handle = Handle(prompt, count, sampler, stop_ids, processors)
        self._inbox.append(handle)
        self._wake.set()
        return handle

    def cancel(self, handle):
        """Ends a stream at the next step; nothing if it has ended."""
        handle.cancelled = True
        self._wake.set()

    @property
    def queued(self):
        """How many wait for a place."""
        return len(self._inbox) + len(self._waiting)

    @property
    def busy(self):
        """Whether there is something to do."""
        return bool(self._inbox or self._waiting or self._active)

    def wait(self, timeout=None):
        """Sleeps until there is something to do, at most so many seconds; whether there is."""
        if not self.busy:
            self._wake.wait(timeout)
        self._wake.clear()
        return self.busy

    def step(self):
        """One round: streams join, part of the prompts, one token of every stream. [(handle, token)], and (handle,
        None) for each that has ended.
        """
        events = []
        while self._inbox:
            self._waiting.append(self._inbox.popleft())
        for handle in [h for h in (*self._active, *self._waiting) if h.cancelled or h.max_tokens == 0]:
            self._end(handle, "cancelled" if handle.cancelled else "length", events)
        self._join()
        self._prompts(events)
        self._tokens(events)
        return events

    def _join(self):
        while self._waiting and len(self._active) < self.streams:
            handle = self._waiting[0]
            handle.sequence, _ = self._cache.begin(handle.all_ids)
            if sum(self._missing(h) for h in (*self._active, handle)) > self._cache.free_pages:
                self._leave(handle)
                return
            self._active.append(self._waiting.popleft())
            if handle.sampler is None:
                made = (self.model.config.vocab_size, self.context, self.model.device)
                handle.sampler = self._samplers.pop() if self._samplers else nn.Sampler(*made)
                handle.sampler.reset(handle.prompt, *handle.config)

    def _missing(self, handle):
        """Pages until its next token has a place."""
        count = len(handle.all_ids) + 1 - self._cache.length(handle.sequence)
        return self._cache.needed(handle.sequence, count)

    def _prompts(self, events):
        """Up to CHUNK tokens that streams have and the cache has not, in the order of their coming, all at once."""
        left, parts = CHUNK, []
        for handle in [h for h in self._active if h.fresh]:
            held = self._cache.length(handle.sequence)
            if part := handle.all_ids[held : held + left]:
                parts.append((handle, part))
                left -= len(part)
        parts = self._room(parts)
        if parts:
            rows = self._batch.prompts([handle.sequence for handle, _ in parts], [part for _, part in parts])
            for (handle, _), logits in zip(parts, rows):
                self._cache.known(handle.sequence, handle.all_ids)
                if self._cache.length(handle.sequence) == len(handle.all_ids):
                    handle.fresh = False
                    self._choose(handle, logits, events)

    def _tokens(self, events):
        """A step of all whose last token alone is not in the cache."""
        ready = self._room([(h, h.all_ids[-1:]) for h in self._active if not h.fresh])
        if ready:
            rows = self._batch.step([h.sequence for h, _ in ready], [part[0] for _, part in ready])
            for (handle, _), logits in zip(ready, rows):
                self._cache.known(handle.sequence, handle.all_ids)
                self._choose(handle, logits, events)

    def _room(self, parts):
        """Those of `parts`, streams with their next tokens, that there are pages for: while there are too few, the
        youngest stream goes.
        """
        while sum(self._cache.needed(h.sequence, len(part)) for h, part in parts) > self._cache.free_pages:
            youngest = self._active[-1]
            self._leave(youngest)
            self._waiting.appendleft(youngest)
            parts = [(h, part) for h, part in parts if h is not youngest]
        return parts

    def _choose(self, handle, logits, events):
        try:
            token = self._chosen(handle, logits)
        except Exception as error:  # a processor's, which is somebody else's code: the other streams go on
            handle.error = error
            self._end(handle, "error", events)
            return
        if token in handle.stop_ids:
            self._end(handle, "stop", events)
            return
        handle.all_ids.append(token)
        events.append((handle, token))
        if len(handle.all_ids) == len(handle.prompt) + handle.max_tokens:
            self._end(handle, "length", events)

    def _chosen(self, handle, logits):
        if handle.processors:
            scores = logits[-1].cpu().numpy()  # the logits themselves where they are the CPU's
            for processor in handle.processors:
                processor(handle.all_ids, scores)
            if logits.device.type != "cpu":
                logits = tensorlib.from_numpy(scores[None]).to(logits.device)
        handle.sampler(logits)
        return handle.sampler.token_id()

    def _leave(self, handle):
        """Its pages are free; what they have may still be found by who begins alike."""
        self._cache.free(handle.sequence)
        handle.sequence, handle.fresh = None, True
        self._active = [h for h in self._active if h is not handle]

    def _end(self, handle, reason, events):
        if handle.sequence is not None:
            self._leave(handle)
        else:
            self._waiting.remove(handle)
        if handle.sampler is not None:
            self._samplers.append(handle.sampler)
            handle.sampler = None
        handle.finish_reason = reason
        events.append((handle, None))
