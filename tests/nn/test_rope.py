"""Inverse frequencies against transformers, and rotary embeddings with them against what its models compute."""

import numpy as np
import pytest

import tensorlib
from tensorlib import nn
from tensorlib.errors import ShapeError

THIRD = {"factor": None, "original_max_position_embeddings": 64}
SHORT = {"short_factor": [1 + i / 4 for i in range(8)], "long_factor": [2 + i / 2 for i in range(8)], **THIRD}
LOW = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 512}
FINE = {"mscale": 1.0, "mscale_all_dim": 0.8, "beta_fast": 16, "beta_slow": 2, "truncate": False}
# (type, config, max_position, seq_len), and what ROPE_INIT_FUNCTIONS of transformers 5.24.0 give, in float32, for a
# LlamaConfig with heads of 16 dims and a theta of 10000
ROWS = [
    (("linear", {"factor": 4.0}, 64, None),
     [0.25, 0.079056941, 0.0250000004, 0.00790569466, 0.00249999994, 0.000790569466, 0.000250000012, 7.90569466e-05],
     1),
    (("linear", {"factor": 4.0, "partial_rotary_factor": 0.5}, 64, None),
     [0.25, 0.0250000004, 0.00249999994, 0.000250000012], 1),
    (("dynamic", {"factor": 2.0}, 64, None),
     [1, 0.316227764, 0.100000001, 0.0316227786, 0.00999999978, 0.00316227786, 0.00100000005, 0.000316227786], 1),
    (("dynamic", {"factor": 2.0}, 64, 200),
     [1, 0.249528468, 0.0622644536, 0.0155367535, 0.00387686281, 0.000967387517, 0.000241390735, 6.02338623e-05], 1),
    (("yarn", {"factor": 4.0, "original_max_position_embeddings": 4096}, 16384, None),
     [1, 0.316227764, 0.100000001, 0.025693506, 0.00624999963, 0.00138349656, 0.000250000012, 7.90569466e-05],
     1.138629436111989),
    (("yarn", {"factor": 40.0, "original_max_position_embeddings": 4096, **FINE}, 163840, None),
     [1, 0.316227764, 0.100000001, 0.0316227786, 0.00579010462, 0.000123952457, 2.49999994e-05, 7.90569447e-06],
     1.0569662567531275),
    (("yarn", {"factor": 4.0, "original_max_position_embeddings": 512, "attention_factor": 0.7}, 2048, None),
     [1, 0.25693506, 0.0625, 0.0138349654, 0.00249999994, 0.000790569466, 0.000250000012, 7.90569466e-05], 0.7),
    (("longrope", SHORT, 256, None),
     [1, 0.252982229, 0.0666666701, 0.0180701576, 0.00499999989, 0.0014054568, 0.00039999999, 0.000114991912],
     1.1547005383792517),
    (("longrope", SHORT, 256, 100),
     [0.5, 0.126491114, 0.0333333351, 0.00903507881, 0.00249999994, 0.000702728401, 0.000199999995, 5.74959558e-05],
     1.1547005383792517),
    (("llama3", {"factor": 8.0, **LOW}, 4096, None),
     [1, 0.316227764, 0.100000001, 0.0184966773, 0.00124999997, 0.000395284733, 0.000125000006, 3.95284733e-05], 1),
    (("proportional", {"partial_rotary_factor": 0.25}, 64, None), [1, 0.316227764, 0, 0, 0, 0, 0, 0], 1),
    (("proportional", {"partial_rotary_factor": 0.5, "factor": 2.0}, 64, None),
     [0.5, 0.158113882, 0.0500000007, 0.0158113893, 0, 0, 0, 0], 1),
]  # fmt: skip


@pytest.mark.parametrize(("row", "frequencies", "factor"), ROWS, ids=[f"{i}-{r[0][0]}" for i, r in enumerate(ROWS)])
def test_frequencies(row, frequencies, factor):
    kind, config, max_position, seq_len = row
    found, attention = nn.rope_frequencies({"type": kind, **config}, 16, 10000.0, max_position, seq_len)
    # powers of theta in float32, an exponent of up to 10 rounded: 32 roundings
    np.testing.assert_allclose(found, frequencies, rtol=32 * 2.0**-24)
    assert attention == pytest.approx(factor, rel=1e-14)


@pytest.mark.parametrize(("row", "frequencies", "factor"), ROWS, ids=[f"{i}-{r[0][0]}" for i, r in enumerate(ROWS)])
def test_the_rows_are_transformers(row, frequencies, factor):
    utils = pytest.importorskip("transformers.modeling_rope_utils")
    from transformers import LlamaConfig

    kind, parameters, max_position, seq_len = row
    config = LlamaConfig(hidden_size=64, num_attention_heads=4, head_dim=16, max_position_embeddings=max_position)
    config.rope_parameters = {"rope_theta": 10000.0, "rope_type": kind, **parameters}
    found, attention = utils.ROPE_INIT_FUNCTIONS[kind](config, "cpu", seq_len=seq_len)
    np.testing.assert_allclose(found.numpy(), frequencies, rtol=1e-7)
    assert attention == pytest.approx(factor)


def turned(x, angles, factor=1.0):
    """Hugging Face's apply_rotary_pos_emb of x [T, H, D] by angles [T, R/2]; dims from R on stay."""
    half = angles.shape[1]
    cos, sin = (factor * np.concatenate([f(angles)] * 2, 1)[:, None] for f in (np.cos, np.sin))
    own, rest = x[..., : 2 * half], x[..., 2 * half :]
    other = np.concatenate([-own[..., half:], own[..., :half]], -1)
    return np.concatenate([own * cos + other * sin, rest], -1)


def agree(found, want):
    np.testing.assert_allclose(found.numpy(), want, atol=16 * 2.0**-24)  # |x| < 4: tables, two products, a sum


def test_scaled_partial_rotation():
    x = np.random.default_rng(0).uniform(-2, 2, (5, 2, 16)).astype(np.float32)
    config = {"rope_type": "yarn", "factor": 4.0, "partial_rotary_factor": 0.5, "original_max_position_embeddings": 16}
    scaling = nn.rope_frequencies(config, 16)
    assert len(scaling[0]) == 4 and scaling[1] > 1
    rotary = nn.RotaryEmbedding(16, 32, scaling=scaling)
    angles = (np.arange(5) + 3)[:, None] * np.array(scaling[0])
    agree(rotary(tensorlib.from_numpy(x), 3), turned(x, angles, scaling[1]))
    places = np.array([7, 0, 31, 2, 2])
    agree(rotary(tensorlib.from_numpy(x), positions=tensorlib.from_numpy(places)),
          turned(x, places[:, None] * np.array(scaling[0]), scaling[1]))  # fmt: skip


@pytest.mark.parametrize("mixed", [False, True])
def test_several_axes_of_positions(mixed):
    x = np.random.default_rng(0).uniform(-2, 2, (6, 2, 16)).astype(np.float32)
    places, sections = np.random.default_rng(1).integers(0, 50, (3, 6)), [4, 2, 2]
    frequencies = 10000.0 ** (-np.arange(0, 16, 2) / 16)
    each = places[..., None] * frequencies  # [3, T, 8]
    if mixed:  # Qwen3-VL's apply_interleaved_mrope
        angles = each[0].copy()
        for axis in (1, 2):
            angles[:, axis : sections[axis] * 3 : 3] = each[axis][:, axis : sections[axis] * 3 : 3]
    else:  # Qwen2-VL's apply_multimodal_rotary_pos_emb
        angles = np.concatenate([each[0][:, :4], each[1][:, 4:6], each[2][:, 6:]], 1)
    rotary = nn.RotaryEmbedding(16, 64, sections=sections, mixed=mixed)
    agree(rotary(tensorlib.from_numpy(x), positions=tensorlib.from_numpy(places)), turned(x, angles))
    text = tensorlib.arange(6).expand((3, 6))
    agree(rotary(tensorlib.from_numpy(x), positions=text), rotary(tensorlib.from_numpy(x)).numpy())


def test_what_does_not_fit_is_told():
    with pytest.raises(ShapeError, match="rope_type 'ntk'"):
        nn.rope_frequencies({"rope_type": "ntk"}, 16)
    with pytest.raises(ShapeError, match="linear without 'factor'"):
        nn.rope_frequencies({"type": "linear"}, 16)
    with pytest.raises(ShapeError, match="dynamic without max_position"):
        nn.rope_frequencies({"type": "dynamic", "factor": 2.0}, 16)
    with pytest.raises(ShapeError, match="8 factors"):
        nn.rope_frequencies({"type": "longrope", **SHORT, "partial_rotary_factor": 0.5}, 16, max_position=256)
    with pytest.raises(ShapeError, match="add up"):
        nn.RotaryEmbedding(16, 8, sections=[2, 2, 2])
    rotary = nn.RotaryEmbedding(16, 8, sections=[4, 2, 2])
    with pytest.raises(ShapeError, match=r"\[3, T\]"):
        rotary(tensorlib.zeros(2, 1, 16), positions=tensorlib.arange(2))
    with pytest.raises(ShapeError, match="index"):
        nn.RotaryEmbedding(16, 8)(tensorlib.zeros(1, 1, 16), positions=tensorlib.tensor([9]))
