"""SentencePiece byte-pair encoding as llama.cpp does it for GGUF's "llama" vocabularies: best score first, bytes last.

Plain Python, because the vocabulary holds scores and no list of merges: deriving merges for the tokenizers library
takes longer than encoding most prompts (2 us a character here), and would order ties between scores otherwise.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush

SPACE = "▁"


def encode(text: str, ids: dict[str, int], scores: list[float], byte_ids: list[int], out: list[int]) -> None:
    """Append to `out` the tokens of `text`, whose spaces are already written as "▁".

    The two neighbours whose union has the highest score are merged first, the leftmost of equals; a character that is
    no token becomes its UTF-8 bytes (`byte_ids`, 256 of them, -1 where the vocabulary has none).
    """
    parts = list(text)
    n = len(parts)
    before, after = list(range(-1, n - 1)), [*range(1, n), -1]
    queue = []
    for i in range(n - 1):
        both = parts[i] + parts[i + 1]
        found = ids.get(both)
        if found is not None:
            queue.append((-scores[found], i, i + 1, both))
    heapify(queue)
    while queue:
        _, left, right, both = heappop(queue)
        if not parts[left] or not parts[right] or parts[left] + parts[right] != both:
            continue  # one of them has been merged with something else since
        parts[left], parts[right] = both, ""
        following = after[left] = after[right]
        if following >= 0:
            before[following] = left
        for i, j in ((before[left], left), (left, following)):
            if i >= 0 and j >= 0:
                both = parts[i] + parts[j]
                found = ids.get(both)
                if found is not None:
                    heappush(queue, (-scores[found], i, j, both))
    for part in parts:
        if part:
            found = ids.get(part)
            if found is not None:
                out.append(found)
            else:
                out.extend(b for byte in part.encode() if (b := byte_ids[byte]) >= 0)
