"""Quantised checkpoints in safetensors: linears under their logical names, as `tensorlib.load` of a folder gives them.

`config.json` (or AutoGPTQ's `quantize_config.json`, AutoAWQ's `quant_config.json`) says how a checkpoint is quantised:
gptq, awq, bitsandbytes, hqq, compressed-tensors, or in float8. Then `x.weight` stands for the parts `x.qweight`,
`x.scales` and so on, and `tensor("x.weight")` is a QTensor of the weight [out, in], repacked when it is asked for; all
other tensors are as in the file. The parts themselves are in `.file`. See tensorlib/quant/repack*.py for what the files
hold.
"""

from __future__ import annotations

import importlib
import json
import os

from tensorlib.errors import FormatError
from tensorlib.io.source import Source, TensorInfo, map_private, short

MAX_CONFIG = 1 << 24  # bytes
CONFIGS = ("config.json", "quantize_config.json", "quant_config.json")
SCALES, BESIDE = (".weight_scale_inv", ".weight_scale"), (".weight", ".input_scale", ".input_scale_ub")
PACKED = (".weight_packed", ".weight_shape", ".weight_zero_point", ".weight_g_idx", ".input_zero_point")
FP8 = tuple((name, BESIDE, "repack_fp8", "FP8") for name in SCALES)
METHODS = {  # quant_method -> (key part, the other parts, module of tensorlib.quant, class)
    "gptq": ((".qweight", (".qzeros", ".scales", ".g_idx"), "repack_gptq", "GPTQ"),),
    "awq": ((".qweight", (".qzeros", ".scales"), "repack_gptq", "AWQ"),),
    "hqq": ((".W_q", None, "repack_hqq", "HQQ"),),
    **dict.fromkeys(["fp8", "fbgemm_fp8", "modelopt"], FP8),
    "compressed-tensors": (FP8[0], (SCALES[1], (*BESIDE, *PACKED), "repack_compressed", "linear")),
    "bitsandbytes": tuple(
        (f".quant_state.bitsandbytes__{kind}", ("", ".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map"),
         "repack_bnb", "FourBit") for kind in ("nf4", "fp4")
    ) + ((".SCB", (".weight", ".weight_format"), "repack_bnb", "EightBit"),),
}  # fmt: skip


def logical(file: Source, folder) -> Source:
    """A source of safetensors as a Checkpoint, where the configuration in `folder` says that it is quantised; else the
    source itself. FormatError for a method that is not here, and for parts that do not fit.

    >>> import tempfile
    >>> logical("the source of a folder without a configuration", tempfile.mkdtemp())
    'the source of a folder without a configuration'
    """
    found = quantization(folder)
    return file if found is None else Checkpoint(file, *found)


def quantization(folder) -> tuple[str, dict] | None:
    """(method, description) of how the model in a directory is quantised; None if it is not. FormatError."""
    for name in CONFIGS:
        path = os.path.join(folder, name)
        if not os.path.exists(path):
            continue
        found = _object(path)
        if name == CONFIGS[0]:
            found = found.get("quantization_config")
            if found is None:
                continue
            if type(found) is not dict:
                raise FormatError(path, "quantization_config", short(found), "an object")
        method = found.get("quant_method") or _guessed(found, name)
        if type(method) is not str or method.lower() not in METHODS:
            fix = "open the .safetensors file itself for the tensors as they are"
            raise FormatError(path, "quant_method", short(method), f"one of {', '.join(METHODS)}", fix)
        return method.lower(), found
    return None


def _guessed(found, name):
    """The method of a description that does not name it: old files."""
    if found.get("load_in_4bit") or found.get("load_in_8bit"):
        return "bitsandbytes"
    return {CONFIGS[1]: "gptq", CONFIGS[2]: "awq"}.get(name)


def _object(path):
    name, data = map_private(path, 2, "a JSON object")
    with data:
        if len(data) > MAX_CONFIG:
            raise FormatError(name, "path", f"{len(data)} bytes", f"a configuration of at most {MAX_CONFIG}")
        try:
            found = json.loads(data[:].decode())
        except (RecursionError, ValueError) as error:
            raise FormatError(name, "offset 0", f"no JSON ({str(error)[:200]})", "a JSON object") from None
    if type(found) is not dict:
        raise FormatError(name, "offset 0", short(found), "a JSON object")
    return found


class Checkpoint(Source):
    """A quantised checkpoint over `file`, a source of its parts; `method` and `config` describe it. See `Source`.

    Infos of quantised weights have the logical shape, the method as `format`, no dtype, and the bytes of all parts.
    """

    def __init__(self, file: Source, method: str, config: dict):
        self.file, self.method, self.config = file, method, config
        self.path, self.metadata, self.nbytes = file.path, file.metadata, file.nbytes
        self._linears, hidden = {}, set()
        for row in METHODS[method]:
            hidden |= self._collect(*row)
        self.tensors = {name: info for name, info in file.tensors.items() if name not in hidden}
        for name, (linear, parts) in self._linears.items():
            if name in self.tensors:
                raise self.error(f"tensor {short(name)}", "it beside its quantised parts", "one of both")
            nbytes = sum(file.tensors[part].nbytes for part in parts)
            offset = file.tensors[parts[0]].offset
            self.tensors[name] = TensorInfo(name, linear.shape, method, None, offset, nbytes)

    def _collect(self, key, others, module, kind):
        """Finds the linears that have a part `key`; the names of all their parts."""
        module, hidden = importlib.import_module(f"tensorlib.quant.{module}"), set()
        from tensorlib.quant.repack import Parts

        others = [f".{fact}" for fact in module.FACTS] if others is None else others
        for name in self.file.tensors:
            if not name.endswith(key):
                continue
            stem = name[: -len(key)]
            weight = stem if "" in others else f"{stem}.weight"
            parts = [name, *(stem + other for other in others if stem + other in self.file.tensors)]
            hidden.update(parts)
            if weight in self._linears:
                raise self.error(f"tensor {short(weight)}", "quantised twice", "one description of it")
            self._linears[weight] = getattr(module, kind)(Parts(self.file, weight, stem, self.config)), parts
        return hidden

    def close(self):
        self.file.close()

    def tensor(self, name=""):
        """The tensor of that name; a quantised weight as a QTensor, repacked now. FormatError."""
        found = self._linears.get(name)
        if found is None:
            self.info(name)
            return self.file.tensor(name)
        return found[0]()

    def rows(self, name, start, stop):
        """Rows `start` to `stop` of a tensor; of a quantised one, whose parts are all read. FormatError."""
        if name not in self._linears:
            self.info(name)
            return self.file.rows(name, start, stop)
        self.span(self.info(name), start, stop)
        return self.tensor(name).rows(start, stop - start)

    def slice(self, name, *index):
        """`tensor(name)[index]`; of a quantised weight rows alone, `slice(name, slice(start, stop))`. FormatError."""
        if name not in self._linears:
            return super().slice(name, *index)
        if len(index) != 1 or type(index[0]) is not slice or index[0].step not in (None, 1):
            raise self.error(f"tensor {short(name)}", f"{index} of blocks", "a slice of rows", "dequantize() it first")
        start, stop, _ = index[0].indices(self.info(name).shape[0])
        return self.rows(name, start, max(start, stop))

    def raw(self, name=""):
        """The bytes of a tensor that is not quantised. FormatError."""
        self._single(name)
        return self.file.raw(name)

    def stored(self, name=""):
        """The tensor as the writers take it. FormatError for a quantised one: files have no such blocks."""
        self._single(name)
        return self.file.stored(name)

    def _single(self, name):
        self.info(name)
        if name in self._linears:
            fix = "its parts are in .file; .tensor(name).dequantize() has the values"
            got = f"a weight of {len(self._linears[name][1])} parts"
            raise self.error(f"tensor {short(name)}", got, "one tensor", fix)
