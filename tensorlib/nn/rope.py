"""Inverse frequencies of rotary embeddings (arXiv:2104.09864), with all scalings that models on the Hub have.

>>> from tensorlib import nn
>>> frequencies, factor = nn.rope_frequencies({"rope_type": "linear", "factor": 4.0}, 4, theta=100.0)
>>> frequencies, factor
([0.25, 0.025], 1.0)
>>> nn.RotaryEmbedding(4, 32, scaling=(frequencies, factor)).tables()[0].shape
(32, 2)
"""

from math import ceil, floor, log, pi, sqrt

from tensorlib.errors import ShapeError


def rope_frequencies(config=None, head_dim=None, theta=10000.0, max_position=None, seq_len=None):
    """(inverse frequencies, one per pair of dims, in radians per position; what cos and sin are multiplied by).

    config: a dict as `rope_scaling` or `rope_parameters` of a Hugging Face `config.json`, None for no scaling. Its
    `rope_type` (or `type`) is a row of SCALINGS; `rope_theta` and `partial_rotary_factor` in it count, too. Head dims
    beyond twice the frequencies do not turn. max_position: the config's `max_position_embeddings`, which some scalings
    need. seq_len: how long sequences get: "dynamic" stretches with it, "longrope" has two sets of factors.

    ShapeError for an unknown type, and for what a type needs and the config lacks. The numbers are those of
    `transformers.modeling_rope_utils`, in float64.
    """
    config = {name: value for name, value in (config or {}).items() if value is not None}
    kind = config.get("rope_type", config.get("type", "default"))
    if kind not in SCALINGS:
        raise ShapeError("rope_frequencies", f"rope_type {kind!r}", ", ".join(SCALINGS), "use one of these")
    if head_dim is None or head_dim < 2:
        raise ShapeError("rope_frequencies", f"head_dim {head_dim}", "2 or more", "give the width of a head")
    part = config.get("partial_rotary_factor", 1.0)
    dim = head_dim if kind == "proportional" else int(head_dim * part)
    theta, found = config.get("rope_theta", theta), _Needs(kind, config, max_position)
    frequencies, factor = SCALINGS[kind](found, [theta ** (-i / dim) for i in range(0, dim, 2)], dim, theta, seq_len)
    return frequencies, float(factor)


class _Needs:
    """The config of a scaling, with an error for what it lacks."""

    def __init__(self, kind, config, max_position):
        self.kind, self.config, self._max_position = kind, config, max_position

    def get(self, name, default=None):
        return self.config.get(name, default)

    def __getitem__(self, name):
        if name not in self.config:
            fix = "see rope_scaling or rope_parameters in the model's config.json"
            raise ShapeError("rope_frequencies", f"{self.kind} without {name!r}", "it in the config", fix)
        return self.config[name]

    @property
    def max_position(self):
        if not self._max_position:
            fix = "give max_position_embeddings of the model's config.json"
            raise ShapeError("rope_frequencies", f"{self.kind} without max_position", "it", fix)
        return self._max_position

    @property
    def original(self):
        """The context that the model was first trained with."""
        return self.get("original_max_position_embeddings") or self.max_position

    @property
    def factor(self):
        """By how much the context was stretched."""
        return self.get("factor") or self.max_position / self.original


def _default(config, frequencies, dim, theta, seq_len):
    return frequencies, 1.0


def _linear(config, frequencies, dim, theta, seq_len):
    """Positions divided by a factor (arXiv:2306.15595)."""
    return [f / config["factor"] for f in frequencies], 1.0


def _proportional(config, frequencies, dim, theta, seq_len):
    """The first pairs of dims turn as if all did, the rest not at all."""
    turning = int(config.get("partial_rotary_factor", 1.0) * dim // 2)
    factor = config.get("factor", 1.0)
    return [f / factor if i < turning else 0.0 for i, f in enumerate(frequencies)], 1.0


def _dynamic(config, frequencies, dim, theta, seq_len):
    """A larger theta where sequences are longer than the context ("dynamic NTK")."""
    limit, factor = config.max_position, config["factor"]
    longer = max(seq_len or limit, limit) / limit
    theta = theta * (factor * longer - (factor - 1)) ** (dim / (dim - 2))
    return [theta ** (-i / dim) for i in range(0, dim, 2)], 1.0


def _yarn(config, frequencies, dim, theta, seq_len):
    """Slow pairs divided by the factor, fast ones not, a ramp between them (arXiv:2309.00071)."""
    factor, original = config.factor, config.original

    def pair(turns):  # the one that turns so often within the original context
        return dim * log(original / (turns * 2 * pi)) / (2 * log(theta))

    low, high = pair(config.get("beta_fast") or 32), pair(config.get("beta_slow") or 1)
    if config.get("truncate", True):
        low, high = floor(low), ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    high = high + 0.001 if low == high else high
    found = []
    for i, f in enumerate(frequencies):
        ramp = min(max((i - low) / (high - low), 0.0), 1.0)
        found.append(f / factor * ramp + f * (1 - ramp))
    return found, _yarn_attention(config, factor)


def _yarn_attention(config, factor):
    def scale(by):
        return 0.1 * by * log(factor) + 1.0 if factor > 1 else 1.0

    if config.get("attention_factor") is not None:
        return config["attention_factor"]
    by, all_dims = config.get("mscale"), config.get("mscale_all_dim")
    return scale(by) / scale(all_dims) if by and all_dims else scale(1)


def _longrope(config, frequencies, dim, theta, seq_len):
    """Each pair divided by a factor of its own, of two sets: for short and for long sequences (arXiv:2402.13753)."""
    original, stretched = config.original, config.factor
    factors = config["long_factor" if seq_len and seq_len > original else "short_factor"]
    if len(factors) != len(frequencies):
        got, expected = f"{len(factors)} factors", f"{len(frequencies)}, one per pair of dims"
        raise ShapeError("rope_frequencies", got, expected, "see head_dim and partial_rotary_factor")
    attention = config.get("attention_factor")
    if attention is None:
        attention = sqrt(1 + log(stretched) / log(original)) if stretched > 1 else 1.0
    return [f / by for f, by in zip(frequencies, factors)], attention


def _llama3(config, frequencies, dim, theta, seq_len):
    """Waves longer than the old context divided by the factor, short ones not, a blend between them (Llama 3.1)."""
    factor, old = config["factor"], config["original_max_position_embeddings"]
    low, high = config["low_freq_factor"], config["high_freq_factor"]
    found = []
    for f in frequencies:
        turns = old * f / (2 * pi)
        smooth = min(max((turns - low) / (high - low), 0.0), 1.0)
        found.append((1 - smooth) * f / factor + smooth * f)
    return found, 1.0


SCALINGS = {
    "default": _default,
    "linear": _linear,
    "dynamic": _dynamic,
    "yarn": _yarn,
    "longrope": _longrope,
    "su": _longrope,  # its name in the first Phi-3
    "llama3": _llama3,
    "proportional": _proportional,
    "mrope": _default,  # Qwen2-VL: what is special about it are positions, see `RotaryEmbedding`
}
