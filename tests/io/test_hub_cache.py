"""One cache for huggingface_hub and for us, on file systems of all kinds."""

import hashlib
import os
import sys

import huggingface_hub
import pytest

from tensorlib.io import hub
from tests.io.servers import CONTENT, FILES, OLDER, content, forget, gets, names
from tests.io.weights import UNPRIVILEGED

REF, SHA256 = "org/name:a.gguf", hashlib.sha256(CONTENT).hexdigest()


def theirs(name, **options):
    """huggingface_hub's own download."""
    return huggingface_hub.hf_hub_download(
        "org/name", name, endpoint=os.environ["HF_ENDPOINT"], cache_dir=hub.cache_folder(), **options
    )


@pytest.mark.parametrize("name", ["a.gguf", "sub/config.json"])
@pytest.mark.parametrize("revision", ["main", "v1", "refs/pr/1", OLDER])
def test_huggingface_hub_finds_what_we_fetched(served, cache, name, revision):
    path = hub.resolve(f"org/name@{revision}:{name}")
    assert theirs(name, revision=revision, local_files_only=True) == path
    assert theirs(name, revision=revision) == path and len(gets(served)) == 1
    report = huggingface_hub.scan_cache_dir(cache)
    assert not report.warnings and report.size_on_disk == len(FILES[name])
    (repo,) = report.repos
    refs = {ref for found in repo.revisions for ref in found.refs}
    assert repo.repo_id == "org/name" and refs == ({revision} - {OLDER})


@pytest.mark.parametrize("name", ["a.gguf", "sub/config.json"])
@pytest.mark.parametrize("revision", ["main", "v1", "refs/pr/1", OLDER])
def test_we_find_what_huggingface_hub_fetched(served, cache, name, revision):
    path = theirs(name, revision=revision)
    for offline in (True, False):
        forget(cache)
        assert hub.resolve(f"org/name@{revision}:{name}", offline=offline) == path and len(gets(served)) == 1


def test_we_do_not_trust_what_is_there(served, cache, capfd):
    """huggingface_hub compares no hash: what it fetched is checked once, and fetched again if need be."""
    path = "/org/name/resolve/main/a.gguf"
    served.files[path] = CONTENT[:-1] + b"x"
    path = theirs("a.gguf")
    assert content(path) != CONTENT and hub.resolve(REF) == path and content(path) == CONTENT
    assert "is damaged, and fetched again" in capfd.readouterr().err


# ---- file systems ----------------------------------------------------------------------------------------------------


def test_file_system_without_links(served, cache, monkeypatch):
    def refuse(*_, **__):
        raise OSError(1, "no links here")

    monkeypatch.setattr(os, "symlink", refuse)
    path = hub.resolve(REF)
    forget(cache)
    assert hub.resolve(REF) == path and content(path) == CONTENT and not os.path.islink(path) and gets(served) == [None]
    assert theirs("a.gguf", local_files_only=True) == path


LIMITED = """
import resource, sys
from tensorlib.io import fetch, hub
from tensorlib.errors import DownloadError
fetch.TRIES = 1
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    hub.resolve(sys.argv[1])
except DownloadError as error:
    print(error)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="RLIMIT_FSIZE")
def test_a_disk_that_takes_no_more(served, cache, run_python):
    """The disk is named, not the network; what is there is gone on from."""
    text = run_python(LIMITED, REF)
    assert "File too large" in text and "network" not in text and names(cache, "snapshots") == []
    assert content(hub.resolve(REF)) == CONTENT and gets(served)[1] == "bytes=100000-"


ASK = (
    UNPRIVILEGED
    + """
from tensorlib.io import hub
from tensorlib.errors import DownloadError
for ref in sys.argv[1:]:
    try:
        print(hub.resolve(ref))
    except DownloadError as error:
        print(error)
"""
)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="capabilities")
def test_a_cache_that_is_read_only(served, cache, run_python):
    """What is in it is used; what is not is one DownloadError that says what to do."""
    path = theirs("a.gguf")
    folders = [path for path, *_ in os.walk(cache)]
    for each in folders:
        os.chmod(each, 0o555)
    try:
        found, refused = run_python(ASK, REF, "org/name:b.gguf").splitlines()
    finally:
        for each in folders:
            os.chmod(each, 0o755)
    assert found == path and gets(served) == [None]
    assert "Permission denied" in refused and "HF_HOME" in refused
