"""Messages, attributes, and the built-in exceptions that each error also is."""

import copy
import pickle

import pytest

from tensorlib import errors as E

KINDS = [
    (E.ShapeError, ValueError), (E.DTypeError, TypeError), (E.DeviceError, RuntimeError),
    (E.NoKernel, NotImplementedError), (E.ContextError, ValueError), (E.DownloadError, OSError),
    (E.WriteError, OSError),
]  # fmt: skip


@pytest.mark.parametrize("kind, builtin", KINDS)
def test_message_and_kind(kind, builtin):
    error = kind("add", "(2,)", "(3,)", "reshape it")
    assert str(error) == "add: got (2,); expected (3,); reshape it"
    assert isinstance(error, builtin) and isinstance(error, E.TensorlibError)
    for twin in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert str(twin) == str(error) and twin.op == "add"


def test_format_error():
    error = E.FormatError("model.gguf", "tensor 'x'", "offset 7", "a multiple of 32", "download it again")
    assert str(error) == "model.gguf: tensor 'x': got offset 7; expected a multiple of 32; download it again"
    assert isinstance(error, ValueError) and pickle.loads(pickle.dumps(error)).where == "tensor 'x'"
    assert str(E.FormatError("f", 12, "a", "b")) == "f: 12: got a; expected b"
