"""Damage to sound files of every reader: cut at each byte, each bit of the header flipped, nonsense in the right
structure. What is not sound must be one FormatError; anything else that comes out of a reader is a bug.
"""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.io.structures import STRUCTURES
from tests.io.targets import TARGETS, is_sound, put

SMALL = 4096  # bytes of a file up to which it is cut everywhere
STRIDE = {
    "tokenizer_json": 7,
    "template": 5,
    "vocabulary": 11,
    "pieces": 7,
    "world": 61,
}  # of bits, for readers that take a millisecond


@pytest.fixture
def file(tmp_path):
    return lambda target, data: put(target, tmp_path, target.wrap(data))


def test_every_reader_has_all_of_them():
    assert TARGETS.keys() == STRUCTURES.keys()


@pytest.mark.parametrize("name", TARGETS)
def test_seeds_are_sound(name, file):
    target = TARGETS[name]
    for data in target.seeds[:1] if name == "pickle" else target.seeds:  # the others are code
        assert is_sound(target, file(target, data))


@pytest.mark.parametrize("name", TARGETS)
def test_cut_anywhere(name, file):
    target = TARGETS[name]
    for data in target.seeds[:2] if name != "gguf" else target.seeds:
        allowed = set() if target.cuts is None else target.cuts(data)
        found = set()
        for length in range(0, len(data), 1 if len(data) < SMALL else 61):
            if is_sound(target, file(target, data[:length])):
                found.add(length)
        assert target.cuts is None or found == set(allowed)


@pytest.mark.parametrize("name", TARGETS)
def test_every_bit_of_the_header(name, file):
    target = TARGETS[name]
    for i, data in enumerate(target.seeds[: 1 if name == "pickle" else 4]):
        changed = bytearray(data)
        for bit in range(0, 8 * min(target.header, len(data)), STRIDE.get(name, 11 if i else 1)):
            changed[bit // 8] ^= 1 << bit % 8
            is_sound(target, file(target, bytes(changed)))
            changed[bit // 8] ^= 1 << bit % 8


@pytest.mark.parametrize("name", TARGETS)
@settings(max_examples=100)
@given(data=st.data())
def test_any_structure(name, data, tmp_path_factory):
    target = TARGETS[name]
    folder = tmp_path_factory.getbasetemp() / f"structure-{name}"
    folder.mkdir(exist_ok=True)
    is_sound(target, put(target, folder, target.wrap(data.draw(STRUCTURES[name]))))


@pytest.mark.parametrize("name", TARGETS)
@settings(max_examples=60)
@given(data=st.data())
def test_any_damage(name, data, tmp_path_factory):
    """Numbers replaced by special ones, pieces cut out, doubled or turned round."""
    target = TARGETS[name]
    raw = bytearray(data.draw(st.sampled_from(target.seeds)))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, max(min(len(raw), target.header) - 1, 0)))
        special = data.draw(st.sampled_from([0, 1, 2**31, 2**32 - 1, 2**62, 2**63, 2**64 - 8, 2**64 - 1]))
        size = data.draw(st.sampled_from([1, 2, 4, 8]))
        number = (special % 256**size).to_bytes(size, data.draw(st.sampled_from(["little", "big"])))
        choices = [number, raw[at : at + size][::-1], raw[at : at + 24] * 2, b"", raw[:16], bytes(size)]
        raw[at : at + size] = data.draw(st.sampled_from(choices))
    folder = tmp_path_factory.getbasetemp() / f"damage-{name}"
    folder.mkdir(exist_ok=True)
    is_sound(target, put(target, folder, target.wrap(bytes(raw))))
