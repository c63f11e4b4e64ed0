"""Repositories of a Hub on this machine: what goes wrong on the way."""

import hashlib
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

import tensorlib
from tensorlib.errors import DownloadError
from tensorlib.io import fetch, gguf, hub, hub_download, safetensors
from tests.conftest import ROOT
from tests.io import servers
from tests.io.servers import COMMIT, CONTENT, FILES, OLDER, content, folder, forget, gets, names

REF = "org/name:a.gguf"
SHA256 = hashlib.sha256(CONTENT).hexdigest()
PATH = f"/org/name/resolve/{COMMIT}/a.gguf"  # revisions are resolved first
API = "/api/models/org/name/revision/"


# ---- the way to a file -----------------------------------------------------------------------------------------------


def test_a_file_arrives_once(served, cache, capfd):
    path = hub.resolve(REF)
    assert content(path) == CONTENT and path == str(folder(cache) / "snapshots" / COMMIT / "a.gguf")
    assert os.readlink(path) == f"../../blobs/{SHA256}" and (folder(cache) / "refs/main").read_text() == COMMIT
    assert names(cache, "blobs") == [SHA256] and gets(served) == [None]
    requests = len(served.requests)
    assert hub.resolve(REF) == path and len(served.requests) == requests
    forget(cache)
    assert hub.resolve(REF) == path and gets(served) == [None]  # checked, not fetched
    small = hub.resolve("org/name:sub/config.json")
    assert content(small) == b"{}" and os.path.basename(os.readlink(small)) == servers.git_hash(b"{}")
    odd = hub.resolve("org/name:sub/größe 1#%20.json")
    assert content(odd) == b"[]" and odd.endswith("/sub/größe 1#%20.json")
    out, err = capfd.readouterr()
    assert out == "" and "fetching org/name/a.gguf (1 MB)" in err and "100%" in err


def test_cut_at_every_quarter(served, cache):
    quarter = len(CONTENT) // 4
    served.cut_after = [quarter, quarter, quarter, 0]
    assert content(hub.resolve(REF)) == CONTENT and names(cache, "blobs") == [SHA256]
    starts = [0, quarter, 2 * quarter, 3 * quarter, 3 * quarter]
    assert gets(served) == [f"bytes={at}-" if at else None for at in starts]
    assert [h.get("if-range") for m, _, h in served.requests if m == "GET" and "range" in h] == [f'"{SHA256}"'] * 4


def test_goes_on_where_another_process_stopped(served, cache):
    served.cut_after = [400_000] + [0] * 10
    with pytest.raises(DownloadError, match="run it again"):
        hub.resolve(REF)
    assert names(cache, "blobs") == [f"{SHA256}.incomplete", f"{SHA256}.incomplete.etag"]
    served.cut_after, served.requests[:] = [], []
    assert content(hub.resolve(REF)) == CONTENT and gets(served) == ["bytes=400000-"]
    assert names(cache, "blobs") == [SHA256]


@pytest.mark.parametrize("ranges", [True, False], ids=["if-range", "no ranges"])
def test_200_to_a_range_request(served, cache, ranges):
    """The whole again, and not behind what is there: the file has another ETag, or the server knows no ranges."""
    blobs = folder(cache) / "blobs"
    blobs.mkdir(parents=True)
    (blobs / f"{SHA256}.incomplete").write_bytes(b"x" * 1000)
    (blobs / f"{SHA256}.incomplete.etag").write_text('"another"')
    served.ranges = ranges
    assert content(hub.resolve(REF)) == CONTENT and gets(served) == ["bytes=1000-"]


@pytest.mark.parametrize(
    "start", [b"something else", b"x" * 2_000_000, CONTENT[:-1] + b"x"], ids=["less", "more", "all"]
)
def test_what_is_there_is_something_else(served, cache, start):
    blobs = folder(cache) / "blobs"
    blobs.mkdir(parents=True)
    (blobs / f"{SHA256}.incomplete").write_bytes(start)
    assert content(hub.resolve(REF)) == CONTENT and names(cache, "blobs") == [SHA256]


def test_killed_between_write_and_rename(served, cache):
    """All of it is there, without its name; or with its name, but without a link to it: nothing is fetched again."""
    blobs = folder(cache) / "blobs"
    blobs.mkdir(parents=True)
    for name in (f"{SHA256}.incomplete", SHA256):
        shutil.rmtree(folder(cache) / "snapshots", ignore_errors=True)
        forget(cache)
        (blobs / SHA256).unlink(missing_ok=True)
        (blobs / name).write_bytes(CONTENT)
        assert content(hub.resolve(REF)) == CONTENT and gets(served) == [] and names(cache, "blobs") == [SHA256]


KILL = """
import os, sys
from tensorlib.io import fetch, hub
def stop(*_):
    print("stopped", flush=True)
    sys.stdin.read()
setattr(*{"write": (fetch._Partial, "add"), "rename": (fetch, "place")}[sys.argv[2]], stop)
hub.resolve(sys.argv[1])
"""


@pytest.mark.parametrize("where", ["write", "rename"])
def test_a_process_that_is_killed(served, cache, where):
    """Its lock goes with it, and what it left is used."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", KILL, REF, where]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env) as process:
        assert process.stdout.readline() == b"stopped\n"
        process.kill()
    assert not (folder(cache) / "snapshots").exists() or names(cache, "snapshots") == []
    assert content(hub.resolve(REF)) == CONTENT and names(cache, "blobs") == [SHA256]
    assert len(gets(served)) == (2 if where == "write" else 1)


def test_two_processes_at_once(served, cache):
    """One fetches, the other waits: one request for the content; also beside huggingface_hub itself."""
    served.pause = 2.0  # by then all three have asked for it
    env = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_DISABLE_XET": "1"}
    ours = f"from tensorlib.io import hub; print(hub.resolve({REF!r}))"
    theirs = "from huggingface_hub import hf_hub_download as get; "
    theirs += f"print(get('org/name', 'a.gguf', cache_dir={str(cache)!r}))"
    command = [sys.executable, "-c"]
    running = [
        subprocess.Popen([*command, source], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=env)
        for source in (ours, ours, theirs)
    ]
    found = {process.communicate(timeout=120)[0].decode().strip() for process in running}
    assert found == {str(folder(cache) / "snapshots" / COMMIT / "a.gguf")} and content(*found) == CONTENT
    assert gets(served) == [None] and names(cache, "blobs") == [SHA256]


# ---- servers that say something else ---------------------------------------------------------------------------------


def test_another_content(served, cache):
    """As long as promised, and wrong; of either kind of hash. Nothing stays."""
    for name, kind in (("a.gguf", "SHA-256"), ("sub/config.json", "git SHA-1")):
        served.files[f"/org/name/resolve/{COMMIT}/{name}"] = b"x" * len(FILES[name])
        with pytest.raises(DownloadError, match=f"got {kind} .*expected {servers.etag(name, FILES[name])}"):
            hub.resolve(f"org/name:{name}")
    assert names(cache) == []


@pytest.mark.parametrize("length", [len(CONTENT) - 1, len(CONTENT) + 1])
def test_another_length(served, cache, length):
    """Content-Length is not the size that was announced: refused before anything is written."""
    served.files[PATH] = (CONTENT + b"x")[:length]
    with pytest.raises(DownloadError, match=f"got {length} bytes; expected {len(CONTENT)} bytes, as announced"):
        hub.resolve(REF)
    assert content(folder(cache) / "blobs" / f"{SHA256}.incomplete") == b""


@pytest.mark.parametrize("etag", ['W/"{}"', "{}", '"{}"'])
def test_etags_in_quotes_and_weak_ones(served, cache, etag):
    path = f"/org/name/resolve/{COMMIT}/sub/config.json"
    served.headers[path]["ETag"] = etag.format(servers.git_hash(b"{}"))
    assert content(hub.resolve("org/name:sub/config.json")) == b"{}"


@pytest.mark.parametrize(
    "etag", ["../../../out", "/out", "a/b", "..", "", "x" * 40, SHA256[:-1], SHA256.upper(), SHA256 + "-gzip", "W/../x"]
)
def test_etags_that_are_no_hash(served, cache, etag, tmp_path):
    """They would be names of files, and nothing could be checked."""
    served.headers[PATH] |= {"X-Linked-Etag": f'"{etag}"', "ETag": f'"{etag}"'}
    with pytest.raises(DownloadError, match="ETag"):
        hub.resolve(REF)
    assert names(cache) == [] and gets(served) == [] and os.listdir(tmp_path) == ["hf"]


@pytest.mark.parametrize("commit", ["../x", "main", "", "0" * 39, COMMIT.replace("a", "A"), None])
def test_commits_that_are_none(served, cache, commit):
    """Neither where a revision is asked for, nor at a file."""
    for ref, what in (
        (REF, "40 digits"),
        (f"org/name@{OLDER}", f"expected commit {OLDER}"),
        ("org/name@v1", "of commit"),
    ):
        revision = hub.HubFile(ref).revision
        if what == "of commit":
            served.headers[f"/org/name/resolve/{OLDER}/a.gguf"]["X-Repo-Commit"] = str(commit)
        else:
            served.files[API + revision] = json.dumps({"id": "org/name", "sha": commit, "siblings": []}).encode()
        with pytest.raises(DownloadError, match=what):
            hub.resolve(f"{ref.partition(':')[0]}:a.gguf")
    assert names(cache) == [] and gets(served) == []


def test_answers_of_the_hub(served, cache):
    for ref, what in {
        "org/other": "no such repository", "org/name@nope": "no such revision", "org/name:c.gguf": "ends in c.gguf",
        "org/name": "2 files to choose from",
    }.items():  # fmt: skip
        requests = len(served.requests)
        with pytest.raises(DownloadError, match=what):
            hub.resolve(ref)
        assert len(served.requests) == requests + 1  # an answer is not asked for again
    served.failing[PATH] = [500, 429]
    assert content(hub.resolve(REF)) == CONTENT


@pytest.mark.parametrize("ref", ["org/name@..", "org/name@a/../b", "org/name@", "org/name@/a", "org/name@a b", "a@b/c",
                                 "org/name@main:../x", "org/name:a/../b", "org/name:/x", "org/name:c:\\x", "org/..",
                                 "../name", "org/name@a\0", "org/name@refs/.x", "org/name:con.gguf"])  # fmt: skip
def test_references_that_are_none(cache, ref, monkeypatch):
    monkeypatch.setattr(hub_download, "fetch", None)
    with pytest.raises(DownloadError, match="expected"):
        hub.resolve(ref)
    assert not cache.exists()


# ---- tokens and other servers ----------------------------------------------------------------------------------------


def test_the_token_stays_with_the_hub(stored, cache, monkeypatch):
    """Large files are elsewhere: that server never sees it."""
    behaviour, other = stored
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert content(hub.resolve(REF)) == CONTENT and content(hub.resolve("org/name:sub/config.json")) == b"{}"
    assert all(headers["authorization"] == "Bearer hf_secret" for _, _, headers in behaviour.requests)
    assert gets(other) == [None] and not any("authorization" in headers for _, _, headers in other.requests)
    assert [m for m, path, _ in behaviour.requests if path == PATH] == ["HEAD"]


def test_redirects_of_the_download_itself(cache, monkeypatch, tmp_path):
    """To the same server with the token, to another one without; never to a file, nor from https to http."""
    with (
        servers.serve({"/b": CONTENT}) as (there, other),
        servers.serve({"/b": CONTENT, "/r": b"", "/o": b""}) as (here, one),
    ):
        one.redirects |= {"/r": f"{here}/b", "/o": f"{there}/b"}
        for path in ("/r", "/o"):
            fetch.download(here + path, str(tmp_path / path[1:]), SHA256, "x", len(CONTENT), "Bearer secret")
        assert [headers.get("authorization") for _, _, headers in one.requests] == ["Bearer secret"] * 3
        assert [headers.get("authorization") for _, _, headers in other.requests] == [None]
        for target in ("file:///etc/passwd", "ftp://127.0.0.1/x"):
            one.redirects["/r"] = target
            for url in (f"{here}/r", target):
                with pytest.raises(DownloadError, match=r"(to|of) https|HTTP 302"):
                    fetch.download(url, str(tmp_path / "no"), SHA256, "x")
    request = fetch.urllib.request.Request("https://a/x")
    with pytest.raises(DownloadError, match="from https to http"):
        fetch._Redirects().redirect_request(request, None, 302, "", {}, "http://a/x")


def test_a_signed_address_that_is_over(stored, cache):
    """The Hub is asked for another one, once."""
    behaviour, other = stored
    other.status = [403]
    assert content(hub.resolve(REF)) == CONTENT
    assert [m for m, path, _ in behaviour.requests if path == PATH] == ["HEAD"] * 2
    other.status = [403] * 9
    with pytest.raises(DownloadError, match=r"HTTP 403.*token"):
        hub.resolve("org/name:b.gguf")


# ---- revisions and offline -------------------------------------------------------------------------------------------


def test_revisions(served, cache):
    """A branch, a tag, a reference with slashes and a commit; refs say what they came to."""
    for revision, commit in {"main": COMMIT, "v1": OLDER, "refs/pr/1": OLDER, COMMIT: COMMIT}.items():
        path = hub.resolve(f"org/name@{revision}:a.gguf")
        assert path == str(folder(cache) / "snapshots" / commit / "a.gguf") and content(path) == CONTENT
    assert names(cache, "refs") == ["main", "refs/pr/1", "v1"] and gets(served) == [None]  # one blob for all
    (folder(cache) / "refs/main").write_text(OLDER)  # another tool has a newer one
    assert hub.resolve(REF) == str(folder(cache) / "snapshots" / COMMIT / "a.gguf")
    assert (folder(cache) / "refs/main").read_text() == COMMIT


@pytest.mark.parametrize("how", ["argument", "HF_HUB_OFFLINE", "no server"])
def test_offline(cache, monkeypatch, how):
    with servers.hub(FILES) as (base, behaviour):
        monkeypatch.setenv("HF_ENDPOINT", base)
        for ref in (REF, "org/name@v1:sub/config.json"):
            hub.resolve(ref)
    forget(cache)
    requests, options = len(behaviour.requests), {}
    if how == "argument":
        options["offline"] = True
    elif how == "HF_HUB_OFFLINE":
        monkeypatch.setenv(how, "1")
    path = hub.resolve(REF, **options)
    assert content(path) == CONTENT and hub.resolve("org/name", **options) == path
    assert content(hub.resolve("org/name@v1:sub/config.json", **options)) == b"{}"
    with pytest.raises(DownloadError, match="ends in b.gguf" if options or how != "no server" else "check the network"):
        hub.resolve("org/name:b.gguf", **options)
    for ref in ("org/name@v2", "org/other", f"org/name@{'1' * 40}:a.gguf"):
        with pytest.raises(DownloadError, match="offline" if options or how != "no server" else "check the network"):
            hub.resolve(ref, **options)
    assert len(behaviour.requests) == requests
    forget(cache)
    (folder(cache) / "blobs" / SHA256).write_bytes(CONTENT[:-1] + b"x")
    with pytest.raises(DownloadError, match="damaged" if options or how != "no server" else "check the network"):
        hub.resolve(REF, **options)


def test_offline_holds_for_packages_if_asked(cache):
    with pytest.raises(DownloadError, match="offline"):
        hub.resolve(hub.DEFAULT_MODEL, offline=True)


# ---- models in several files -----------------------------------------------------------------------------------------


def test_all_shards_come_with_an_index(cache, monkeypatch, tmp_path):
    safetensors.save(tmp_path / "model.safetensors", {"a": np.arange(100), "b": np.arange(9)}, shard_size=800)
    files = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    for sub in ("", "sub/"):
        with servers.hub({sub + name: data for name, data in files.items()}) as (base, behaviour):
            monkeypatch.setenv("HF_ENDPOINT", base)
            path = hub.resolve(f"org/name@{'main' if not sub else 'v1'}")
            with tensorlib.load(path) as file:
                assert file.tensor("b").tolist() == list(range(9)) and len(gets(behaviour)) == (3 if not sub else 0)
    os.unlink(os.path.join(os.path.dirname(path), "model-00002-of-00002.safetensors"))
    with servers.hub({"sub/" + name: data for name, data in files.items()}) as (base, behaviour):
        monkeypatch.setenv("HF_ENDPOINT", base)
        assert hub.resolve("org/name@v1") == path and tensorlib.load(path).tensor("b").tolist() == list(range(9))
    index = json.loads(files["model.safetensors.index.json"])
    for wrong in ("../x.safetensors", "missing.safetensors"):
        index["weight_map"]["a"] = wrong
        with servers.hub({**files, "model.safetensors.index.json": json.dumps(index).encode()}) as (base, _):
            monkeypatch.setenv("HF_ENDPOINT", base)
            with pytest.raises(DownloadError, match=wrong):
                hub.resolve(f"org/name@{COMMIT}:model.safetensors.index.json")


def test_all_parts_come_with_a_split_model(cache, monkeypatch, tmp_path):
    gguf.write(tmp_path / "m-Q4_K.gguf", {}, {name: np.arange(9, dtype="f4") for name in "abc"})
    parts = gguf.split(tmp_path / "m-Q4_K.gguf", tmp_path / "m-Q4_K", max_tensors=1)
    files = {f"Q4_K/{os.path.basename(part)}": content(part) for part in parts}
    with servers.hub({**files, "m-Q8_0.gguf": b"x"}) as (base, behaviour):
        monkeypatch.setenv("HF_ENDPOINT", base)
        path = hub.resolve("org/name:q4_k")
        assert path.endswith("Q4_K/m-Q4_K-00001-of-00003.gguf") and len(gets(behaviour)) == 3
        with tensorlib.load(path) as file:
            assert list(file.tensors) == ["a", "b", "c"]
        assert hub.resolve("org/name:Q4_K/m-Q4_K-00002-of-00003.gguf").endswith("00002-of-00003.gguf")
    del files["Q4_K/m-Q4_K-00002-of-00003.gguf"]
    with servers.hub(files) as (base, _):
        monkeypatch.setenv("HF_ENDPOINT", base)
        with pytest.raises(DownloadError, match="without Q4_K/m-Q4_K-00002-of-00003"):
            hub.resolve("org/name@v1")
