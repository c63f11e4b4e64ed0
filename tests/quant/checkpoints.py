"""Quantised checkpoints of small linears, packed word by word as their libraries document it, and their weights.

Each builder returns (config, parts, weight): parts maps names to (safetensors dtype, array), the weight is f32 [N, K].
"""

import json
import struct

import numpy as np

from tensorlib.quant.private import FP4, NF4

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def write(folder, config, parts):
    """A folder with config.json and model.safetensors."""
    folder.mkdir(exist_ok=True)
    header, data = {}, b""
    for name, (dtype, array, *shape) in parts.items():
        raw = np.ascontiguousarray(array).tobytes()
        header[name] = {
            "dtype": dtype,
            "shape": list(shape[0] if shape else np.shape(array)),
            "data_offsets": [len(data), len(data) + len(raw)],
        }
        data += raw
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)
    (folder / "config.json").write_text(json.dumps({"quantization_config": config}))
    return folder


def bf16(values):
    """The bits of floats cut to bf16."""
    return (np.asarray(values, np.float32).view(np.uint32) >> 16).astype(np.uint16)


def floats(kind, values):
    """(what a file holds of these floats, their values)."""
    if kind == "BF16":
        bits = bf16(values)
        return bits, (bits.astype(np.uint32) << 16).view(np.float32)
    held = np.asarray(values, np.float32).astype({"F16": np.float16, "F32": np.float32}[kind])
    return held, held.astype(np.float32)


def words(codes, bits):
    """Codes [count, columns] packed along the first axis into words of 32 bits."""
    rows = np.asarray(codes, np.uint64)
    out = []
    if bits == 3:  # 32 codes in 3 words: ten, two bits of the 11th | its last, ten, a bit of the 22nd | its others, ten
        assert len(rows) % 32 == 0
        for r in range(0, len(rows), 32):
            c = rows[r : r + 32]
            out.append(sum(c[i] << 3 * i for i in range(10)) | (c[10] & 3) << 30)
            out.append(c[10] >> 2 | sum(c[11 + i] << 3 * i + 1 for i in range(10)) | (c[21] & 1) << 31)
            out.append(c[21] >> 1 | sum(c[22 + i] << 3 * i + 2 for i in range(10)))
    else:
        per = 32 // bits
        rows = np.concatenate([rows, np.zeros((-len(rows) % per, rows.shape[1]), np.uint64)])
        for r in range(0, len(rows), per):
            out.append(sum(rows[r + i] << bits * i for i in range(per)))
    return np.array(out, np.uint64).astype(np.uint32).view(np.int32)


def gptq(rng, n, k, bits=4, group=32, order=False, version="gptq", kind="F16", size=1, name="q", index=True):
    """A GPTQ linear; `order`: with desc_act; `index`: with g_idx; `size`: of scales."""
    groups = -(-k // group)
    q, z = rng.integers(0, 1 << bits, (n, k)), rng.integers(0, 1 << bits, (n, groups))
    held, scale = floats(kind, size * rng.uniform(1e-4, 1e-2, (n, groups)))
    g_idx = np.arange(k) // group
    if order:
        g_idx = g_idx[rng.permutation(k)]
    stored = (z - 1) % (1 << bits) if version == "gptq" else z
    parts = {
        f"{name}.qweight": ("I32", words(q.T, bits)),
        f"{name}.qzeros": ("I32", words(stored, bits).T),
        f"{name}.scales": (kind, held.T),
    }
    if index:
        parts[f"{name}.g_idx"] = ("I32", g_idx.astype(np.int32))
    config = {"quant_method": "gptq", "bits": bits, "group_size": -1 if group == k else group, "desc_act": order}
    if version != "gptq":
        config["checkpoint_format"] = version
    return config, parts, (q - z[:, g_idx]).astype(np.float32) * scale[:, g_idx]


def awq(rng, n, k, group=32, version="gemm", name="q"):
    """An AWQ linear, 4 bits."""
    groups = k // group
    q, z = rng.integers(0, 16, (n, k)), rng.integers(0, 16, (n, groups))
    held, scale = floats("F16", rng.uniform(1e-4, 1e-2, (n, groups)))
    if version == "gemm":

        def packed(codes):
            mixed = codes.T.reshape(codes.shape[1], -1, 8)[..., AWQ_ORDER].reshape(codes.shape[1], -1)
            return words(mixed.T, 4).T

        parts = {"qweight": ("I32", packed(q)), "qzeros": ("I32", packed(z)), "scales": ("F16", held.T)}
    else:
        multiple = {32: 4, 64: 2}.get(group, 1)
        width = (groups + 8 * multiple - 1) // (8 * multiple) * multiple
        zeros, scales = np.zeros((n, 8 * width), np.uint64), np.zeros((n, 8 * width), np.float16)
        zeros[:, :groups], scales[:, :groups] = z, held
        parts = {"qweight": ("I32", words(q.T, 4).T), "qzeros": ("I32", words(zeros.T, 4).T), "scales": ("F16", scales)}
    parts = {f"{name}.{part}": value for part, value in parts.items()}
    config = {"quant_method": "awq", "bits": 4, "group_size": group, "version": version, "zero_point": True}
    group = np.arange(k) // group
    return config, parts, (q - z[:, group]).astype(np.float32) * scale[:, group]


def bnb4(rng, n, k, kind="nf4", size=64, nested=True, name="q", storage="U8"):
    """A 4-bit linear of bitsandbytes."""
    codes, blocks = rng.integers(0, 16, n * k), -(-n * k // size)
    table = np.array({"nf4": NF4, "fp4": FP4}[kind], np.float32)
    packed = (codes[::2] << 4 | codes[1::2]).astype(np.uint8)
    held = {"U8": packed[:, None], "BF16": packed.view(np.uint16)[:, None]}[storage]
    state = {"quant_type": kind, "blocksize": size, "dtype": "bfloat16", "shape": [n, k]}
    parts = {f"{name}.weight": (storage, held), f"{name}.weight.quant_map": ("F32", table)}
    absmax = rng.uniform(1e-3, 1, blocks).astype(np.float32)
    if nested:
        outer = rng.uniform(0.1, 1, -(-blocks // 256)).astype(np.float32)
        inner, byte = np.sort(rng.uniform(-1, 1, 256)).astype(np.float32), rng.integers(0, 256, blocks).astype(np.uint8)
        state |= {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": 0.37}
        parts |= {f"{name}.weight.absmax": ("U8", byte), f"{name}.weight.nested_absmax": ("F32", outer)}
        parts[f"{name}.weight.nested_quant_map"] = ("F32", inner)
        absmax = inner[byte] * outer[np.arange(blocks) // 256] + np.float32(0.37)
    else:
        parts[f"{name}.weight.absmax"] = ("F32", absmax)
    blob = np.frombuffer(json.dumps(state).encode(), np.uint8)
    parts[f"{name}.weight.quant_state.bitsandbytes__{kind}"] = ("U8", blob)
    config = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    return config, parts, (table[codes] * absmax[np.arange(n * k) // size]).reshape(n, k)


def bnb8(rng, n, k, name="q"):
    """An int8 linear of bitsandbytes."""
    q, scb = rng.integers(-127, 128, (n, k)).astype(np.int8), rng.uniform(0.01, 9, n).astype(np.float32)
    parts = {f"{name}.weight": ("I8", q), f"{name}.SCB": ("F32", scb)}
    parts[f"{name}.weight_format"] = ("U8", np.array(0, np.uint8))
    config = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    return config, parts, q.astype(np.float32) * scb[:, None] * np.float32(7.874015718698502e-3)


def hqq(rng, n, k, bits=4, group=64, kind="F16", joined=False, as_float=False, name="q"):
    """An HQQ linear, axis 1. `joined`: zero_scale; `as_float`: W_q as f16."""
    packing = {8: "8bit_u8", 4: "4bit_u8", 3: "3bit_32", 2: "2bit_u8", 1: "1bit_u8"}[bits]
    count, many = n * k // group, {8: 1, 4: 2, 3: 10, 2: 4, 1: 8}[bits]
    q = rng.integers(0, 1 << bits, (count, group))
    filled = np.concatenate([q, np.zeros((-count % many if bits == 3 else 0, group), q.dtype)])
    step = len(filled) // many
    w = sum(filled[i * step : (i + 1) * step] << bits * (many - 1 - i) for i in range(many))
    w = w.astype(np.int32 if bits == 3 else np.uint8)
    dtype = "I32" if bits == 3 else "U8"
    if as_float:
        w, dtype = w.view(np.float16), "F16"
    stored, scale = floats(kind, rng.uniform(1e-4, 1e-2, (count, 1)))
    nought, zero = floats(kind, rng.uniform(-1, 1 << bits, (count, 1)))
    text = np.frombuffer(packing.encode(), np.uint8)
    facts = {"axis": ("I32", np.int32(1)), "group_size": ("I32", np.int32(group)), "nbits": ("I32", np.int32(bits)),
             "packing": ("U8", text), "shape": ("I64", np.array([n, k])), "quant_scale": ("U8", np.uint8(0)),
             "quant_zero": ("U8", np.uint8(0)), "view_as_float": ("U8", np.uint8(as_float))}  # fmt: skip
    facts |= {"zero_scale": (kind, np.stack([nought, stored]))} if joined else {
        "scale": (kind, stored), "zero": (kind, nought)}  # fmt: skip
    parts = {f"{name}.W_q": (dtype, w), **{f"{name}.{fact}": value for fact, value in facts.items()}}
    config = {"quant_method": "hqq", "quant_config": {}}
    return config, parts, ((q.astype(np.float32) - zero) * scale).reshape(n, k)


def compressed(rng, n, k, bits=4, group=32, kind="BF16", zeros=False, order=False, whole=False, name="q"):
    """A linear of whole numbers of compressed-tensors; `zeros`: asymmetric; `order`: with g_idx; `whole`: as int8.
    `group` 0: a scale for each row.
    """
    groups, low = k // group if group else 1, 1 << bits - 1
    q, z = rng.integers(-low, low, (n, k)), rng.integers(-low, low, (n, groups)) * zeros
    stored, scale = floats(kind, rng.uniform(1e-3, 1e-2, (n, groups)))
    g_idx = np.arange(k) // (k // groups)
    if order:
        g_idx = g_idx[rng.permutation(k)]
    if whole:
        parts = {"weight": ("I8", q.astype(np.int8)), "weight_zero_point": ("I8", z.astype(np.int8))}
    else:
        parts = {"weight_packed": ("I32", words((q + low).T, bits).T), "weight_shape": ("I64", np.array([n, k]))}
        filled = np.concatenate([z + low, np.zeros((-n % 32, groups), z.dtype)])
        parts["weight_zero_point"] = "I32", words(filled, bits)[: -(-n * bits // 32)]
    if not zeros:
        del parts["weight_zero_point"]
    if order:
        parts["weight_g_idx"] = "I32", g_idx.astype(np.int32)
    parts = {f"{name}.{part}": value for part, value in parts.items()} | {f"{name}.weight_scale": (kind, stored)}
    weights = {"num_bits": bits, "type": "int", "group_size": group or None, "symmetric": not zeros}
    config = {"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": weights}}}
    return config, parts, (q - z[:, g_idx]).astype(np.float32) * scale[:, g_idx]


E4M3 = np.array([(m / 8 + (e > 0)) * 2.0 ** (max(e, 1) - 7) for e in range(16) for m in range(8)], np.float32)
E4M3[127] = np.nan  # the paper's table (arXiv:2209.05433): no infinities, one NaN of each sign
E4M3 = np.concatenate([E4M3, -E4M3])


def e4m3(codes):
    """The floats that bytes of float8 e4m3 are."""
    return E4M3[codes]


def to_e4m3(values):
    """The bytes of the nearest float8 e4m3."""
    codes = np.array([i for i in range(256) if i % 128 != 127])
    return codes[np.abs(E4M3[codes] - np.asarray(values)[..., None]).argmin(-1)].astype(np.uint8)


def fp8(rng, n, k, scales="tiles", side=128, kind="F32", method="fp8", name="q", suffix="weight_scale_inv"):
    """A linear of float8; `scales`: of "tiles" of `side`, "rows", "row" (without a second dim) or "all"."""
    codes = rng.integers(0, 256, (n, k), dtype=np.uint8)
    codes[codes & 127 == 127] ^= 1
    shape = {"tiles": (-(-n // side), -(-k // side)), "rows": (n, 1), "row": (n,), "all": ()}[scales]
    stored, scale = floats(kind, rng.uniform(1e-4, 1e-2, shape))
    parts = {f"{name}.weight": ("F8_E4M3", codes), f"{name}.{suffix}": (kind, stored)}
    if scales == "all":
        parts[f"{name}.input_scale{'_ub' * (method == 'fbgemm_fp8')}"] = "F32", np.float32(1)
    config = {"quant_method": method}
    sides = {"weight_block_size": [side, side]} if method == "fp8" else {"block_structure": [side, side]}
    if scales == "tiles":
        config |= sides if method == "fp8" else {"config_groups": {"group_0": {"weights": sides}}}
        scale = np.repeat(np.repeat(scale, side, 0)[:n], side, 1)[:, :k]
    return config, parts, e4m3(codes) * (scale[:, None] if scales == "row" else scale)
