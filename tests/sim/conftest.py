"""Tests of compiled kernels, which a process of the interpreter cannot hold: there only `interpreted/` is collected."""

import os

if os.environ.get("TRITON_INTERPRET") == "1":
    collect_ignore_glob = ["test_*.py"]
