"""What the caller of the quantised kernels must know: formats that have them, and the sizes of packed activations.

Standard library only: read at every start, also by `unpack.py` and `quant*.py` when they compile.
"""

GROUP = 128  # activations of matvec are packed by groups of so many
GROUP_BYTES = 320
RUNS = frozenset(["q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "iq4_xs", "tq1_0", "tq2_0"])  # by 256, `unpack_runs.py`
RUNS_BYTES = 384
PANEL_BLOCKS = 128  # blocks of 32 of a weight panel of matmul
TRANSPOSES = 5120  # bytes per thread for making panels
SCRATCH = (
    PANEL_BLOCKS * (512 + 128 + 128) + TRANSPOSES
)  # bytes per thread for matmul: panel, scales, minima, transposes

# format -> what is subtracted from its unsigned values; K-quants' and _1 formats' minima make that 0
BIAS = {"q4_0": 8, "q4_1": 0, "q5_0": 16, "q5_1": 0, "q8_0": 128, "q4_k": 0, "q5_k": 0, "q6_k": 32}
BIAS |= {"q2_k": 0, "q3_k": 4, "iq4_nl": 128, "iq4_xs": 128, "mxfp4": 16, "nvfp4": 16, "q8_1": 128, "q8_k": 128}
BIAS |= {"iq2_xxs": 64, "iq2_xs": 64, "iq2_s": 64, "iq3_xxs": 64, "iq3_s": 16, "iq1_s": 16, "iq1_m": 16}
BIAS |= {"tq1_0": 1, "tq2_0": 1, "q1_0": 1, "q2_0": 1}
BIAS |= {f"a{bits}_32{wide}": 0 for bits in (8, 4, 3, 2, 1) for wide in ("", "w")} | {"bnb8": 128}
# formats with a scale for each half of 32; 2: and a minimum
HALVES = {"q6_k": 1, "q3_k": 1, "nvfp4": 1, "q2_k": 2, "iq2_xs": 1, "iq2_s": 1, "iq1_m": 1}

MINIMA = frozenset(["q4_1", "q5_1", "q4_k", "q5_k", "q2_k"] + [f for f in BIAS if f[0] == "a"])

# formats of floats, `quant_float.py` -> the stride by which activations of matvec lie there, ARRANGED_BYTES per group
STRIDES = {"nf4_64": 8, "nf4_32": 8, "fp4_64": 8, "fp4_32": 8, "f8_128": 2, "f8_32": 2}
ARRANGED_BYTES = 4 * GROUP

# formats that `encode.py` makes -> whether it has a quicker kernel for rows without importances
ENCODED = dict.fromkeys(["q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q8_1", "q8_k"], True)
ENCODED |= dict.fromkeys(["q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "iq4_nl", "iq4_xs", "mxfp4", "nvfp4"], False)
ENCODED |= dict.fromkeys(["tq1_0", "tq2_0", "q1_0", "q2_0"], False)
ENCODED |= dict.fromkeys(["iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq2_s", "iq3_xxs", "iq3_s"], False)


def row_bytes(k, runs=False):
    """Packed activations of a row of `k` for matvec."""
    return k // 256 * RUNS_BYTES if runs else -(-k // GROUP) * GROUP_BYTES


def block_bytes(tokens, halves):
    """One block of 32 of a tile of `tokens` rows for matmul."""
    return tokens * (48 if halves else 44)


def tiles_bytes(rows, k, tokens, halves):
    """Packed activations of `rows` rows of `k` for matmul."""
    return -(-rows // tokens) * (k // 32) * block_bytes(tokens, halves)


def panel_bytes(n, k, fmt):
    """All panels of a weight [n, k]: values, scales and, if the format has them, minima."""
    return -(-n // 16) * (k // 32) * (512 + (64 << (fmt in HALVES)) * (1 + (fmt in MINIMA)))
