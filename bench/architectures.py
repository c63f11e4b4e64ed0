"""Files as llama.cpp's converter writes them, opened by llama.cpp: its results against ours, for each architecture.

    python -m bench.architectures [NAME ...]

The files are those of the tests: tiny random models of transformers (tests/zoo), vocabularies (tests/io). A line is the
largest difference relative to the largest logit or hidden state, or how many of so many texts have other ids. Models
with GELU differ by up to 1e-3, since llama.cpp looks it up in a table of half-precision numbers; `WHY` says where
llama.cpp does something else than transformers.
"""

import json
import pathlib
import random
import sys
import tempfile

import numpy as np

import tensorlib
from bench import harness, peers
from tensorlib.io import gguf
from tensorlib.io.tokenizer import Tokenizer
from tests.io import test_pieces, vocab
from tests.io import test_tokenizer as golden
from tests.zoo import test_decoders as whole
from tests.zoo import test_decoders_gguf as decoders
from tests.zoo import test_encoders_gguf as encoders
from tests.zoo import test_jina_bert as jina
from tests.zoo.decoders import CASES
from zoo import gguf_encoders
from zoo.load import load_gguf

PEER, CLOSE = peers.LLAMA._replace(worker="logits_worker.py"), 2e-3
WHY = {
    "phi3": "it leaves out the window",
    "starcoder2": "it leaves out the window",
    "deepseek_v2-groups": "it scores a group by its two best experts, as V3, where V2 takes the best one",
    "mixtral-old-file": "it no longer opens files with experts one by one",
    "kept": "it keeps one space less of a text that is spaces",
}
T5_SCALE = encoders.T5["d_model"] ** -0.5  # of tied logits, which llama.cpp leaves out; their order is the same
LETTERS = "thea cat, 123Käse日本語\n\t'sT.é😀\u0301\x00ﬁ①Å½ﾊﾟ\u200b\u3000\xa0ａ２\\\"[]<s>"


class Made:
    """Writes files for one folder: `gguf.write` with what llama.cpp asks of a file without a vocabulary."""

    def __init__(self, folder, wanted):
        self.folder, self.wanted = pathlib.Path(folder), wanted

    def write(self, path, fields, tensors):
        arch = fields["general.architecture"]
        types = tensors["token_types.weight"].shape[0] if "token_types.weight" in tensors else 2
        more = {"tokenizer.ggml.model": "none", f"{arch}.vocab_size": 99, "tokenizer.ggml.token_type_count": types}
        gguf.write(path, fields | more, tensors)

    def keep(self, name, ours, **case):
        """Our results beside a file."""
        case = {"embeddings": False, "scale": 1.0, "ids": whole.IDS, **case}
        np.savez(self.folder / f"{name}.npz", ours=ours, **case)

    def decoders(self):
        """Every row of tests/zoo/decoders.py that has a file."""
        for case in CASES:
            if case.gguf and self.takes(case.id):
                path = self.folder / f"{case.id}.gguf"
                decoders.write(path, case, whole.torch_model(case))
                ours = load_gguf(path, case.context)[1]
                got = ours(whole.tensor(whole.IDS), ours.new_cache(32, "f32"), last_only=False)
                self.keep(case.id, got.numpy())

    def encoders(self):
        """Every encoder of tests/zoo/test_encoders_gguf.py, and T5."""
        rows = {name: encoders.CASES[name] for name in encoders.CASES if self.takes(name)}
        for name, (arch, more, positions) in rows.items():
            with tempfile.TemporaryDirectory() as folder:
                encoders.whole.made(name, pathlib.Path(folder))
                fields = encoders.metadata(arch, encoders.whole.CASES[name][2], **more)
                fields[f"{arch}.context_length"] -= positions
                self.encoder(name, folder, fields, fields[f"{arch}.block_count"], positions)
        for name in [name for name in jina.CASES if self.takes(f"jina-{name}")]:
            with tempfile.TemporaryDirectory() as folder:
                jina.made(name, pathlib.Path(folder))
                sizes = {**jina.SIZES, **jina.CASES[name]}
                fields = encoders.metadata("jina-bert-v2", sizes, **{encoders.EPS: 1e-12})
                self.encoder(f"jina-{name}", folder, fields, jina.LAYERS)
        if self.takes("t5"):
            with tempfile.TemporaryDirectory() as folder:
                encoders.t5("T5ForConditionalGeneration", folder, is_encoder_decoder=True)
                self.encoder("t5", folder, encoders.t5_metadata("t5") | {"t5.attention.value_length": 8}, 2)

    def encoder(self, name, folder, fields, layers, positions=0):
        """One file out of a folder's weights, and our results."""
        path = self.folder / f"{name}.gguf"
        encoders.write(path, folder, fields, layers, positions)
        ids, answer, ours = np.arange(3, 27), np.arange(20, 30), gguf_encoders.load(path)[1]
        with tensorlib.no_grad():
            if name == "t5":
                got = ours(tensorlib.tensor(ids), tensorlib.tensor(answer))
                self.keep(name, got.numpy(), ids=ids, answer=answer, scale=T5_SCALE)
            else:
                self.keep(name, ours(tensorlib.tensor(ids)).numpy(), ids=ids, embeddings=True)

    def vocabularies(self, count):
        """Learned ones and the tests' own, with `count` random texts and those of the tests."""
        rng = random.Random(0)
        texts = ["".join(rng.choice(LETTERS) for _ in range(rng.randrange(1, 30))) for _ in range(count // 2)]
        wide = [(0x20, 0x250), (0x300, 0x1200), (0x3000, 0xD7FF), (0xE000, 0x1FFFF)]
        texts += [
            "".join(chr(rng.randrange(*rng.choice(wide))) for _ in range(rng.randrange(1, 12)))
            for _ in range(count // 2)
        ]
        texts += [text for text in golden.GOLDEN["texts"] if text]
        files = {"rwkv": vocab.world(), "pieces": vocab.sentence_pieces(), "byte pairs": vocab.byte_pairs()}
        for name, options in test_pieces.KINDS.items():
            if name == "pairs":  # byte pairs without bytes for the rest, at which llama.cpp ends the process
                continue
            path = self.folder / f"{name}.model"
            path.write_bytes(test_pieces.train(**options))
            files[name] = test_pieces.converted(path)
        files = {f"{name} of {len(texts)} texts": raw for name, raw in files.items() if self.takes(name)}
        for name, raw in files.items():
            path = self.folder / f"{name}.gguf"
            path.write_bytes(raw)
            tokenizer = Tokenizer.from_gguf(gguf.open(path))
            found = {"texts": texts, "ids": [tokenizer.encode(text) for text in texts]}
            (self.folder / f"{name}.json").write_text(json.dumps(found), encoding="utf-8")

    def takes(self, name):
        """Whether it was asked for."""
        return not self.wanted or name in self.wanted


def main():
    """Command line of `python -m bench.architectures`."""
    parser = harness.parser(__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="default: all")
    options = parser.parse_args()
    rows, table, failed = [], [], 0
    host, python = harness.machine(), peers.find("llama.cpp", harness.overrides(options))
    version = peers.version("llama.cpp", python)
    for task, unit, limit in (("logits", "ratio", CLOSE), ("tokens", "texts", 0)):
        with tempfile.TemporaryDirectory() as folder:
            made = Made(folder, set(options.names))
            decoders.gguf, encoders.gguf = made, made
            [made.decoders(), made.encoders()] if task == "logits" else made.vocabularies(6000)
            job = {"task": task, "folder": folder}
            answer = harness.work(PEER, job, harness.overrides(options))
        for name, found in answer["found"].items():
            told = isinstance(found, str)
            why = "" if not told and found <= limit else WHY.get(name.split(" of ")[0], "?")
            failed += why == "?"
            table.append([name, " ".join(found.split())[-120:] if told else f"{found:.2g}", why])
            if not told:
                rows.append(harness.row(host, task, peers.LLAMA, version, [found], unit, format=name))
    harness.show(["file", "difference", "why"], table)
    harness.write(rows, "architectures", options)
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
