"""Recurrent models on the CPU: Mamba 1 and 2, RecurrentGemma and RWKV 7 of real shapes with random weights, f32.

    python -m bench.scans [--only mamba,mamba2] [--csv -]

Prompt (512 tokens), decoding (32 tokens) and training (forward and backward of 128 tokens), tokens per second, beside
`transformers` where it has the architecture: what it runs on a CPU, without kernels of its own. Both in one process,
in turn. RecurrentGemma has 3 of its 26 layers and a small vocabulary.
"""

import sys
import tempfile
import time

import numpy as np

from bench import harness, peers

PROMPT, TOKENS, TRAINED = 512, 32, 128
SHAPES = {
    "mamba": {"hidden_size": 768, "num_hidden_layers": 24, "vocab_size": 50280, "state_size": 16},
    "mamba2": {
        "hidden_size": 768, "num_hidden_layers": 24, "vocab_size": 50288, "state_size": 128, "num_heads": 24,
        "head_dim": 64, "n_groups": 1, "tie_word_embeddings": True,
    },
    "recurrent_gemma": {
        "hidden_size": 2560, "lru_width": 2560, "num_hidden_layers": 3, "num_attention_heads": 10, "vocab_size": 1024,
        "num_key_value_heads": 1, "intermediate_size": 15360,
    },
    "rwkv7": {
        "hidden_size": 768, "num_hidden_layers": 12, "vocab_size": 65536, "num_attention_heads": 12, "head_dim": 64,
        "num_key_value_heads": 12, "intermediate_size": 3072, "decay_low_rank_dim": 64, "a_low_rank_dim": 64,
        "v_low_rank_dim": 32, "gate_low_rank_dim": 128, "max_position_embeddings": 1024,
    },
}  # fmt: skip


class Theirs:
    """transformers' model."""

    def __init__(self, name, threads):
        import torch
        import transformers

        torch.set_num_threads(threads)
        torch.manual_seed(0)
        self.torch, self.version = torch, f"transformers {transformers.__version__}, torch {torch.__version__}"
        config = transformers.AutoConfig.for_model(name, **SHAPES[name], pad_token_id=0, eos_token_id=None)
        self.model = transformers.AutoModelForCausalLM.from_config(config).float().eval()

    def generate(self, ids, count):
        """Takes the prompt and gives so many tokens."""
        given = self.torch.tensor([ids])
        with self.torch.inference_mode():
            self.model.generate(
                given, max_new_tokens=count, do_sample=False, attention_mask=self.torch.ones_like(given)
            )

    def train(self, ids):
        """A forward and a backward pass."""
        given = self.torch.tensor([ids])
        self.model(given, labels=given, use_cache=False).loss.backward()
        self.model.zero_grad()


class Ours:
    """tensorlib's, of the same weights where there is a peer."""

    def __init__(self, name, threads, theirs):
        import tensorlib
        from tensorlib import backend
        from zoo import auto, generate, rwkv7

        backend.set_num_threads(threads)
        self.lib, self.version = tensorlib, peers.version("tensorlib", sys.executable)
        if theirs is None:
            file, model = None, rwkv7.Rwkv7ForCausalLM(rwkv7.TINY._replace(**SHAPES[name]))
        else:
            with tempfile.TemporaryDirectory() as folder:
                theirs.model.save_pretrained(folder)
                file, model = auto.load(folder, context=1024)
        self.text, self.model = generate.TextModel(file, model), model

    def generate(self, ids, count):
        """Takes the prompt and gives so many tokens."""
        with self.lib.no_grad():
            assert len(list(self.text.generate(ids, count))) == count

    def train(self, ids):
        """A forward and a backward pass."""
        given = self.lib.tensor(ids, dtype="i64")
        for p in self.model.parameters():
            p.requires_grad_(True)
        logits = self.model(given, last_only=False)
        self.lib.nn.functional.cross_entropy(logits[:-1], given[1:]).backward()
        for p in self.model.parameters():
            p.grad = None
            p.requires_grad_(False)


def seconds(function, *args):
    """How long a call takes."""
    begin = time.perf_counter()
    function(*args)
    return time.perf_counter() - begin


def measured(runner, ids, samples):
    """Adds one sample of each measure to `samples`, in tokens per second."""
    prompt = seconds(runner.generate, ids, 1)
    samples["prompt"].append(PROMPT / prompt)
    both = seconds(runner.generate, ids[:8], TOKENS + 1) - seconds(runner.generate, ids[:8], 1)
    samples["decode"].append(TOKENS / both)
    if "train" in samples:
        samples["train"].append(TRAINED / seconds(runner.train, ids[:TRAINED]))


def main():
    """Command line of `python -m bench.scans`."""
    parser = harness.parser(__doc__)
    parser.add_argument("--only", default=",".join(SHAPES), help="comma-separated")
    parser.add_argument("--without-training", action="store_true", help="no backward passes")
    parser.set_defaults(threads="2", repeats=3, peers="transformers")
    options = parser.parse_args()
    host, lines, rows = harness.machine(), [], []
    ids, kinds = np.random.default_rng(0).integers(1, 1000, PROMPT).tolist(), ["prompt", "decode", "train"]
    kinds = kinds[:2] if options.without_training else kinds
    for name in options.only.split(","):
        for threads in harness.numbers(options.threads):
            theirs = Theirs(name, threads) if name != "rwkv7" and options.peers else None
            ours = Ours(name, threads, theirs)
            runners = {"tensorlib": ours} | ({"transformers": theirs} if theirs else {})
            found = {peer: {kind: [] for kind in kinds} for peer in runners}
            for repeat in range(options.repeats + 1):  # the first compiles and warms up
                for peer, runner in runners.items():
                    measured(runner, ids, found[peer] if repeat else {kind: [] for kind in kinds})
            for peer, samples in found.items():
                where = {"threads": threads, "format": name}
                version = runners[peer].version
                rows += [harness.row(host, k, peer, version, s, "tokens/s", **where) for k, s in samples.items()]
                lines.append((name, threads, peer, *(f"{harness.quantiles(s)[1]:.1f}" for s in samples.values())))
                print(lines[-1], file=sys.stderr, flush=True)
    harness.headline(host)
    harness.show(["model", "threads", "peer", *(f"{kind}, tokens/s" for kind in kinds)], lines)
    harness.write(rows, "scans", options)


if __name__ == "__main__":
    main()
