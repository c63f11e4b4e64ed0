"""The rules of the house, read off the source with `ast`: no device, no third-party package, a second to run."""

import ast
import pathlib
import re
import subprocess
import sys
import tomllib

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
PACKAGES = ("tensorlib", "kernels_numba", "kernels_triton", "kernels_metal", "zoo")
FILES = sorted(path for name in (*PACKAGES, "tests", "bench") for path in (ROOT / name).rglob("*.py"))

# Left never imports right. Files and folders of tensorlib/ by the layer that they are in; lazy imports count as well.
LAYERS = (
    ("errors", "dtype", "layout", "bar", "rich"),
    ("tape",),
    ("registry",),
    ("backend", "device", "capture", "gpu_plan", "memo"),
    ("ops", "quant", "random"),
    ("autograd",),
    ("tensor", "custom", "fusion", "names"),
    ("nn", "optim", "amp", "array_api", "testing"),
    ("io", "onnx", "distributed", "data", "train"),
)
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}

TOP_LEVEL = {*PACKAGES, "tests", "bench", "pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", ".ci", ".gitignore"}
TOOLS = {"kernels_numba": {"numba", "llvmlite"}, "kernels_triton": {"triton"}, "kernels_metal": {"objc", "Metal"}}
ZOO_PROGRAMS = (
    "__init__",
    "__main__",
    "auto",
    "batch",
    "beam",
    "choices",
    "cli",
    "commands",
    "completion",
    "config",
    "convert",
    "diff",
    "embed",
    "engine",
    "generate_batch",
    "generate",
    "gguf_encoders",
    "gguf_names",
    "late",
    "llama2_c",
    "load",
    "measure",
    "metadata",
    "mixes",
    "options",
    "perplexity",
    "pipeline",
    "pooling",
    "processors",
    "prebuild",
    "published",
    "quantize",
    "serve",
    "serve_answer",
    "serve_api",
    "serve_checks",
    "serve_embed",
    "serve_errors",
    "serve_http",
    "serve_queue",
    "serve_request",
    "serve_text",
    "speaker",
    "speed",
    "speculative",
    "steps",
    "stream",
    "tasks",
    "tools",
    "train_cartpole",
    "train_cifar",
    "train_gpt",
    "train_lora",
    "train_mnist",
    "train_tinystories",
    "translate",
    "trunk",
    "vectors",
    "verify",
)  # what is not a model
# hub: the Hub's own HF_*; serve: its key, which an argument would show to everybody
READS_ENVIRONMENT = ("tensorlib/backend.py", "tensorlib/device.py", "tensorlib/io/hub.py", "zoo/serve.py")
HEAVY = "numpy numba llvmlite torch triton transformers tokenizers".split()
FUNCTION_LINES = 60


def relative(path):
    return path.relative_to(ROOT).as_posix()


def tree(path):
    return ast.parse(path.read_text(encoding="utf-8"), relative(path))


def typing_only(node):
    """Whether this is `if TYPE_CHECKING:`, whose imports never run."""
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def nodes(root):
    """All nodes below `root` but those under `if TYPE_CHECKING`."""
    for child in ast.iter_child_nodes(root):
        if not typing_only(child):
            yield child
            yield from nodes(child)


def imports(path):
    """Dotted names of the modules that a file imports, anywhere in it, also through `import_module("name")`.

    Relative imports are resolved; `from a.b import c` gives a.b.c, since c may be a module.
    """
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    for node in nodes(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            prefix = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{prefix}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            yield from (a.value for a in node.args[:1] if isinstance(a, ast.Constant))


def own(path, package):
    """The part of `package` that a file is, as ("tensorlib", "io", "gguf"), or None."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return parts if parts[0] == package else None


def is_library(name, allowed=()):
    """Whether a dotted name is of the standard library or of one of the allowed packages."""
    top = name.split(".")[0]
    return top in sys.stdlib_module_names or top in allowed


@pytest.mark.parametrize("path", [p for p in FILES if own(p, "tensorlib")], ids=relative)
def test_tensorlib_imports_only_to_the_left(path):
    here = own(path, "tensorlib")[1]
    if here == "__init__":
        return  # the face of the package: it names everything, lazily
    assert here in RANK, f"tensorlib/{here} is in no layer: add it to LAYERS and to the design"
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "tensorlib":
            assert len(parts) > 1 and parts[1] in RANK, f"{relative(path)} imports {name}: name the module it is in"
            assert RANK[parts[1]] <= RANK[here], f"{relative(path)} imports {name}, which is to its right"
        assert parts[0] not in ("zoo", "tests", "bench"), f"{relative(path)} imports {name}"
        if parts[0].startswith("kernels_"):
            assert here == "backend", f"{relative(path)} imports {name}: only backend.py names a kernels_*"


@pytest.mark.parametrize("path", [p for p in FILES if p.relative_to(ROOT).parts[0] in TOOLS], ids=relative)
def test_kernels_import_nothing_of_ours(path):
    package = path.relative_to(ROOT).parts[0]
    allowed = {package, "numpy"} | TOOLS[package]
    if relative(path) == "kernels_triton/driver.py":
        allowed |= {"torch"}
    for name in imports(path):
        assert is_library(name, allowed), f"{relative(path)} imports {name}; allowed: {sorted(allowed)}"


@pytest.mark.parametrize("path", [p for p in FILES if own(p, "zoo")], ids=relative)
def test_models_import_only_nn_and_one_parent(path):
    if path.stem in ZOO_PROGRAMS:
        assert not any(name.startswith(("kernels_", "bench", "tests")) for name in imports(path))
        return
    parents = set()
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "zoo":
            parents.add(parts[1])
            continue
        inside = parts[0] == "tensorlib" and (len(parts) == 1 or parts[1] == "nn" or parts[1] not in RANK)
        assert inside or is_library(name), f"{relative(path)} imports {name}: a model sees tensorlib.nn and Tensor"
    assert len(parents) <= 1, f"{relative(path)} has the parents {sorted(parents)}; one is the limit"
    for parent in parents:
        assert parent not in ZOO_PROGRAMS, f"{relative(path)} imports zoo.{parent}, which is not a model"
        grandparents = [name for name in imports(ROOT / "zoo" / f"{parent}.py") if name.startswith("zoo.")]
        assert not grandparents, f"{relative(path)}: its parent has a parent, {grandparents}"


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_torch_stays_in_its_driver(path):
    allowed = relative(path) == "kernels_triton/driver.py" or path.relative_to(ROOT).parts[0] in ("tests", "bench")
    used = [name for name in imports(path) if name.split(".")[0] in ("torch", "torchvision", "transformers")]
    assert allowed or not used, f"{relative(path)} imports {used}"


@pytest.mark.parametrize("path", [p for p in FILES if p.relative_to(ROOT).parts[0] in PACKAGES], ids=relative)
def test_environment_is_read_in_few_places(path):
    if relative(path) in READS_ENVIRONMENT:
        return
    for node in ast.walk(tree(path)):
        read = isinstance(node, ast.Attribute) and ast.unparse(node) in ("os.environ", "os.environb", "os.getenv")
        assert not read, f"{relative(path)}:{node.lineno} reads the environment; allowed: {READS_ENVIRONMENT}"
        if isinstance(node, ast.ImportFrom) and node.module == "os":
            assert not {"environ", "environb", "getenv"} & {alias.name for alias in node.names}, relative(path)


def limit(path):
    """Most lines that a file may have."""
    top = path.relative_to(ROOT).parts[0]
    if top == "zoo" and (path.stem not in ZOO_PROGRAMS or path.stem.startswith("train_")):
        return 200
    return 500 if top in ("tests", "bench") else 400


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_files_and_functions_are_short(path):
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= limit(path), f"{relative(path)} has {lines} lines, {limit(path)} are allowed: split it"
    for node in ast.walk(tree(path)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            length = node.end_lineno - node.lineno + 1
            where = f"{relative(path)}:{node.lineno} {node.name}"
            assert length <= FUNCTION_LINES, f"{where} has {length} lines, {FUNCTION_LINES} are allowed: split it"


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_modules_say_what_they_are(path):
    public = path.relative_to(ROOT).parts[0] in PACKAGES and path.name != "__init__.py"
    assert not public or ast.get_docstring(tree(path)), f"{relative(path)} has no docstring"


def test_top_level_is_fixed():
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    found = {line.split("/")[0] for line in listed.splitlines()}
    assert found <= TOP_LEVEL, f"new names at the top level: {sorted(found - TOP_LEVEL)}"


def test_import_is_light(run_python):
    source = f"import sys, tensorlib; print(*[name for name in {HEAVY} if name in sys.modules])"
    assert run_python(source).split() == []


def test_changelog_names_the_version():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    newest = re.search(r"^## \[(\d[^\]]*)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert newest and newest[1] == version, f"CHANGELOG.md's newest version is not {version}"


@pytest.mark.parametrize("command", ['pip install ".[test]" && pytest', 'pip install . && tensorlib generate "The'])
def test_readme_and_ci_run_the_same_commands(command):
    assert command in (ROOT / "README.md").read_text(encoding="utf-8"), f"README.md does not say {command}"
    assert command in (ROOT / ".ci" / "run").read_text(encoding="utf-8"), f".ci/run does not run {command}"
