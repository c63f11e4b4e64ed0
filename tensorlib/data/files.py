"""Files of datasets: local, or from the Hub's dataset repositories, checked by their hashes."""

import gzip
import hashlib
import os
import zlib

from tensorlib.errors import DownloadError, FormatError

LIMIT = 1 << 30  # bytes that a compressed file may become


def fetch(repo, file, revision=None):
    """The path of `file` of a dataset repository `ORG/NAME` on the Hub, downloaded if it is not in the cache.

    The download and the cache are huggingface_hub's; what it has is then compared with its hash: the SHA-256 of a large
    file, the git SHA-1 of a small one. DownloadError for what cannot be had or differs.
    """
    import huggingface_hub

    try:
        path = huggingface_hub.hf_hub_download(repo, file, repo_type="dataset", revision=revision)
    except (huggingface_hub.errors.HfHubHTTPError, OSError, ValueError) as error:
        fix = "is the name right, and the Hub in reach?"
        raise DownloadError(f"datasets/{repo}/{file}", str(error).split("\n")[0], "the file", fix) from error
    _verify(path, repo, file)
    return path


def _verify(path, repo, file):
    wanted = os.path.basename(os.path.realpath(path))
    if len(wanted) not in (40, 64):  # a file system without links: the cache holds no hash
        return
    with open(path, "rb") as data:
        if len(wanted) == 64:
            found = hashlib.file_digest(data, "sha256").hexdigest()
        else:
            header = f"blob {os.path.getsize(path)}\0".encode()
            found = hashlib.sha1(header + data.read(), usedforsecurity=False).hexdigest()
    if found != wanted:
        got, fix = f"hash {found[:16]}...", "remove it from the cache and try again"
        raise DownloadError(f"datasets/{repo}/{file}", got, f"{wanted[:16]}...", fix)


def read(path, limit=LIMIT):
    """The bytes of a file, or of what a .gz file holds. FormatError for damaged ones and more than `limit` bytes."""
    try:
        with (gzip.open if os.fspath(path).endswith(".gz") else open)(path, "rb") as file:
            data = file.read(limit + 1)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise FormatError(path, "gzip", str(error), "a whole .gz file", "download it again") from error
    except OSError as error:
        raise FormatError(path, "file", error.strerror or str(error), "a file that can be read") from error
    if len(data) > limit:
        raise FormatError(path, "size", f"more than {limit} bytes", "a smaller file", "raise the limit")
    return data
