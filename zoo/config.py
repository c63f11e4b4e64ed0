"""`config.json` as a model's config class reads it: typed fields, each error with the file and the field's name."""

import json
import os

from tensorlib.errors import FormatError
from tensorlib.nn.activations import ACTIVATIONS

REQUIRED = object()
KINDS = ("sliding_attention", "full_attention")
NAMES = {int: "an integer", float: "a number", bool: "true or false", str: "text", dict: "an object", list: "a list"}


class Fields:
    """The fields of a config, by `fields(name, kind, default)`; what is null counts as missing.

    >>> fields = Fields({"hidden_size": 64, "eps": 1}, "config.json")
    >>> fields("hidden_size", int), fields("eps", float), fields("bias", bool, False)
    (64, 1.0, False)
    >>> fields("vocab_size", int)
    Traceback (most recent call last):
    tensorlib.errors.FormatError: config.json: vocab_size: got no such field; expected an integer; ...
    """

    def __init__(self, values, path):
        self.values, self.path = values, path

    def __call__(self, name, kind, default=REQUIRED):
        value = self.values.get(name)
        if value is None:
            if default is REQUIRED:
                raise FormatError(self.path, name, "no such field", NAMES[kind], "is this the model's own config?")
            return default
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is not kind:
            raise FormatError(self.path, name, repr(value)[:80], NAMES[kind])
        return value

    def __contains__(self, name):
        return self.values.get(name) is not None

    def one_of(self, name, choices, default=REQUIRED):
        """The value of `choices` (a dict) that a text field names. FormatError lists them."""
        value = self(name, str, default)
        if value not in choices:
            known = ", ".join(map(str, choices))
            raise FormatError(self.path, name, repr(value)[:80], f"one of {known}", "this is not here yet")
        return choices[value]

    def act(self, name, default):
        """The name of an activation. FormatError for one that is not here."""
        return self.one_of(name, {act: act for act in ACTIVATIONS}, default)

    def only(self, name, kind, value):
        """FormatError unless a field is missing, or has the one value that a model is written for."""
        found = self(name, kind, value)
        if found != value:
            self.refuse(name, repr(value), found)

    def refuse(self, name, expected, found=None):
        """FormatError for what a field says."""
        found = self.values.get(name) if found is None else found
        raise FormatError(self.path, name, repr(found)[:80], expected, "this is not here yet")

    def ids(self, name, *default):
        """The ids of a field that may be one or a list, as a tuple."""
        found = self.values.get(name)
        if found is None:
            return default
        return tuple(self(name, list)) if isinstance(found, list) else (self(name, int),)

    def floats(self, name, default):
        """The numbers of a list as a tuple; infinity stands there as {"__float__": "Infinity"}."""
        found = [x.get("__float__") if isinstance(x, dict) else x for x in self(name, list, list(default))]
        try:
            return tuple(float(x) for x in found)
        except (TypeError, ValueError):
            raise FormatError(self.path, name, repr(found)[:80], "numbers") from None

    def sub(self, name):
        """The fields of an object inside; of an empty one if it is missing."""
        return Fields(self(name, dict, {}), f"{self.path}: {name}")

    def rope_scaling(self, part=None, kind=KINDS[1]):
        """What `nn.rope_frequencies` takes, or None for nothing special: `rope_parameters` or `rope_scaling`, with what
        stands beside them: the context, and the part of a head that turns (`part` if nothing says so; None: of a model
        that always turns all of it). `kind`: of layers, if these have parameters of their own.
        """
        found = self("rope_parameters", dict, None) or self("rope_scaling", dict, {})
        if kind != KINDS[1] or kind in found:
            found = found.get(kind) or {}
        name, type = "partial_rotary_factor", found.get("rope_type", found.get("type", "default"))
        turns = found.get(name) or self(name, float, part or 1.0)
        if part is None and turns != 1.0 and type != "proportional":
            raise FormatError(self.path, name, turns, 1.0, "this model turns whole heads")
        if type == "default" and turns == 1.0:
            return None
        first, context = "original_max_position_embeddings", "max_position_embeddings"
        first = {first: self.values.get(first) or found.get(first), context: self.values.get(context)}
        return {**found, **first, name: turns}

    def unscaled(self, kind=KINDS[1]):
        """FormatError if frequencies of rotary positions are scaled, for a model that is written for none that are."""
        found = self.rope_scaling(kind=kind)
        if found is not None:
            self.refuse("rope_type", "'default'", found.get("rope_type", found.get("type")))

    def windows(self, slides=lambda i: True, switched=False):
        """A window per layer, 0 for attention to all tokens: `layer_types` says which have one, or else slides(i).

        `switched`: whether there is one only if `use_sliding_window` says so.
        """
        layers = self("num_hidden_layers", int)
        used = not switched or self("use_sliding_window", bool, False)
        window = self("sliding_window", int, 0) if used else 0
        default = [KINDS[not slides(i)] for i in range(layers)]
        kinds = self("layer_types", list, default)
        if len(kinds) != layers or not {*kinds} <= {*KINDS}:
            raise FormatError(self.path, "layer_types", repr(kinds)[:80], f"{layers} of {' or '.join(KINDS)}")
        return tuple(window if kind == KINDS[0] else 0 for kind in kinds)

    def rope_theta(self, default=10000.0, kind=KINDS[1]):
        """The base of the rotary frequencies, from where it stands."""
        inside = self.sub("rope_parameters")
        inside = inside.sub(kind) if kind in inside else inside
        return inside("rope_theta", float, self("rope_theta", float, default))


def read(folder):
    """The Fields of `config.json` in a folder. FormatError for none, or what is no JSON object."""
    path = os.path.join(folder, "config.json")
    try:
        with open(path, encoding="utf-8") as file:
            values = json.load(file)
    except OSError as error:
        raise FormatError(path, "file", error.strerror, "a config.json", "name a model's folder") from None
    except (ValueError, RecursionError) as error:
        raise FormatError(path, "file", str(error)[:200], "JSON") from None
    if not isinstance(values, dict):
        raise FormatError(path, "file", f"a JSON {type(values).__name__}", "a JSON object")
    return Fields(values, path)
