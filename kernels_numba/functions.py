"""The mathematical functions as kernels call them: kernels may call no library, so they are all built here.

Sources are ordinary Python with plain literals (`exponentials.py`, `powers.py`, `trigonometry.py`). `scope` compiles
them for one float type, each literal in that type; what f32 lacks is computed in f64 and rounded once. They are
branch-free (but for huge arguments of f64 sines, and for fmod), so that LLVM vectorises the loops that call them.
"""

import ast
import functools
import inspect

import numpy as np
from numba import njit

from . import exponentials, integers, powers, scalar, special, trigonometry
from .marks import INF, NAN
from .scalar import typed

_SOURCES = (exponentials, powers, trigonometry, special)


def jitted(function):
    """A function that kernels may call."""
    return njit(error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)(function)


def _compile(node, dtype, names):
    """Defines a function of these files in `names`, its literals in `dtype` (None: as Numba takes them)."""
    node.decorator_list = []
    exec(compile(typed(ast.Module([node], []), dtype, names), f"<{node.name} {dtype}>", "exec"), names)
    names[node.name] = jitted(names[node.name])


def _marked():
    """(function's tree, its mark) of all sources, in order."""
    for module in _SOURCES:
        for node in ast.parse(inspect.getsource(module)).body:
            if isinstance(node, ast.FunctionDef) and node.decorator_list:
                yield node, node.decorator_list[0].id


@functools.cache
def intrinsics():
    """Names that kernels of every dtype may use."""
    return {k: v for m in (scalar, integers, *_SOURCES) for k, v in vars(m).items() if not k.startswith("_")}


@functools.cache
def scope(dtype):
    """Everything that kernels computing in `dtype` may call, by name;
    mathematical functions for "f32" and "f64" only.
    """
    names = dict(intrinsics())
    if dtype not in ("f32", "f64"):
        return names
    number = np.float32 if dtype == "f32" else np.float64
    names |= {"INF": number(INF), "NAN": number(NAN)}
    wide = scope("f64") if dtype == "f32" else names
    own = {n.name for n, mark in _marked() if mark in ("both", dtype)}
    for node, mark in _marked():
        if mark in ("both", dtype):
            _compile(node, dtype, names)
        elif mark == "plain" and dtype == "f64":
            _compile(node, None, names)
        elif mark == "plain":
            names[node.name] = wide[node.name]
        elif mark == "f64" and node.name not in own:
            args = [a.arg for a in node.args.args]
            names["f64_" + node.name] = wide["short_pow" if node.name == "pow" else node.name]
            call = f"to_f32(f64_{node.name}({', '.join(f'to_f64({a})' for a in args)}))"
            _compile(ast.parse(f"def {node.name}({', '.join(args)}):\n    return {call}").body[0], None, names)
    return names


def inline(source, compute):
    """The one function defined by `source`, its literals in dtype `compute`, as kernels may call it."""
    names = scope(compute) | {"widen": scalar.caster(compute)}
    _compile(ast.parse(source).body[0], compute, names)
    return names[ast.parse(source).body[0].name]
