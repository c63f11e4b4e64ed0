"""Attention over caches in pages: a block table says which pages a sequence has, so that no sequence needs one stretch.

>>> import tensorlib
>>> k, v = tensorlib.randn(6, 2, 16, 32), tensorlib.randn(6, 2, 16, 32)  # 6 pages of 16 keys, 2 KV heads
>>> table, lengths = tensorlib.tensor([[4, 0], [2, 5]]), tensorlib.tensor([20, 7])
>>> paged_attention(tensorlib.randn(2, 8, 32), k, v, table, lengths).shape
(2, 8, 32)
"""

from tensorlib import backend, tape
from tensorlib.device import Array
from tensorlib.errors import DTypeError, ShapeError
from tensorlib.ops import create, flash, fused, index, movement
from tensorlib.ops._launch import cast, copy_into
from tensorlib.ops.exchange import tolist
from tensorlib.registry import FLOAT_ONLY, define


def _ref(np, q, k_pages, v_pages, block_table, lengths, cu_seq_q=None, scale=None, window=0, softcap=0.0):
    found, starts = [], list(range(len(lengths) + 1)) if cu_seq_q is None else cu_seq_q
    for i, n in enumerate(np.asarray(lengths).tolist()):
        k, v = (np.concatenate(list(pages[np.asarray(block_table)[i]]), 1) for pages in (k_pages, v_pages))
        some = q[starts[i] : starts[i + 1]]
        found.append(fused._attention_ref(np, some, k, v, n - len(some), scale, True, window, softcap, n))
    return np.concatenate(found, 0)


def _domain(s, dtype):
    sequences, pages, size, heads = s.integer(1, 3), s.integer(1, 2), s.integer(2, 4), s.pick([(1, 1), (2, 1), (4, 2)])
    counts, width = [s.integer(1, 2) for _ in range(sequences)], s.integer(1, 5)
    lengths = [s.integer(n, pages * size) for n in counts]
    table = [[s.integer(0, 4) for _ in range(pages)] for _ in range(sequences)]
    starts = [sum(counts[:n]) for n in range(sequences + 1)]
    q = fused.adjacent_array(s, (starts[-1], heads[0], width), low=-2, high=2)
    caches = (fused.adjacent_array(s, (5, heads[1], size, width), low=-2, high=2) for _ in range(2))
    return (q, *caches, table, lengths, starts), {"window": s.pick([0, 0, 2]), "softcap": s.pick([0.0, 2.0])}


@define("composite", FLOAT_ONLY, _ref, 3, _domain)
def paged_attention(q, k_pages, v_pages, block_table, lengths, cu_seq_q=None, scale=None, window=0, softcap=0.0):
    """Causal `attention` of sequences whose keys lie in pages: q [total, H, D], pages [P, G, rows, D] -> [total, H, D].

    block_table [B, most]: the pages of each of B sequences, in order; lengths [B]: how many keys it has, the last of
    them its last query's. cu_seq_q [B + 1]: where the queries of each begin in q, and the total; by default each has
    one. All three are lists or integer tensors; on GPUs tensors are read by the kernel alone, and a graph may replay
    it. scale, window and softcap as in `attention`. Raises ShapeError, DTypeError.

    Kwon et al., arXiv:2309.06180. On GPUs one kernel, on the CPU two where every sequence has one query (f32) and pages
    have a multiple of 16 rows, which read tensors when they run: a capture may replay them; a page that does not exist
    gives NaN. Else a gather per sequence.
    """
    sequences = _count(block_table)
    counts = (sequences, _count(lengths), None if cu_seq_q is None else _count(cu_seq_q) - 1)
    _check(q, k_pages, v_pages, counts)
    recording = tape.used and tape.mode.recording and any(map(tape.live, (q, k_pages, v_pages)))
    if q.device.type != "cpu" and q.dtype.name != "f64" and not recording:
        starts = range(sequences + 1) if cu_seq_q is None else cu_seq_q
        return flash.paged(q, k_pages, v_pages, block_table, lengths, starts, scale, window, softcap)
    if cu_seq_q is None and q.dtype.name == "f32" and k_pages.shape[2] % 16 == 0 and not recording:
        return _one_each(q, k_pages, v_pages, block_table, lengths, scale, window, softcap)
    table, lengths = _listed(block_table), _listed(lengths)
    starts = list(range(sequences + 1)) if cu_seq_q is None else _listed(cu_seq_q)
    if (starts[0], starts[-1]) != (0, q.shape[0]):
        got = f"queries from {starts[0]} to {starts[-1]}"
        raise ShapeError("paged_attention", got, f"from 0 to {q.shape[0]}, all of q", "leave out the others of q")
    wide = q.dtype if q.dtype.name == "f64" else "f32"
    rows, parts, out = cast(q, wide), [], None if recording else type(q).empty(q.shape, wide, q.device)
    for i, n in enumerate(lengths):
        pages = create.tensor(type(q), table[i][: max(1, -(-n // k_pages.shape[2]))], dtype="i64", device=q.device)
        k, v = (_gathered(x, pages) for x in (k_pages, v_pages))
        start, count = starts[i], starts[i + 1] - starts[i]
        some = movement.narrow(rows, 0, start, count) if recording else _view(rows, start, count)
        part = fused.attention(some, k, v, n - count, scale, True, window, softcap, n)
        parts.append(part) if recording else copy_into(_view(out, start, count), part)
    return cast(movement.cat(parts, 0) if recording else out, q.dtype)


def _one_each(q, k, v, table, lengths, scale, window, softcap):
    """A query per sequence, on the CPU: see kernels_numba/attention_paged.py."""
    q, k, v = map(flash._adjacent, (q, k, v))
    table, lengths = (flash._integers(x, q) for x in (table, lengths))
    (count, heads, width), (pages, groups, size, _), most = q.shape, k.shape, table.shape[1]
    out, row, threads = type(q).empty(q.shape, "f32", q.device), 4 * (-(-width // 16) * 16), backend.threads("cpu")
    together = min(4, heads // groups)
    per_thread = together * row + 16 * size + 1024
    records = fused._scratch(count * heads * most * (row + 64), q.device)
    scratch = fused._scratch(threads * per_thread, q.device)
    words = [*q.shape[:2], groups, width, 0, 0, 0, 0, size, 1, window]
    words += [float(width**-0.5 if scale is None else scale), float(softcap), *flash.steps(q)]
    for x in (k, v):
        words += [x.ptr, *(s * x.dtype.itemsize for s in x.strides[1:3])]
    words += [records.ptr, size, most, scratch.ptr, per_thread, threads, table.ptr, lengths.ptr]
    words += [*(x.strides[0] * x.dtype.itemsize for x in (k, v)), pages, *flash.steps(out)]
    reads, name = (q, k, v, table, lengths), fused._name("paged_attention", k)
    decode = backend.kernel("attention_paged", "decode", name, width, together)
    backend.launch(decode, words, count * heads * most * size * width // 8, reads, (records, scratch))
    merge = backend.kernel("attention_paged", "merge")
    backend.launch(merge, words, count * heads * most * width // 8, (lengths, records), (out, records))
    return out


def _view(x, start, count):
    """`movement.narrow`, which would keep each view for the next time: few of them come twice."""
    return Array.view(x, x.layout.narrow(0, start, count))


def _gathered(x, pages):
    """Pages of a cache [P, G, rows, D], one behind the other: [G, n * rows, D]"""
    found = movement.permute(index.index_select(x, 0, pages), 1, 0, 2, 3)
    return movement.reshape(found, (x.shape[1], -1, x.shape[3]))


def _listed(x):
    return tolist(x) if hasattr(x, "dtype") else list(x)


def _count(x):
    return x.shape[0] if hasattr(x, "shape") else len(x)


def _check(q, k, v, counts):
    """ShapeError unless all fit; counts: rows of the block table, lengths, sequences of queries (None: one each)."""
    counts = (*counts[:2], q.shape[0] if q.ndim and counts[2] is None else counts[2])
    fine = q.ndim == 3 and k.ndim == 4 and k.shape == v.shape and q.shape[2] == k.shape[3] <= 256
    if not fine or q.shape[1] % k.shape[1] or not 0 < counts[0] == counts[1] == counts[2]:
        got = f"q {q.shape}, pages {k.shape} and {v.shape}, {counts} rows of pages, lengths and sequences"
        raise ShapeError(
            "paged_attention", got, "q [total, H, D], pages [P, G, rows, D]", "give one of each a sequence"
        )
    if k.dtype is not v.dtype:
        raise DTypeError("paged_attention", f"pages of {k.dtype} and {v.dtype}", "one dtype", "convert one of them")
