"""`/v1/embeddings`: vectors of texts, OpenAI's shapes around zoo/embed.py."""

import asyncio
import base64
import traceback
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from zoo.serve_errors import ApiError, busy
from zoo.serve_request import EMBEDDING, fields


async def embeddings(service, body):
    """The answer to a request."""
    asked = fields(body, EMBEDDING)
    encoder = service.vectors.encoder
    rows = await service.prepared(_rows, encoder, asked["input"], asked["prompt_name"])
    found = await service.vectors.of(rows)
    if asked["dimensions"] not in (None, found.shape[1]):
        raise ApiError(400, f"dimensions: this model makes {found.shape[1]}", "dimensions", "invalid_value")
    if asked["encoding_format"] == "base64":
        shown = [base64.b64encode(row.astype("<f4").tobytes()).decode() for row in found]
    else:
        shown = found.tolist()
    count = sum(len(ids) for ids, _ in rows)
    return {
        "object": "list",
        "model": service.names["embed"],
        "data": [{"object": "embedding", "index": i, "embedding": row} for i, row in enumerate(shown)],
        "usage": {"prompt_tokens": count, "total_tokens": count},
    }


def _rows(encoder, inputs, name):
    """(ids, how many of the first are in no pool) of each input. Before texts stands the prompt of a name, by default
    the model's, and they are cut to the model's length as sentence-transformers does; ids that do not fit are refused.
    """
    known, prompts = encoder.tokenizer.n_vocab, encoder.prompts
    if name is not None and name not in prompts.texts:
        there = ", ".join(prompts.texts) or "none"
        raise ApiError(400, f"prompt_name: this model's are {there}", "prompt_name", "invalid_value")
    before = prompts.text(name)
    skipped = prompts.skipped(before, encoder.tokenizer)
    for each in inputs:
        if not isinstance(each, str):
            if len(each) > encoder.max_length:
                got = f"{len(each)} tokens; the model takes {encoder.max_length}"
                raise ApiError(400, f"input: {got}", "input", "context_length_exceeded")
            if not 0 <= min(each) <= max(each) < known:
                raise ApiError(400, f"input: token ids are from 0 to {known - 1}", "input", "invalid_value")
    return [(encoder.tokenizer.encode(before + x), skipped) if isinstance(x, str) else (x, 0) for x in inputs]


class Vectors:
    """Requests for embeddings, those that come together in one batch, on a thread of their own."""

    def __init__(self, encoder, limit):
        self.encoder, self.limit = encoder, limit
        self._waiting, self._task, self._thread = [], None, ThreadPoolExecutor(1, "encoder")

    async def of(self, rows):
        """float32 NumPy [B, D] of (ids, how many of the first are in no pool)."""
        if self._waiting and sum(len(other) for other, _ in self._waiting) + len(rows) > self.limit:
            raise busy()
        future = asyncio.get_running_loop().create_future()
        self._waiting.append((rows, future))
        if self._task is None:
            self._task = asyncio.create_task(self._work())
        return await future

    async def _work(self):
        loop = asyncio.get_running_loop()
        try:
            while self._waiting:
                batch = [(rows, future) for rows, future in self._waiting if not future.done()]
                self._waiting = []
                if not batch:
                    continue
                try:
                    found = await loop.run_in_executor(
                        self._thread, self._embed, [r for rows, _ in batch for r in rows]
                    )
                except Exception as error:
                    traceback.print_exc()
                    found = error
                for rows, future in batch:
                    if not future.done():
                        future.set_exception(found) if isinstance(found, Exception) else future.set_result(
                            found[: len(rows)]
                        )
                    found = found if isinstance(found, Exception) else found[len(rows) :]
        finally:
            self._task = None

    def _embed(self, rows):
        skips = np.array([skip for _, skip in rows])
        found = None
        for skip in np.unique(skips):  # few: those of a model's prompts, and 0 for ids
            places = np.flatnonzero(skips == skip)
            vectors = self.encoder.embed([rows[i][0] for i in places], skip=int(skip)).cpu().numpy()
            found = np.empty((len(rows), vectors.shape[1]), np.float32) if found is None else found
            found[places] = vectors
        return found

    def close(self):
        self._thread.shutdown()
