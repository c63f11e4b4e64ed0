"""Every malformed file of the table: refused with one error, in bounds, with nothing left open and nothing imported."""

import json
import os
import re
from collections import Counter

import pytest

from tensorlib.errors import FormatError, TensorlibError
from tensorlib.io import pth
from tests.io import build_pth, cases, targets
from tests.io.hardened import bounded, made, rejected

TABLE = cases.table()
LISTED = [case for case in TABLE if case.number]


def written(case, folder):
    """The case as files in a folder; the path of its own."""
    for name, data in {**case.beside, cases.SUFFIX[case.kind]: made(case.data)}.items():
        (folder / name).write_bytes(data)
    return str(folder / cases.SUFFIX[case.kind])


def test_the_whole_list_is_here():
    for kind, (letter, count, sound) in cases.LISTED.items():
        numbers = [case.number for case in TABLE if case.kind == kind and case.number]
        assert sorted(numbers) == [f"{letter}{i + 1:02d}" for i in range(count)]
        assert sum(case.verdict == "accept" and not case.number for case in TABLE if case.kind == kind) >= sound
    verdicts = Counter(case.verdict for case in LISTED)
    # 213 files, 41 of which are ONNX (39 to be refused) and 9 of the others sound and without a number
    assert verdicts == {"reject": 194 - 39, "either": 6, "accept": 13 - 2 - 9}


@pytest.mark.parametrize("case", TABLE, ids=str)
def test_case(case, tmp_path):
    path = written(case, tmp_path)
    use = targets.TARGETS[case.kind].use
    if case.verdict == "reject":
        assert path in rejected(lambda name: use(name), path, use=lambda done: None) or case.kind == "index"
    else:
        with bounded():
            try:
                use(path)
            except FormatError:
                assert case.verdict == "either"


def test_the_error():
    """One type; what it says stands in attributes as well; it survives the way between two processes of a pool."""
    import copy
    import pickle

    error = FormatError("a.gguf", "tensor 'w'", "offset 7", "a multiple of 32", "fetch it again")
    assert isinstance(error, (TensorlibError, ValueError))
    for each in (error, copy.copy(error), pickle.loads(pickle.dumps(error))):
        assert (each.file, each.where, each.got, each.expected, each.fix) == error.args
        assert str(each) == "a.gguf: tensor 'w': got offset 7; expected a multiple of 32; fetch it again"


# ---- nothing that a file names is imported ---------------------------------------------------------------------------


@pytest.mark.parametrize("form", [build_pth.archive, build_pth.legacy], ids=["zip", "legacy"])
def test_references_are_refused(form, tmp_path):
    path = tmp_path / "file.pth"
    for reference in build_pth.REFERENCES:
        for stacked in (False, True):
            found = build_pth.named(reference, stacked)
            for then in (b"", b")R"):
                path.write_bytes(form(build_pth.state(found + then)))
                with pytest.raises(FormatError, match=re.escape(reference)) as caught:
                    pth.open(path)
                assert caught.value.file == str(path) and "pickle" in caught.value.where.replace("pkl", "pickle")


IMPORTS = """
import json, sys
from tests.io import targets
from tensorlib.errors import FormatError
names, sound = json.load(open(sys.argv[1]))

def use(kind, path):
    try:
        targets.TARGETS[kind].use(path)
    except FormatError:
        pass

for kind, path in sound:  # imports what our own readers need
    use(kind, path)
events = set()
WATCHED = ("import", "os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "socket.connect",
           "marshal.loads", "pickle.find_class", "ctypes.dlopen", "code.__new__", "urllib.Request", "shutil.rmtree")
sys.addaudithook(lambda name, args: name in WATCHED and events.add((name, str(args[0]))))
kept = set(sys.modules)
for kind, path in names:
    use(kind, path)
found = [sorted(events), sorted(set(sys.modules) - kept)]
import colorsys  # which shows that the hook works
print(json.dumps([*found, ("import", "colorsys") in events]))
"""


def test_no_reader_imports_what_a_file_names(tmp_path, run_python):
    """All cases of all readers in a process whose audit hook reports imports, processes, sockets and the like."""
    marker = tmp_path / "marker"
    (tmp_path / "marker_module.py").write_text(f"open({str(marker)!r}, 'w')\ndef run(*_): open({str(marker)!r}, 'w')\n")
    names, sound = [], []
    for i, case in enumerate(TABLE):
        if case.kind == "template" or callable(case.data):  # Jinja compiles Python code, of its own making
            continue
        folder = tmp_path / str(i)
        folder.mkdir()
        (names if case.verdict == "reject" else sound).append((case.kind, written(case, folder)))
    (tmp_path / "names.json").write_text(json.dumps([names, sound]))
    path = os.pathsep.join([os.fspath(tmp_path), os.getcwd()])
    events, modules, works = json.loads(run_python(IMPORTS, str(tmp_path / "names.json"), PYTHONPATH=path))
    assert events == [] and modules == [] and works
    assert not marker.exists() and not os.path.exists(build_pth.MARKER)
