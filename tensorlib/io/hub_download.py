"""A repository's file from the Hugging Face Hub, through huggingface_hub, and its hash, which that does not check."""

from __future__ import annotations

import contextlib
import hashlib
import os

from tensorlib.errors import DownloadError
from tensorlib.io import fetch as net
from tensorlib.io.hub import cache_folder, choose


def fetch(repo: str, choice: str, folder: str, note: str) -> str:
    """Download (or find) the file, verify it, write down what `choice` came to, and return its path."""
    import huggingface_hub

    label = f"{repo}:{choice}" if choice else repo
    name = choose(repo, choice, _files(huggingface_hub, repo, folder, label))
    with net.writing(cache_folder(), label), _failures(huggingface_hub, label):
        path = huggingface_hub.hf_hub_download(repo, name, cache_dir=cache_folder())
    _verify(path, label)
    commit = os.path.relpath(path, os.path.join(folder, "snapshots")).split(os.sep)[0]
    with contextlib.suppress(OSError):  # only spares the next start these steps
        os.makedirs(os.path.dirname(note), exist_ok=True)
        temporary = f"{note}.{os.getpid()}"
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(f"{commit}\n{name}\n")
        os.replace(temporary, note)
    return path


def _files(library, repo, folder, label) -> list[str]:
    """Names of the repository's files; of those in the cache if the Hub is out of reach."""
    with _failures(library, label):
        try:
            return library.HfApi().list_repo_files(repo)
        except Exception as error:
            local = _cached_files(folder)
            if not local or isinstance(error, library.errors.RepositoryNotFoundError):
                raise
            return local


def _cached_files(folder) -> list[str]:
    try:
        with open(os.path.join(folder, "refs", "main"), encoding="utf-8") as file:
            snapshot = os.path.join(folder, "snapshots", file.read().strip())
    except OSError:
        return []
    found = [os.path.join(parent, name) for parent, _, names in os.walk(snapshot) for name in names]
    return [os.path.relpath(path, snapshot).replace(os.sep, "/") for path in found]


@contextlib.contextmanager
def _failures(library, label):
    """What huggingface_hub and its transport raise, as one DownloadError."""
    try:
        yield
    except OSError as error:  # HfHubHTTPError is one; so are a full disk and a read-only folder
        if isinstance(error, DownloadError) or (error.errno or 0) in net.FULL + net.FORBIDDEN:
            raise
        raise DownloadError(f"download of {label}", *_explain(library, error)) from None
    except Exception as error:
        raise DownloadError(f"download of {label}", *_explain(library, error)) from None


def _explain(library, error) -> tuple[str, str, str]:
    """got, expected and fix for an exception of huggingface_hub."""
    errors = library.errors
    if isinstance(error, errors.GatedRepoError):
        return "a gated repository", "access to it", "ask for access on its page, then `hf auth login`"
    if isinstance(error, errors.RepositoryNotFoundError):
        return "no such repository", "a public one", "check its name; for a private one `hf auth login`"
    first = str(error).strip().split("\n")[0][:300]
    return (
        f"{type(error).__name__}: {first}",
        "the file",
        "check the network, and run it again: it goes on where it stopped",
    )


def _verify(path, label):
    """Large files are stored under their SHA-256: compare it with the content. (Small ones go by another hash.)"""
    blob = os.path.realpath(path)
    expected = os.path.basename(blob)
    if len(expected) != 64 or not set(expected) <= set("0123456789abcdef"):
        return
    digest = hashlib.sha256()
    with open(blob, "rb") as file:
        while piece := file.read(net.CHUNK):
            digest.update(piece)
    if digest.hexdigest() != expected:
        for damaged in (path, blob):
            with contextlib.suppress(OSError):
                os.unlink(damaged)
        raise DownloadError(f"download of {label}", f"SHA-256 {digest.hexdigest()}", expected, "run it again")
