"""Checkpoints: everything that a run needs to go on as if it had never stopped, in one file per step.

A file is `step-00001000.safetensors`: tensors by their path in the objects' states, and in its metadata the rest
(numbers, text, the shape of the states, the random generator). It has its name only when it is whole and on the disk,
and older ones are removed after that: a process that is killed at any moment leaves the last one that was finished.
"""

import contextlib
import json
import os
import re

from tensorlib import random
from tensorlib.device import Array
from tensorlib.errors import FormatError, WriteError
from tensorlib.io import safetensors

NAME = re.compile(r"step-(\d{8,})\.safetensors")
PLAIN = (bool, int, float, str, type(None))


class Checkpoints:
    """The files in `folder` (made if it is not there), of which the last `keep` stay (None: all).

    `save(step, model=..., optimizer=..., ...)` takes anything that has `state_dict()` and `load_state_dict(state)`, or
    plain values (numbers, text, tensors, lists and dicts of them); `load` gives them back.
    """

    def __init__(self, folder, keep=3):
        if keep is not None and keep < 1:
            raise ValueError(f"Checkpoints: got keep {keep}; expected 1 or more, or None for all")
        self.folder, self.keep = os.fspath(folder), keep

    def steps(self):
        """The steps that there are files of, in order."""
        names = os.listdir(self.folder) if os.path.isdir(self.folder) else []
        return sorted(int(found[1]) for found in map(NAME.fullmatch, names) if found)

    def path(self, step):
        """The file of a step."""
        return os.path.join(self.folder, f"step-{step:08d}.safetensors")

    def save(self, step, **objects):
        """Writes the states of `objects` and the random generator's. WriteError where the disk is full and the like."""
        tensors = {}
        states = {name: _state(value) for name, value in objects.items()}
        tree = {name: _packed(value, name, tensors) for name, value in states.items()}
        about = {"step": step, "random": list(random.get_rng_state()), "objects": tree}
        try:
            os.makedirs(self.folder, exist_ok=True)
        except OSError as error:
            raise WriteError(self.folder, str(error), "a folder that can be made", "name another one") from error
        safetensors.save(self.path(step), tensors, {"checkpoint": json.dumps(about)})
        for old in self.steps()[: -self.keep] if self.keep else ():
            if old != step:
                with contextlib.suppress(OSError):  # the new one is there: that is what counts
                    os.remove(self.path(old))

    def load(self, step=None, **objects):
        """Gives the objects the states of a step (None: the last), and the generator its own; returns the step, None if
        there is no checkpoint. Plain values are given by `read`.

        FormatError for a file that is not whole, no checkpoint, or without a state of one of the objects.
        """
        about = self.read(step)
        if about is None:
            return None
        missing = sorted(objects.keys() - about["objects"].keys())
        if missing:
            known = ", ".join(about["objects"])
            raise FormatError(self.path(about["step"]), "objects", f"no {', '.join(missing)}", f"some of {known}")
        for name, target in objects.items():
            target.load_state_dict(about["objects"][name])
        random.set_rng_state(about["random"])
        return about["step"]

    def read(self, step=None):
        """{"step", "random", "objects": {name: state}} of a step (None: the last), or None if there is none."""
        steps = self.steps()
        if not steps and step is None:
            return None
        path = self.path(steps[-1] if step is None else step)
        with safetensors.open(path, mapped=False) as file:
            try:
                about = json.loads(file.metadata["checkpoint"])
                about["objects"] = {name: _unpacked(value, file) for name, value in about["objects"].items()}
                about["step"], about["random"] = int(about["step"]), tuple(map(int, about["random"]))
            except (KeyError, TypeError, ValueError, RecursionError) as error:
                fix = "it was not written by Checkpoints.save"
                raise FormatError(path, "checkpoint", repr(error), "the states of a run", fix) from error
        return about


def _state(value):
    return value.state_dict() if hasattr(value, "state_dict") else value


def _packed(value, path, tensors):
    """A state as JSON's values; tensors go to `tensors`, under their paths."""
    if isinstance(value, Array):
        tensors[path] = value.detach()
        return {"tensor": path}
    if isinstance(value, PLAIN):
        return value
    if isinstance(value, (list, tuple)):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [_packed(v, f"{path}/{i}", tensors) for i, v in enumerate(value)]}
    if isinstance(value, dict) and all(isinstance(k, (str, int)) for k in value):
        pairs = [[k, _packed(v, f"{path}/{k}", tensors)] for k, v in value.items()]
        return {"dict": pairs}
    got = f"{path}: a {type(value).__name__}"
    raise TypeError(f"Checkpoints.save: got {got}; expected tensors, numbers, text, lists and dicts; leave it out")


def _unpacked(value, file):
    if not isinstance(value, dict):
        return value
    ((kind, inside),) = value.items()
    if kind == "tensor":
        return file.tensor(inside)
    if kind == "dict":
        return {key: _unpacked(v, file) for key, v in inside}
    if kind not in ("list", "tuple"):
        raise ValueError(f"a {kind}")
    values = [_unpacked(v, file) for v in inside]
    return values if kind == "list" else tuple(values)
