"""GPTQ and AWQ checkpoints: linears of whole numbers packed into int32 words, with a scale and a zero per group.

GPTQ: `qweight` [K * bits / 32, N] packs 32 weights of a column into `bits` words, as one string of bits, lowest first;
`qzeros` [groups, N * bits / 32] packs zeros along its rows alike; `scales` [groups, N]; `g_idx` [K], if there, is the
group of each column of the weight (with desc_act in any order). Bits 2, 3, 4, 8. In version 1 ("gptq") a zero is stored
minus 1, modulo 2 ** bits, as GPTQModel reads it. (Most kernels add the 1 without the modulo; they differ for stored
zeros of 2 ** bits - 1, which symmetric models have not.) In "gptq_v2" it is stored as it is. A g_idx of zeros alone, in
a checkpoint of several groups, means none, as in ExLlama.

With desc_act the columns are stored sorted by group, their order beside them (`permuted.py`), so that a block has one
scale.

AWQ, 4 bits. "gemm": `qweight` [K, N / 8], `qzeros` [groups, N / 8], whose words hold columns 0, 2, 4, 6, 1, 3, 5, 7
from the lowest bits on; `scales` [groups, N]. "gemv": `qweight` [N, K / 8] in order, `qzeros` [N, words] and `scales`
[N, 8 * words], of which the first K / group columns count. ("exllama" and "ipex" name kernels for files of "gemm".)

A weight is (q - zero) * scale in f32, which is exact for f16 scales; peers compute it in f16 and round once.
"""

import numpy as np

from tensorlib.quant.permuted import PermutedQTensor
from tensorlib.quant.repack import BLOCK, affine, unpacked

WORDS = ("I32", "U32")
BITS = (2, 3, 4, 8)
AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)  # where in a word column 0, 1, ... 7 is
VERSIONS = {"gptq": 1, "gptq_v2": 0}  # checkpoint_format -> what is added to a stored zero


def _words(count, bits):
    return -(-count * bits // 32)


class GPTQ:
    """One linear. `shape`, `bits` and `groups` come from the shapes of the parts; FormatError where these differ."""

    index = ".g_idx"

    def __init__(self, parts):
        self.parts = parts
        version = parts.config.get("checkpoint_format") or parts.config.get("format") or "gptq"
        if type(version) is not str or version not in VERSIONS:
            got, fix = f"checkpoint_format {version!r:.80}", "save the model in the format gptq"
            raise parts.error(".qweight", got, " or ".join(VERSIONS), fix)
        self.added = VERSIONS[version]
        height, n = parts.info(".qweight", WORDS, 2).shape
        self.groups = parts.info(".scales", ("F16", "BF16", "F32"), 2).shape[0]
        self.bits = bits = self._bits(n, parts.info(".qzeros", WORDS, 2).shape)
        k = parts.info(".g_idx", ("I32", "I64"), 1).shape[0] if ".g_idx" in parts else height * 32 // bits
        if height != _words(k, bits) or not n or not k:
            raise parts.error(
                ".qweight", f"shape {(height, n)}", f"{_words(k, bits)} words for {k} columns, {bits} bits"
            )
        self.shape = n, parts.whole_blocks(".qweight", k, "columns")
        self.group = self._group(k)

    def _bits(self, n, shape):
        found = [bits for bits in BITS if shape[1] == _words(n, bits)]
        said = self.parts.config.get("bits", self.parts.config.get("w_bit"))
        if type(said) is int and said in found:
            return said
        if len(found) == 1:
            return found[0]
        raise self.parts.error(".qzeros", f"shape {shape}", f"zeros of 2, 3, 4 or 8 bits for {n} rows of weights")

    def _group(self, k):
        """Columns per group, if all but the last group have as many."""
        said = self.parts.config.get("group_size", self.parts.config.get("q_group_size"))
        sizes = [said if type(said) is int and said > 0 else k, -(-k // max(self.groups, 1))]
        for size in sizes:
            if -(-k // size) == self.groups:
                return size
        raise self.parts.error(".scales", f"{self.groups} groups", f"{-(-k // sizes[0])}, of {sizes[0]} columns each")

    def __call__(self):
        """The weight: a QTensor, or a PermutedQTensor."""
        (n, k), bits, parts = self.shape, self.bits, self.parts
        words = parts.array(".qweight", WORDS, (_words(k, bits), n))
        scale = parts.floats(".scales", (self.groups, n))
        zeros = unpacked(parts.array(".qzeros", WORDS, (self.groups, _words(n, bits))), bits)[:, :n]
        zeros = zeros + np.uint8(self.added) & np.uint8((1 << bits) - 1)
        order, group = self._order()

        def rows(start, stop):
            codes = unpacked(np.ascontiguousarray(words[:, start:stop].T), bits)[:, :k]
            return codes if order is None else codes[:, order]

        made = affine(rows, self.shape, bits, scale.T[:, group], zeros.T[:, group])
        return made if order is None else PermutedQTensor.over(made, order)

    def _order(self):
        """(columns sorted by group, or None where they are; the group of every block)."""
        k = self.shape[1]
        plain = np.arange(k) // self.group
        if self.index not in self.parts:
            return None, self._uniform(plain)
        kind = self.parts.info(self.index, ("I32", "I64")).format
        index = self.parts.array(self.index, (kind,), (k,)).astype(np.int64)
        if index.min() < 0 or index.max() >= self.groups:
            raise self.parts.error(self.index, f"{index.min()} to {index.max()}", f"groups 0 to {self.groups - 1}")
        if not index.any():
            index = plain
        if (np.diff(index) >= 0).all():
            return None, self._uniform(index)
        order = np.argsort(index, kind="stable")
        return order, self._uniform(index[order])

    def _uniform(self, index):
        """The group of every 32 columns, which must be of one."""
        blocks = index.reshape(-1, BLOCK)
        if (blocks != blocks[:, :1]).any():
            raise self.parts.error(".scales", "groups that divide a block", f"groups of a multiple of {BLOCK} columns")
        return blocks[:, 0]


class AWQ:
    """One linear of either layout; FormatError where the parts differ."""

    def __init__(self, parts):
        self.parts, config = parts, parts.config
        said = str(config.get("version") or "gemm").lower()
        self.version = "gemm" if said in ("exllama", "ipex") else said
        if self.version not in ("gemm", "gemv") or config.get("bits", config.get("w_bit", 4)) != 4:
            got = f"version {self.version!r:.80}, bits {config.get('bits', config.get('w_bit'))!r:.20}"
            raise parts.error(".qweight", got, "version gemm or gemv, 4 bits", "quantise the model as one of these")
        if not config.get("zero_point", True):
            raise parts.error(".qzeros", "zero_point false", "zero points")
        high, wide = parts.info(".qweight", WORDS, 2).shape
        n, k = (wide * 8, high) if self.version == "gemm" else (high, wide * 8)
        if not n or not k:
            raise parts.error(".qweight", f"shape {(high, wide)}", "at least one weight")
        self.shape = n, parts.whole_blocks(".qweight", k, "columns")
        self.groups = self._groups(k)

    def _groups(self, k):
        said = self.parts.config.get("group_size", self.parts.config.get("q_group_size", 128))
        high, wide = self.parts.info(".scales", ("F16", "BF16", "F32"), 2).shape
        size = k if said == -1 else said
        if self.version == "gemm":  # what the shapes say holds for a linear that the config does not describe
            size = k // high if high and k % high == 0 else 0
        fits = type(size) is int and size > 0 and k % size == 0 and size % BLOCK == 0
        if not fits or (self.version == "gemv" and k // size > wide):
            got = f"scales of shape {(high, wide)} and group_size {said!r:.20}"
            raise self.parts.error(".scales", got, f"groups of a multiple of {BLOCK} that divide {k} columns")
        return k // size

    def __call__(self):
        """The weight: a QTensor."""
        (n, k), parts, groups = self.shape, self.parts, self.groups
        if self.version == "gemm":
            words = parts.array(".qweight", WORDS, (k, n // 8))
            scale = parts.floats(".scales", (groups, n)).T
            zero = _ordered(parts.array(".qzeros", WORDS, (groups, n // 8)))

            def rows(start, stop):
                return _ordered(words[:, start // 8 : stop // 8])
        else:
            width = parts.info(".qzeros", WORDS, 2).shape[1]
            words = parts.array(".qweight", WORDS, (n, k // 8))
            scale = parts.floats(".scales", (n, 8 * width))[:, :groups]
            zero = unpacked(parts.array(".qzeros", WORDS, (n, width)), 4)[:, :groups]

            def rows(start, stop):
                return unpacked(words[start:stop], 4)

        group = np.arange(0, k, BLOCK) // (k // groups)
        return affine(rows, self.shape, 4, scale[:, group], zero[:, group])


def _ordered(words):
    """Codes [N, K] of AWQ's words [K, N / 8]."""
    data = np.ascontiguousarray(words.T).view(np.uint8).reshape(words.shape[1], len(words), 4)
    out = np.empty((len(data), 8, len(words)), np.uint8)
    for i, at in enumerate(AWQ_ORDER):
        np.bitwise_and(data[..., at // 2] >> at % 2 * 4, 15, out=out[:, i])
    return out.reshape(-1, len(words))
