"""The command line around a model: what goes where, exit statuses, interrupts. The model here is a list of words."""

import errno
import os
import pathlib
import pty
import signal
import subprocess
import sys
import time
import types
from typing import NamedTuple

import pytest

from tensorlib.errors import ContextError, DownloadError
from tensorlib.io import gguf
from tensorlib.io.tokenizer import Tokenizer
from tests.io import build, vocab
from zoo import cli

TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"
SLEEPY = "the rat é " * 500


class SamplerConfig(NamedTuple):
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None


class Model:
    """Says the words of `says`, one token at a time, whatever it is asked."""

    context_length = 100

    def __init__(self, path, says=" the cat, é😀\n"):
        self.tokenizer = Tokenizer.from_gguf(gguf.open(path))
        self.says, self.asked, self.pause = self.tokenizer.encode(says, parse_special=False), [], 0

    def generate(self, ids, max_tokens, sampler, stop_ids, processors=(), reuse=False):
        if len(ids) + (max_tokens or 1) > self.context_length:
            raise ContextError("generate", f"{len(ids)} tokens", f"at most {self.context_length}", "shorten it")
        self.asked.append((self.tokenizer.decode(ids, skip_special=False), max_tokens, sampler, reuse))
        for id in self.says[:max_tokens]:
            time.sleep(self.pause)
            yield id


def stand_in(model):
    """A module to take the place of zoo.generate."""
    return types.SimpleNamespace(SamplerConfig=SamplerConfig, GREEDY=SamplerConfig(), load=lambda *_: model)


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "tiny.gguf"
    path.write_bytes(vocab.byte_pairs(template=TEMPLATE))
    return path


@pytest.fixture
def model(path, monkeypatch):
    model = Model(path)
    monkeypatch.setitem(sys.modules, "zoo.generate", stand_in(model))
    return model


@pytest.fixture
def feed(monkeypatch):
    """Function: make standard input these bytes."""

    def feed(data):
        read, write = os.pipe()
        os.write(write, data)
        os.close(write)
        monkeypatch.setattr(sys, "stdin", os.fdopen(read))

    yield feed
    sys.stdin.close()


def test_generate(model, capsys):
    assert cli.main(["generate", "the rat"]) == 0
    assert capsys.readouterr() == (" the cat, é😀\n", "")
    ids = model.tokenizer.encode("the rat")
    assert model.asked == [("the rat", model.context_length - len(ids), SamplerConfig(), False)]


def test_stops(model, capsys):
    assert cli.main(["generate", "the rat", "--stop", "at,", "--stop", "never"]) == 0
    assert capsys.readouterr() == (" the c\n", "")


def test_options(model, capsys):
    options = "--temperature 0.5 --top-k 3 --top-p 0.9 --min-p 0.1 --repetition-penalty 1.2 --seed 7 -n 2 -v"
    assert cli.main(["generate", "the", *options.split()]) == 0
    _, count, sampler, _ = model.asked[0]
    assert count == 2 and sampler == SamplerConfig(0.5, 3, 0.9, 0.1, 1.2, 7)
    out, err = capsys.readouterr()
    assert out.endswith("\n") and "tok/s" in err and "2 tokens" in err


@pytest.mark.parametrize("arguments", [[], ["-"]])
def test_prompt_from_standard_input(model, feed, arguments):
    feed("the é\n\n".encode())
    assert cli.main(["generate", *arguments]) == 0
    assert model.asked[0][0] == "the é\n"


def test_empty_prompt_begins_with_bos(model, feed):
    feed(b"")
    assert cli.main(["generate"]) == 0 and model.asked[0][0] == "<|im_start|>"


def test_chat(model, feed, capsys):
    feed("the\n\n cat é".encode())
    assert cli.main(["chat", "--system", "S"]) == 0
    first, second = (asked[0] for asked in model.asked)
    assert first == "<|im_start|>S<|im_end|><|im_start|>the<|im_end|>"
    assert second == first + "<|im_start|> the cat, é😀\n<|im_end|><|im_start|> cat é<|im_end|>"
    assert capsys.readouterr().out == 2 * " the cat, é😀\n"


def test_chat_needs_a_template(model, feed, capsys):
    model.tokenizer.chat_template = None
    feed(b"the\n")
    assert cli.main(["chat"]) == 2 and "no chat template" in capsys.readouterr().err and not model.asked


def one_line(capsys):
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("tensorlib: error: ") and err.count("\n") == 1
    return err


def test_errors_are_one_line(model, capsys, monkeypatch, tmp_path):
    assert cli.main(["generate", "the " * 200]) == 2 and "at most 100" in one_line(capsys)
    assert cli.main(["generate", "the", "-n", "1000"]) == 2 and "at most 100" in one_line(capsys)

    def refuse(*_, **__):
        raise DownloadError("model", "two\nlines", "one")

    monkeypatch.setattr(sys.modules["zoo.generate"], "load", refuse)
    assert cli.main(["generate", "the"]) == 2 and "two lines" in one_line(capsys)
    (tmp_path / "bad.gguf").write_bytes(b"GGUF")
    for name in ("bad.gguf", "missing.gguf"):
        assert cli.main(["info", str(tmp_path / name)]) == 2 and name in one_line(capsys)


@pytest.mark.parametrize(
    "arguments",
    [[], ["sing"], ["generate", "--temperature", "hot"], ["generate", "--top-p", "1.5"], ["generate", "--min-p", "nan"],
     ["generate", "-n", "0"], ["generate", "--seed", "-1"], ["kernels", "burn"], ["generate", "-t", "0"],
     ["generate", "-m", ""], ["generate", "-t", "9" * 20], ["generate", "--top-k", "9" * 20], ["embed", "-m", " "],
     ["generate", "--beams", "9" * 9], ["generate", "--device", "gpu"], ["bench", "-t", "1,,2"], ["diff", "-n", "-5"],
     ["serve", "--streams", "1.5"], ["serve", "--max-body", "1e400"], ["serve", "--time-limit", "nan"],
     ["serve", "-c", "1"], ["convert", "a", "b", "--rename", "a=\\1"], ["convert", "a", "b", "--rename", "a=\\g<x>"]],
)  # fmt: skip
def test_usage(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2 and "usage:" in capsys.readouterr().err


def test_what_is_no_error_of_ours_is_one_line_too(model, capsys, monkeypatch):
    """A full disk behind standard output, memory that is not there; a mistake of ours keeps its traceback."""
    for error in (OSError(errno.ENOSPC, "No space left"), MemoryError()):
        monkeypatch.setattr(sys.modules["zoo.generate"], "load", lambda *_, error=error: (_ for _ in ()).throw(error))
        assert cli.main(["generate", "the"]) == 2
        assert ("No space left" if isinstance(error, OSError) else "not enough memory") in one_line(capsys)
    monkeypatch.setattr(sys.modules["zoo.generate"], "load", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cli.main(["generate", "the"])


def test_info(tmp_path, capsys):
    path = tmp_path / "a.gguf"
    evil = build.pair("general.name", build.STRING, "a\x1b[31mb\n" + "x" * 200)
    long = build.pair("a.long", build.ARRAY, (build.F32, [1.0] * 100))
    infos = [build.info("t\x1b[2J", [4, 2], 0, 0), build.info("q", [32, 3], 8, 32)]
    path.write_bytes(build.file([build.ARCH, evil, long], infos, bytes(134)))
    assert cli.main(["info", str(path)]) == 0
    out, err = capsys.readouterr()
    assert err == "" and "\x1b" not in out
    assert "104 parameters" in out and "100 x f32" in out and "'llama'" in out and "3x32" in out and "q8_0" in out


def test_kernels(monkeypatch, tmp_path, capsys):
    from tensorlib import backend

    here = backend.backend()
    monkeypatch.setattr(here, "_folders", ["/elsewhere", str(tmp_path)])
    (tmp_path / "x.krn").write_bytes(b"12345")
    (tmp_path / ".half.tmp").write_bytes(b"1")
    assert cli.main(["kernels", "path"]) == 0 and capsys.readouterr().out == f"{tmp_path}\n"
    assert cli.main(["kernels", "list"]) == 0 and capsys.readouterr().out.split() == ["5", "x.krn"]


SCRIPT = """
import sys
from tests.io.test_cli import Model, stand_in, SLEEPY
model = Model(sys.argv[1], SLEEPY)
model.pause = 0.01
model.context_length = 10**6
sys.modules["zoo.generate"] = stand_in(model)
from zoo.cli import main
sys.exit(main(sys.argv[2:]))
"""


def command(path, *arguments):
    root = pathlib.Path(__file__).resolve().parents[2]
    return [sys.executable, "-c", SCRIPT, str(path), *arguments], {**os.environ, "PYTHONPATH": str(root)}


def test_broken_pipe_is_quiet(path):
    line, env = command(path, "generate", "the", "-n", "400")
    process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env)
    assert process.stdout.read(5) == b"the r"
    process.stdout.close()
    assert process.wait(60) == 0 and process.stderr.read() == b""
    process.stderr.close()


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">/dev/full"])
def test_outputs_that_take_nothing(path, closed):
    """Closed ones are as /dev/null, and nothing of one goes to the other; a full one is an error, in one line."""
    line, env = command(path, "generate", "the", "-n", "4", "-v")
    done = subprocess.run(["sh", "-c", f'exec "$@" {closed}', "sh", *line], capture_output=True, env=env, timeout=60)
    told = b"tensorlib: error: [Errno 28] No space left on device"
    if closed == ">/dev/full":
        assert done.returncode == 2 and done.stderr.strip() == told and done.stdout == b""
    else:
        assert done.returncode == 0 and (done.stdout == b"") == (closed == ">&-") and b"Error" not in done.stderr
        assert (done.stderr == b"") == (closed == "2>&-") and b"tok/s" not in done.stdout


def test_kernels_are_not_built_where_they_cannot_be_kept(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("zoo.prebuild.build", lambda **_: pytest.fail("minutes of work"))
    (tmp_path / "file").touch()
    assert cli.main(["kernels", "build", "-d", str(tmp_path / "file" / "folder")]) == 2
    assert "expected one that can be written" in one_line(capsys)


def test_ctrl_c(path):
    line, env = command(path, "generate", "the", "-n", "400")
    process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env)
    assert process.stdout.read(5) == b"the r"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and err == b"" and len(out) < 4000


def test_ctrl_c_on_a_terminal(path):
    """The line is ended and colours are reset; a model's control characters do not reach the terminal."""
    ours, theirs = pty.openpty()
    line, env = command(path, "generate", "the", "-n", "400")
    line[2] = line[2].replace("SLEEPY)", "'\\x1b[31m\\x07' + SLEEPY)")
    process = subprocess.Popen(line, stdin=theirs, stdout=theirs, stderr=theirs, env=env)
    os.close(theirs)
    seen = b""
    while b"rat" not in seen:
        seen += os.read(ours, 100)
    process.send_signal(signal.SIGINT)
    seen += _rest(ours)
    assert process.wait(60) == 130
    assert (
        seen.endswith(b"\x1b[0m\r\n") and seen.count(b"\x1b") == 1 and b"\x07" not in seen and b"Traceback" not in seen
    )
    os.close(ours)


def _rest(fd):
    seen = b""
    try:
        while piece := os.read(fd, 1000):
            seen += piece
    except OSError as error:  # the other end is closed
        assert error.errno == errno.EIO
    return seen


def test_output_that_cannot_show_a_letter(path):
    line, env = command(path, "generate", "the", "-n", "12")
    done = subprocess.run(line, capture_output=True, env={**env, "PYTHONIOENCODING": "ascii"}, timeout=60)
    assert done.returncode == 0 and done.stderr == b"" and b"?" in done.stdout


def test_start_is_light(run_python):
    source = """
import sys
from zoo.cli import main
try:
    main(["--help"])
except SystemExit:
    pass
heavy = "numpy tokenizers jinja2 huggingface_hub tqdm numba zoo.generate tensorlib.tensor ctypes".split()
print(*[name for name in heavy if name in sys.modules])
"""
    assert run_python(source).splitlines()[-1] == ""
