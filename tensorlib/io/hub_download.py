"""Files of repositories on the Hugging Face Hub: asked for through huggingface_hub, brought and checked by `fetch`.

huggingface_hub (2.4) starts over what another process left half done, compares no hash, and makes an ETag a path as it
is. So only its requests for names and metadata are used, which know tokens, proxies and the Hub's errors; the files are
fetched here. Both lay the cache out in the same way and take the same locks.
"""

from __future__ import annotations

import contextlib
import os
import time

from tensorlib.errors import DownloadError, TensorlibError
from tensorlib.io import fetch as net
from tensorlib.io.hub import HEX, INDEXES, HubFile, cache_folder, choose, endpoint, is_commit, is_safe, split_name

ASKED = 3  # times that the Hub is asked, if it is out of reach
LARGE = 1 << 30  # bytes whose check takes a second, and is said
ELSEWHERE = "is this the Hub? check HF_ENDPOINT and proxies"


def fetch(wanted: HubFile, offline: bool, names=None) -> str:
    """Download (or find) what `wanted` names, verify it, write down what it came to, and return its path.

    `names(wanted, files, bring)`: which of a repository's files belong together, each given to `bring`, which makes
    it sound and returns its path; the first is what is asked for. None: a file and its other parts.
    """
    names = names or _parts
    if offline:
        commit, found = _found(wanted, names)
    else:
        import huggingface_hub

        label = wanted.ref
        with net.writing(cache_folder(), label), _failures(huggingface_hub, label):
            try:
                commit, found = _fetched(huggingface_hub, wanted, names)
            except Exception as error:
                if isinstance(error, TensorlibError) or _is_answer(huggingface_hub, error) or wanted.commit() is None:
                    raise
                net.say(f"the Hub is out of reach: looking for {label} in the cache")
                try:
                    commit, found = _found(wanted, names)
                except DownloadError:
                    raise error from None
    _note(wanted, commit, found)
    return wanted.path(commit, found[0])


def _note(wanted, commit, names):
    with contextlib.suppress(OSError):  # only spares the next start these steps
        _write(wanted.note(), f"{commit}\n" + "".join(f"{name}\n" for name in names))


def _write(path, text):
    """A small file, in one step."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    temporary = f"{path}.{os.getpid()}"
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
    os.replace(temporary, path)


def _parts(wanted, files, bring):
    """Names of the file that `wanted` means, and of what belongs to it. DownloadError."""
    name = choose(wanted.repo, wanted.choice, files)
    return [name, *rest(wanted, name, files, bring(name), bring)]


def rest(wanted, name, files, path, bring) -> list[str]:
    """Names of the files that belong to one at `path`, which are brought: other parts of a GGUF model, shards of an
    index. DownloadError if the repository lacks one.
    """
    prefix, number, count = split_name(name)
    if number:
        names = [f"{prefix}-{n:05d}-of-{count:05d}.gguf" for n in range(1, count + 1)]
    elif name.endswith(INDEXES):
        from tensorlib.io.safetensors import shards

        folder = name.rpartition("/")[0]
        names = [f"{folder}/{shard}".lstrip("/") for shard in shards(path)]
    else:
        return []
    lacking = [each for each in names if each not in files]
    if lacking:
        got = f"{wanted.repo} without {', '.join(lacking[:5])}" + (" and others" if lacking[5:] else "")
        raise DownloadError(f"download of {wanted.ref}", got, f"all {len(names)} parts of the model")
    names = [each for each in names if each != name]
    for each in names:
        bring(each)
    return names


# ---- from the cache --------------------------------------------------------------------------------------------------


def _found(wanted, names) -> tuple[str, list[str]]:
    """The commit and the names of files in the cache, each checked. DownloadError for what is not there."""
    commit = wanted.commit()
    snapshot = os.path.join(wanted.folder(), "snapshots", commit or "")
    found = [os.path.join(parent, name) for parent, _, names in os.walk(snapshot) for name in names] if commit else []
    files = {os.path.relpath(path, snapshot).replace(os.sep, "/") for path in found if os.path.isfile(path)}
    if not files:
        got, fix = f"no {wanted.repo} at {wanted.revision} in the cache", "run it once with a network"
        raise DownloadError(f"{wanted.ref}, offline", got, "it there", fix)

    def bring(name):
        path = wanted.path(commit, name)
        expected = os.path.basename(os.readlink(path)) if os.path.islink(path) else ""  # no link: no hash to compare
        if _is_hash(expected) and not _is_sound(path, expected):
            got, fix = f"{name} in the cache, damaged", "run it once with a network, which replaces it"
            raise DownloadError(f"{wanted.ref}, offline", got, f"a file of {net.kind(expected)} {expected}", fix)
        return path

    return commit, names(wanted, files, bring)


# ---- from the Hub ----------------------------------------------------------------------------------------------------


def _fetched(library, wanted, names) -> tuple[str, list[str]]:
    """The commit and the names of files that are in the cache now, each checked."""
    api = library.HfApi(endpoint=endpoint())
    info = _asked(library, lambda: api.model_info(wanted.repo, revision=wanted.revision))
    commit, files = info.sha or "", {each.rfilename for each in info.siblings or ()}
    if not is_commit(commit) or (is_commit(wanted.revision) and commit != wanted.revision):
        expected = f"commit {wanted.revision}" if is_commit(wanted.revision) else "the 40 digits of a commit"
        raise DownloadError(f"download of {wanted.ref}", f"commit {commit!r:.80}", expected, ELSEWHERE)
    found = names(wanted, files, lambda name: _file(library, wanted, name, commit))
    if not is_commit(wanted.revision) and wanted.commit() != commit:
        with contextlib.suppress(OSError):  # a cache that is read-only may have the files, and an older ref
            _write(os.path.join(wanted.folder(), "refs", *wanted.revision.split("/")), commit)
    return commit, found


def _asked(library, ask):
    """What the Hub answers, asked again where that may help."""
    for attempt in range(ASKED):
        try:
            return ask()
        except Exception as error:
            if _is_answer(library, error) or attempt == ASKED - 1:
                raise
            time.sleep(net.PAUSE * 2**attempt)


def _is_answer(library, error):
    """Whether an exception is what the Hub says, and no fault on the way to it."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    return isinstance(error, library.errors.OfflineModeIsEnabled) or (status and status < 500 and status != 429)


def _file(library, wanted, name, commit) -> str:
    """Brings one file of a commit into the cache; its path there."""
    url = library.hf_hub_url(wanted.repo, name, revision=commit, endpoint=endpoint())
    for attempt in (1, 2):
        found = _asked(library, lambda: library.get_hf_file_metadata(url, endpoint=endpoint()))
        etag = _checked(found, wanted, name, commit)
        path = wanted.path(commit, name)
        if _is_sound(path, etag):
            return path
        lock = os.path.join(cache_folder(), ".locks", os.path.basename(wanted.folder()), f"{etag}.lock")
        try:
            with net.locked(lock, name):
                _bring(library, found, url, etag, wanted, path, name)
            return path
        except net.Refused as refusal:  # an address that was signed for some minutes may be over
            if attempt == 2:
                got, fix = str(refusal), "check the token (HF_TOKEN or `hf auth login`) and try again"
                raise DownloadError(f"download of {wanted.ref}", got, "the file", fix) from None


def _checked(found, wanted, name, commit) -> str:
    """The hash that the Hub says a file has, once it may be a name. DownloadError."""
    etag, where = found.etag or "", f"download of {wanted.ref}"
    if found.commit_hash != commit:
        raise DownloadError(where, f"{name} of commit {found.commit_hash!r:.80}", f"commit {commit}", ELSEWHERE)
    if not _is_hash(etag):
        got, expected = f"{name} with the ETag {etag!r:.80}", "a SHA-256, or git's SHA-1, to check it by"
        raise DownloadError(where, got, expected, ELSEWHERE)
    if not is_safe(name):
        raise DownloadError(where, f"a file named {name!r:.80}", "a name that can be used here")
    return etag


def _is_hash(text):
    return len(text) in (40, 64) and set(text) <= HEX


def _is_sound(path, etag):
    """Whether a file is there and has that hash."""
    if not os.path.isfile(path):
        return False
    if os.path.getsize(path) > LARGE:
        net.say(f"checking {path}")
    return net.file_hash(path, etag) == etag


def _bring(library, found, url, etag, wanted, path, name):
    """Fetches a file, unless another process or another revision has it here already, and puts it in its place."""
    blob = os.path.join(wanted.folder(), "blobs", etag)
    if _is_sound(path, etag):
        return
    if _is_sound(blob, etag):
        net.place(blob, blob, path)
        return
    for damaged in (path, blob):
        if os.path.lexists(damaged):
            net.say(f"{damaged} is damaged, and fetched again")
            net.remove(damaged)
    target = found.location or url
    headers = {key.lower(): value for key, value in library.utils.build_hf_headers().items()}
    token = headers.get("authorization", "") if net.origin(target) == net.origin(url) else ""
    os.makedirs(os.path.dirname(blob), exist_ok=True)
    partial = blob + ".incomplete"
    net.download(target, partial, etag, f"{wanted.repo}/{name}", found.size, token)
    net.place(partial, blob, path)


# ---- what goes wrong -------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _failures(library, label):
    """What huggingface_hub and its transport raise, as one DownloadError."""
    try:
        yield
    except OSError as error:  # HfHubHTTPError is one; so are a full disk and a read-only folder
        if isinstance(error, DownloadError) or not (hasattr(error, "response") or error.errno is None):
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
    if isinstance(error, errors.RevisionNotFoundError):
        return "no such revision", "a branch, a tag or a commit of it", "check what stands after @"
    first = str(error).strip().split("\n")[0][:300]
    return (
        f"{type(error).__name__}: {first}",
        "the file",
        "check the network, and run it again: it goes on where it stopped",
    )
