"""Fixtures of the tests that fetch files: an empty cache, and a Hub on this machine."""

import pytest

from tensorlib.io import fetch
from tests.io import servers
from tests.io.servers import FILES


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache, no settings of the person who runs this, and no waiting between attempts."""
    for name in (
        "HF_HUB_CACHE",
        "HUGGINGFACE_HUB_CACHE",
        "XDG_CACHE_HOME",
        "HF_TOKEN",
        "HF_HUB_OFFLINE",
        "TRANSFORMERS_OFFLINE",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "no token"))
    monkeypatch.setattr(fetch, "PAUSE", 0.001)
    return tmp_path / "hf" / "hub"


@pytest.fixture
def served(cache, monkeypatch):
    """A Hub with `FILES`: its Behaviour."""
    with servers.hub(FILES) as (base, behaviour):
        monkeypatch.setenv("HF_ENDPOINT", base)
        yield behaviour


@pytest.fixture
def stored(cache, monkeypatch):
    """A Hub with `FILES` whose large files are on another server: the Behaviour of both."""
    blobs = {f"/{servers.etag(name, data)}": data for name, data in FILES.items()}
    with servers.serve(blobs) as (storage, other), servers.hub(FILES, storage) as (base, behaviour):
        monkeypatch.setenv("HF_ENDPOINT", base)
        yield behaviour, other
