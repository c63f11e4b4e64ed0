"""Transposing copies: square tiles read along one dim and written along another, turned in shared memory between.

They are elementwise.py's tiles, with an operand whose rows are adjacent. Words as in kernels_numba/index.py: source,
target; the size of the dim adjacent in the source, and of that adjacent in the target; the target's step along the
former, the source's along the latter, in elements; the product and the number of all other dims; per such dim,
innermost first, its size, the source's and the target's step.
"""

from .elementwise import Row, strided


def build_transpose(dtype):
    """What copies elements of a dtype (u8 to u64): a function (gpu, words)."""
    size, launch = int(dtype[1:]) // 8, strided(Row("copy", dtype, dtype, [dtype], "x"))

    def plan(gpu, words):
        source, target, rows, columns, down, across, outer, dims, *others = words
        given = [columns, rows, outer, dims, target, 1, size, down * size, 0, source, across, across * size, size, 0]
        for d in range(dims):
            length, step_source, step_target = others[3 * d : 3 * d + 3]
            given += [length, step_target * size, step_source * size]
        launch(gpu, given)

    return plan
