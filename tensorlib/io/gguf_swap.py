"""Numbers of more than a byte inside the blocks of GGML's formats: where they are, and blocks in the other byte order.

Big-endian files hold blocks as a big-endian machine has them in memory, so that what ggml reads as a 16 or 32-bit
number is swapped and the rest is not. iq2_xxs is read both ways by ggml, so no big-endian file of it means anything.
"""

from __future__ import annotations

# format -> fields: (offset, struct code, count), in ggml-common.h's order
FIELDS = {
    "f32": [(0, "f", 1)],
    "f16": [(0, "e", 1)],
    "bf16": [(0, "H", 1)],
    "f64": [(0, "d", 1)],
    "i8": [],
    "i16": [(0, "h", 1)],
    "i32": [(0, "i", 1)],
    "i64": [(0, "q", 1)],
    "q4_0": [(0, "e", 1)],
    "q4_1": [(0, "e", 2)],
    "q5_0": [(0, "e", 1), (2, "I", 1)],
    "q5_1": [(0, "e", 2), (4, "I", 1)],
    "q8_0": [(0, "e", 1)],
    "q8_1": [(0, "e", 2)],
    "q1_0": [(0, "e", 1)],
    "q2_0": [(0, "e", 1)],
    "q2_k": [(80, "e", 2)],
    "q3_k": [(108, "e", 1)],
    "q4_k": [(0, "e", 2)],
    "q5_k": [(0, "e", 2)],
    "q6_k": [(208, "e", 1)],
    "q8_k": [(0, "f", 1), (260, "h", 16)],
    "iq2_xxs": [(0, "e", 1)],
    "iq2_xs": [(0, "e", 1), (2, "H", 32)],
    "iq2_s": [(0, "e", 1)],
    "iq3_xxs": [(0, "e", 1), (66, "I", 8)],
    "iq3_s": [(0, "e", 1)],
    "iq1_s": [(0, "e", 1), (34, "H", 8)],
    "iq1_m": [(48, "H", 4)],
    "iq4_nl": [(0, "e", 1)],
    "iq4_xs": [(0, "e", 1), (2, "H", 1)],
    "tq1_0": [(52, "e", 1)],
    "tq2_0": [(64, "e", 1)],
    "mxfp4": [],
    "nvfp4": [],
}
UNDEFINED = ("iq2_xxs",)


def swapped(data, format):
    """The bytes of whole blocks of `format` in the other byte order: a new uint8 NumPy array."""
    import numpy as np

    blocks = np.frombuffer(data, np.uint8).reshape(-1, format.nbytes).copy()
    for offset, code, count in FIELDS[format.name]:
        size = np.dtype(code).itemsize
        field = blocks[:, offset : offset + size * count]
        field[:] = field.reshape(-1, count, size)[:, :, ::-1].reshape(-1, size * count)
    return blocks.reshape(-1)


def not_finite(data, format):
    """How many floats (elements, or scales of blocks) in the bytes of whole blocks are NaN or infinite."""
    import numpy as np

    blocks, count = np.frombuffer(data, np.uint8).reshape(-1, format.nbytes), 0
    for offset, code, number in FIELDS[format.name]:
        if code in "efd":
            size = np.dtype(code).itemsize * number
            values = np.ascontiguousarray(blocks[:, offset : offset + size]).view(np.dtype("<" + code))
            count += values.size - int(np.count_nonzero(np.isfinite(values)))
        elif format.name == "bf16":
            count += int(np.count_nonzero((blocks.view("<u2") & 0x7F80) == 0x7F80))
    return count
