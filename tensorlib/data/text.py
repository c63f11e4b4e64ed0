"""Text to train language models on: windows of token ids, and the targets, which are the ids one further on."""

import os
import struct

from tensorlib.data.dataset import Dataset
from tensorlib.data.files import read
from tensorlib.errors import FormatError, ShapeError
from tensorlib.tensor import from_numpy

WIDTHS = {"u8": 1, "u16": 2, "i32": 4, "u32": 4}


class Tokens(Dataset):
    """Windows of `length` ids out of a row of ids: item i begins at `i * stride` and is (ids, ids one further on).

    `source`: a list or 1-d tensor of ids, or the path of a file of ids of `dtype` (u16: TinyStories' shards of
    llama2.c), which is mapped. ShapeError for fewer than length + 1 ids, FormatError for a file of no whole ids.

    >>> windows = Tokens([1, 2, 3, 4, 5], 2)
    >>> len(windows), windows[1]
    (2, (tensor([3, 4]), tensor([4, 5])))
    """

    def __init__(self, source, length, stride=None, dtype="u16"):
        self.length, self.stride = length, stride or length
        self.ids = _mapped(source, dtype) if isinstance(source, (str, os.PathLike)) else _row(source)
        if len(self.ids) <= length:
            got = f"{len(self.ids)} ids for windows of {length}"
            raise ShapeError("Tokens", got, "at least one more than the length", "shorten the windows")

    def __len__(self):
        return (len(self.ids) - 1 - self.length) // self.stride + 1

    def __getitem__(self, i):
        ids, targets = self.batch([i])
        return ids[0], targets[0]

    def batch(self, indices):
        """(ids, targets) [B, length] i64 of the windows `indices`."""
        if indices and not (min(indices) >= 0 and max(indices) < len(self)):
            raise IndexError(f"Tokens: got windows {min(indices)} to {max(indices)}; expected 0 to {len(self) - 1}")
        import numpy

        starts = numpy.asarray(indices, numpy.int64)[:, None] * self.stride
        found = self.ids[starts + numpy.arange(self.length + 1)].astype(numpy.int64)
        both = from_numpy(found)
        return both[:, :-1].contiguous(), both[:, 1:].contiguous()


def _row(source):
    import numpy

    ids = numpy.asarray(source.numpy() if hasattr(source, "numpy") else source)
    if ids.ndim != 1:
        raise ShapeError("Tokens", f"ids of shape {ids.shape}", "one dim", "flatten them")
    return ids


def _mapped(path, dtype):
    import numpy

    size = os.path.getsize(path)
    if dtype not in WIDTHS or size % WIDTHS[dtype] or not size:
        raise FormatError(
            path, "ids", f"{size} bytes of {dtype}", f"whole ids of {', '.join(WIDTHS)}", "give its dtype"
        )
    return numpy.memmap(path, numpy.dtype({"u8": "u1", "u16": "<u2", "i32": "<i4", "u32": "<u4"}[dtype]), "r")


class Characters:
    """A vocabulary of the characters of a text: `encode` and `decode`, as tokenizers have.

    >>> vocabulary = Characters("hello")
    >>> len(vocabulary), vocabulary.decode(vocabulary.encode("hole"))
    (4, 'hole')
    """

    def __init__(self, text):
        self.characters = sorted(set(text))
        self._ids = {c: i for i, c in enumerate(self.characters)}

    def __len__(self):
        return len(self.characters)

    def encode(self, text):
        """The ids of a text. ShapeError for a character that is not in the vocabulary."""
        unknown = sorted(set(text) - self._ids.keys())
        if unknown:
            raise ShapeError("Characters.encode", f"{unknown[:5]}", "characters of the vocabulary", "leave them out")
        return [self._ids[c] for c in text]

    def decode(self, ids):
        """The text of ids."""
        return "".join(self.characters[i] for i in ids)


class TextFile(Tokens):
    """Windows of a UTF-8 text file (or .gz), encoded by `tokenizer` (None: by its own `Characters`)."""

    def __init__(self, path, length, tokenizer=None, stride=None):
        data = read(path)
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise FormatError(path, "text", str(error), "UTF-8", "convert it") from error
        self.tokenizer = tokenizer or Characters(text)
        super().__init__(self.tokenizer.encode(text), length, stride)


def write_tokens(path, ids, dtype="u16"):
    """Writes ids as a file that `Tokens` maps, whole or not at all."""
    from tensorlib.io.atomic import writing

    code = {"u8": "B", "u16": "H", "i32": "i", "u32": "I"}[dtype]
    with writing(path) as file:
        file.write(struct.pack(f"<{len(ids)}{code}", *ids))
