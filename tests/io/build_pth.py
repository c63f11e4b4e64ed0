"""PyTorch's files byte by byte: sound ones, and every kind of damage and of code. p..: the list's numbers."""

import io
import os
import pickle
import struct
import zipfile

import numpy as np

from tensorlib.io import pth

DATA = np.arange(6, dtype="<f4").tobytes()
MARKER = "/tmp/code-of-a-pickle-ran"
STOP = b"."


def text(s):
    raw = s.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def integer(n):
    """As pickle has it."""
    return pickle.dumps(n, 2)[2:-1]


def ints(*values):
    return b"(" + b"".join(map(integer, values)) + b"t"


def name(module, attribute):
    return f"c{module}\n{attribute}\n".encode()


def storage(key="0", count=6, kind=("torch", "FloatStorage"), key_raw=None):
    return b"(" + text("storage") + name(*kind) + (key_raw or text(key)) + text("cpu") + integer(count) + b"tQ"


def tensor(held=None, offset=0, size=(2, 3), stride=(3, 1)):
    """The opcodes of one tensor."""
    ordered = name("collections", "OrderedDict") + b")R"
    parts = (held or storage()) + integer(offset) + ints(*size) + ints(*stride) + b"\x89" + ordered
    return name("torch._utils", "_rebuild_tensor_v2") + b"(" + parts + b"tR"


def state(value=None, key=None):
    """A pickle of {"w": value}."""
    return b"\x80\x02}" + (key or text("w")) + (tensor() if value is None else value) + b"s" + STOP


def archive(data=None, members=None, **more):
    """A zip file as torch.save makes it, of this data.pkl."""
    out = io.BytesIO()
    files = {
        "a/data.pkl": state() if data is None else data,
        "a/byteorder": b"little",
        "a/data/0": DATA,
        "a/version": b"3",
    }
    with zipfile.ZipFile(out, "w", more.get("method", zipfile.ZIP_STORED)) as file:
        for key, content in {**files, **(members or {})}.items():
            if content is not None:
                file.writestr(zipfile.ZipInfo(key) if "method" not in more else key, content)
    return out.getvalue()


def legacy(obj=None, keys=None, data=None, magic=pth.MAGIC, protocol=1001):
    """A legacy file; the persistent id has a view of None."""
    if keys is None:
        keys = ["0"]
    obj = state(tensor(legacy_storage())) if obj is None else obj
    head = b"".join(pickle.dumps(part, 2) for part in (magic, protocol, {"little_endian": True}))
    return head + obj + pickle.dumps(keys, 2) + (struct.pack("<q", 6) + DATA if data is None else data)


def legacy_storage(view=b"N"):
    return storage()[:-2] + view + b"tQ"


def saved(zipped=True):
    """What PyTorch itself writes."""
    import torch

    out = io.BytesIO()
    torch.save({"w": torch.arange(6.0).reshape(2, 3)}, out, _use_new_zipfile_serialization=zipped)
    return out.getvalue()


VALUES = np.arange(6, dtype=np.float32).reshape(2, 3)
SOUND = {
    "saved": saved,
    "saved, legacy": lambda: saved(zipped=False),
    "by hand": archive(),
    "by hand, legacy": legacy(),
    "deflated": archive(method=zipfile.ZIP_DEFLATED),
    "without byteorder": archive(members={"a/byteorder": None}),
    "big-endian": archive(members={"a/byteorder": b"big", "a/data/0": VALUES.astype(">f4").tobytes()}),
    "view of a storage, legacy": legacy(
        state(tensor(legacy_storage(b"(" + text("view") + integer(0) + integer(6) + b"t")))
    ),
}  # fmt: skip


class Code:
    """Pickles as a call of a function."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def calling(function, *args, protocol=2):
    return pickle.dumps({"w": Code(function, *args)}, protocol)


def billion():
    """Lists of ten references to the list before."""
    out = b"]q\x00" + integer(1) + b"a"
    for level in range(1, 30):
        out += b"0](" + (b"h" + bytes([level - 1])) * 10 + b"eq" + bytes([level])
    return b"\x80\x02}" + text("w") + out + b"s" + STOP


SYSTEM = name("os", "system") + text(f"touch {MARKER}") + b"\x85R"
SET = name("builtins", "set") + b"h\x00\x85R0"
MALFORMED_PICKLES = {
    "p01 os.system": calling(os.system, f"touch {MARKER}"),
    "posix.system": state(name("posix", "system") + text(f"touch {MARKER}") + b"\x85R"),
    "p02 eval": calling(eval, f"open({MARKER!r}, 'w')"),
    "p03 getattr": state(name("builtins", "getattr") + b")R"),
    "__import__": state(name("builtins", "__import__") + text("os") + b"\x85R"),
    "p04 STACK_GLOBAL": calling(os.system, f"touch {MARKER}", protocol=4),
    "STACK_GLOBAL of no text": state(integer(1) + integer(2) + b"\x93"),
    "p05 INST": state(b"(" + text("x") + b"ios\nsystem\n"),
    "OBJ": state(b"(" + name("os", "system") + b"o"),
    "p07 code, then a broken opcode": b"\x80\x02" + SYSTEM + b"\xff",
    "p08 EXT1": state(b"\x82\x01"),
    "EXT4": state(b"\x84\1\0\0\0"),
    "NEWOBJ_EX": state(name("collections", "OrderedDict") + b")}\x92"),
    "text persistent id": state(b"P0\n"),
    "out-of-band buffer": state(b"\x97"),
    "p09 BUILD of a class": state(name("torch", "FloatStorage") + b"}b"),
    "BUILD of a dict": state(b"}}b"),
    "REDUCE of a dtype": state(name("torch", "float32") + b")R"),
    "REDUCE of text": state(text("x") + b")R"),
    "NEWOBJ of text": state(text("x") + b")\x81"),
    "arguments no tuple": state(name("collections", "OrderedDict") + b"]R"),
    "too many arguments": state(name("collections", "OrderedDict") + b"NN\x86R"),
    "nothing": b"",
    "protocol 9": b"\x80\x09N.",
    "cut": state()[:-3],
    "no STOP": state()[:-1],
    "bytes after STOP": state() + b"N.",
    "p06 second pickle after STOP": state() + b"\x80\x02" + SYSTEM + STOP,
    "two objects at STOP": b"\x80\x02NN.",
    "mark at STOP": b"\x80\x02(N.",
    "p25 memo never put": state(b"h\x07"),
    "p26 stack underflow": b"\x80\x02\x85.",
    "no mark": b"\x80\x02t.",
    "APPEND to a dict": b"\x80\x02}Na.",
    "SETITEM of a list": b"\x80\x02]NNs.",
    "odd SETITEMS": b"\x80\x02}(Nu.",
    "ADDITEMS to a list": b"\x80\x02](N\x90.",
    "list as a key": b"\x80\x02}]Ns.",
    "huge key": b"\x80\x02}" + integer(2**61) + b"Ns.",
    "text of 4 GiB": state(b"X\xff\xff\xff\xff"),
    "bytes of 2^64-1": state(b"\x8e" + b"\xff" * 8),
    "negative length": state(b"T\xff\xff\xff\xff"),
    "long of 100,000 bytes": state(b"\x8b" + struct.pack("<i", 100_000) + bytes(100_000)),
    "digits of 5,000": state(b"L" + b"9" * 5000 + b"L\n"),
    "digits no digits": state(b"I12x\n"),
    "text no UTF-8": state(b"X\1\0\0\0\xff"),
    "line without end": state(b"c" + b"a" * 3000),
    "100,000 deep": b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".",
    "100,000 deep, tuples": b"\x80\x02N" + b"\x85" * 100_000 + b".",
    "deep tuple as a key": b"\x80\x02}N" + b"\x85" * 100_000 + b"Ns.",
    "list in itself": b"\x80\x02]q\x00h\x00" + tensor() + b"\x86a.",
    "5,000 marks": b"\x80\x02" + b"(" * 5000 + b".",
    "3 million sets": lambda: b"\x80\x04" + b"\x8f" * 3_000_000 + b".",
    "3 million memo entries": lambda: b"\x80\x04}" + b"\x94" * 3_000_000 + b".",
    "3 million opcodes": lambda: b"\x80\x02" + b"]" * 3_000_000 + b".",
    "copies of copies": b"\x80\x02](" + b"N" * 50_000 + b"eq\x00" + SET * 200 + b".",
    "p27 billion laughs": billion(),
}  # fmt: skip

MALFORMED_ZIPS = {
    "p11 storage missing": archive(members={"a/data/0": None}),
    "p12 storage too short": archive(members={"a/data/0": DATA[:-1]}),
    "storage too long": archive(members={"a/data/0": DATA + b"\0"}),
    "p13 view past the end": archive(state(tensor(size=(2, 4), stride=(4, 1)))),
    "view past the end by its offset": archive(state(tensor(offset=1))),
    "view past the end by its stride": archive(state(tensor(stride=(4, 1)))),
    "p14 negative offset": archive(state(tensor(offset=-1))),
    "p15 negative stride": archive(state(tensor(stride=(-3, 1)))),
    "p16 negative size": archive(state(tensor(size=(-2, -3)))),
    "p17 sizes and strides of other ranks": archive(state(tensor(stride=(1,)))),
    "boolean size": archive(state(
        name("torch._utils", "_rebuild_tensor_v2") + b"(" + storage() + b"K\0(\x88t(\x88t\x89NtR"
    )),
    "p18 key with ..": archive(state(tensor(storage("../../a")))),
    "key is the pickle": archive(state(tensor(storage("../data.pkl")))),
    "empty key": archive(state(tensor(storage("")))),
    "key no text": archive(state(tensor(storage(key_raw=b"K\0")))),
    "p19 count of 2^40": archive(state(tensor(storage(count=2**40)))),
    "count of 2^62": archive(state(tensor(storage(count=2**62)))),
    "negative count": archive(state(tensor(storage(count=-6)))),
    "count * itemsize wraps": archive(state(tensor(storage(count=2**62 + 6)))),
    "p20 size * stride overflows": archive(state(tensor(size=(2**32, 2**32), stride=(2**32, 1)))),
    "elements overflow, strides of 0": archive(state(tensor(size=(2**32, 2**32), stride=(0, 0)))),
    "2^61 and zero": archive(state(tensor(size=(2**61, 0), stride=(1, 1)))),
    "stride of 2^63": archive(state(tensor(stride=(2**63, 1)))),
    "p21 offset of 2^62": archive(state(tensor(offset=2**62))),
    "p28 10^12 elements by strides of 0": archive(state(tensor(size=(10**6, 10**6), stride=(0, 0)))),
    "65 dims": archive(state(tensor(size=(1,) * 65, stride=(1,) * 65))),
    "no storage": archive(state(tensor(b"N"))),
    "storage without a class": archive(state(tensor(storage(kind=("torch", "Tensor"))))),
    "a dtype as the class": archive(state(tensor(storage(kind=("torch", "per_tensor_affine"))))),
    "persistent id no tuple": archive(state(text("0") + b"Q")),
    "persistent id short": archive(state(text("storage") + b"\x85Q")),
    "two classes of other sizes": archive(
        b"\x80\x02}" + text("w") + tensor() + b"s" + text("v")
        + tensor(storage(kind=("torch", "DoubleStorage"))) + b"s."
    ),
    "p22 no data.pkl": archive(members={"a/data.pkl": None}),
    "p23 two data.pkl": archive(members={"b/data.pkl": state()}),
    "p24 unknown byteorder": archive(members={"a/byteorder": b"middle"}),
    "data.pkl damaged": archive().replace(state(), state()[:-2] + b"a."),
    "two tensors of one name": archive(
        b"\x80\x02}" + text("a.b") + tensor() + b"s" + text("a") + b"}" + text("b") + tensor() + b"ss."
    ),
    "a zip in a zip": archive(archive()),
    "bomb": lambda: archive(members={"a/data/0": bytes(400_000_000)}, method=zipfile.ZIP_DEFLATED),
    "not a zip": b"PK\3\4" + bytes(100),
}  # fmt: skip

MALFORMED_LEGACY = {
    "p10 magic alone": pickle.dumps(pth.MAGIC, 2),
    "magic in a tar": b"./pickle" + bytes(600),
    "no magic": pickle.dumps({"a": 1}, 2),
    "magic is text": legacy(magic="magic"),
    "protocol 1002": legacy(protocol=1002),
    "code in the first pickle": b"\x80\x02" + SYSTEM + STOP,
    "code in the object": legacy(b"\x80\x02" + SYSTEM + STOP),
    "keys no list": legacy(keys=("0",)),
    "unknown key": legacy(keys=["1"]),
    "key twice": legacy(keys=["0", "0"], data=(struct.pack("<q", 6) + DATA) * 2),
    "key missing": legacy(keys=[], data=b""),
    "key is a list": legacy(keys=[[]]),
    "count too large": legacy(data=struct.pack("<q", 7) + DATA),
    "count negative": legacy(data=struct.pack("<q", -6) + DATA),
    "data cut": legacy()[:-1],
    "bytes after": legacy() + b"\0",
    "view past its storage": legacy(
        state(tensor(legacy_storage(b"(" + text("view") + integer(1) + integer(6) + b"t")))
    ),
    "view no tuple": legacy(state(tensor(legacy_storage(text("view"))))),
}  # fmt: skip

# ---- code, as it got past scanners and past torch.load ---------------------------------------------------------------

# What a pickle may name to run code: by CVE-2025-1716, -10157 and the lists of picklescan and fickling; the last is a
# module that the test puts on the path.
REFERENCES = """
    os.system posix.system nt.system subprocess.Popen builtins.exec builtins.eval builtins.__import__ builtins.getattr
    builtins.compile builtins.open builtins.breakpoint __builtin__.eval importlib.import_module pip.main
    pip._internal.cli.main.main runpy.run_path runpy._run_code timeit.timeit cProfile.run pdb.run bdb.Bdb.run
    code.InteractiveInterpreter.runcode idlelib.pyshell.ModifiedInterpreter.runcode functools.partial functools.reduce
    operator.attrgetter operator.methodcaller types.FunctionType types.CodeType marshal.loads pickle.loads _pickle.loads
    shelve.open shutil.rmtree socket.create_connection asyncio.unix_events._UnixSubprocessTransport._start
    webbrowser.open pydoc.pipepager pydoc.locate ensurepip._run_pip doctest.debug_script trace.Trace.run ctypes.CDLL
    sys.settrace copyreg._reconstructor copyreg.__newobj__ numpy.load numpy.testing._private.utils.runstring
    numpy.core.multiarray._reconstruct torch.load torch.hub.load torch.jit.load torch.ops.load_library
    torch.serialization.os.system torch._utils.os.system torch._inductor.codecache.compile_file
    torch.utils._config_module.load_config torch.utils.collect_env.run torch.fx.graph_module.reduce_graph_module
    torch.storage._load_from_bytes torch.distributed.rpc.internal._run_function collections.OrderedDict.__init__
    _codecs.encode.__self__ marker_module.run
""".split()


def named(reference, stacked=False):
    """The opcode that puts what `reference` names on the stack: GLOBAL, or STACK_GLOBAL with the name dotted."""
    if stacked:
        module, _, attribute = reference.partition(".")
        return text(module) + text(attribute) + b"\x93"
    module, _, attribute = reference.rpartition(".")
    return name(module, attribute)


def flagged(flags):
    """An archive whose directory and headers have other flags: readers that stop at them saw nothing to scan."""
    data = archive(b"\x80\x02" + SYSTEM + STOP)
    return data.replace(b"PK\1\2\x14\x03\x14\0\0\0", b"PK\1\2\x14\x03\x14\0" + struct.pack("<H", flags))


BYPASSES = {
    "CVE-2025-1716: pip.main": state(named("pip.main") + text("install") + b"\x85R"),
    "CVE-2025-10157: a module inside a forbidden one": state(
        named("asyncio.unix_events._UnixSubprocessTransport._start") + b")R"
    ),
    "a dotted name": state(named("torch.serialization.os.system", True) + text(f"touch {MARKER}") + b"\x85R"),
    "a module of its own": state(named("marker_module.run") + b")R"),
    "a name out of the memo": state(
        text("os") + b"q\0" + text("system") + b"q\1" + b"h\0h\1\x93" + text(f"touch {MARKER}") + b"\x85R"
    ),
    "a class by NEWOBJ": state(named("subprocess.Popen") + text(f"touch {MARKER}") + b"\x85\x81"),
    "code inside a persistent id": state(SYSTEM + b"Q"),
}
CODE = archive(b"\x80\x02" + SYSTEM + STOP)
BYPASS_ZIPS = {
    "CVE-2025-1944: another name in the header": CODE.replace(b"a/data.pkl", b"a/data.txt", 1),
    "CVE-2025-1945: flag bits": flagged(1),
    "CVE-2025-10156: a wrong CRC": CODE.replace(SYSTEM, SYSTEM[:-2] + b"0R", 1),
    "CVE-2025-10155: a bare pickle of code": b"\x80\x02" + SYSTEM + STOP,
    "no zip after all": b"\x80\x02" + SYSTEM + STOP + archive(),
}
