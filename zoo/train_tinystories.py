"""A small Llama on stories: shards of token ids, as llama2.c makes them, or text and a `tokenizer.json`.

    python -m zoo.train_tinystories data00.bin data01.bin --vocabulary 32000 --context 256 --layers 6 --width 288
    python -m zoo.train_tinystories TinyStories-valid.txt --tokenizer tokenizer.json

Stories: arXiv:2305.07759. Prints the loss on the last twentieth of the windows, and with a tokenizer a story.
"""

import tensorlib
from tensorlib import data
from tensorlib.io.tokenizer import Tokenizer
from zoo.generate import SamplerConfig, TextModel
from zoo.llama import LlamaConfig, LlamaForCausalLM
from zoo.train_gpt import begin, evaluate, fit, fit_as, options

__all__ = ["fit", "made", "story", "windows"]


def made(vocabulary, context=64, layers=4, heads=4, kv_heads=None, width=128):
    """A Llama with fresh weights: its output layer's is the embedding's, its MLP 8/3 as wide as the stream."""
    hidden = -(-8 * width // 3 // 32) * 32  # a multiple of 32, so that the weights can be quantised later
    config = LlamaConfig(
        vocabulary, width, hidden, layers, heads, kv_heads or heads, width // heads,
        max_position_embeddings=context, tie_word_embeddings=True,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    begin(model, 0.02, ("o_proj.weight", "down_proj.weight"), (2 * layers) ** -0.5)
    return model


def windows(paths, context, tokenizer=None, dtype="u16"):
    """Windows of ids: of files of ids, or with a tokenizer of text files."""
    if tokenizer is None:
        parts = [data.Tokens(path, context, dtype=dtype) for path in paths]
    else:
        parts = [data.TextFile(path, context, tokenizer) for path in paths]
    return parts[0] if len(parts) == 1 else data.ConcatDataset(parts)


@tensorlib.no_grad()
def story(model, ids, count, seed=0):
    """`count` ids at most that follow `ids`, drawn by the cached steps that generation has."""
    count = min(count, model.config.max_position_embeddings - len(ids))
    sampler = SamplerConfig(temperature=0.8, top_p=0.95, seed=seed)
    return list(TextModel(None, model).generate(ids, count, sampler))


def main(arguments=None):
    parser = options(__doc__, "train_tinystories")
    parser.add_argument("data", nargs="+", help="files of ids, or with --tokenizer of UTF-8 text")
    parser.add_argument("--tokenizer", metavar="FILE", help="a tokenizer.json")
    parser.add_argument("--vocabulary", type=int, default=32000, help="number of ids, where there is no tokenizer")
    parser.add_argument("--dtype", choices=tuple(data.text.WIDTHS), default="u16", help="of the ids in the files")
    parser.add_argument("--kv-heads", type=int, help="key-value heads; default: as many as heads")
    args = parser.parse_args(arguments)
    tokenizer = Tokenizer.from_file(args.tokenizer) if args.tokenizer else None
    every = windows(args.data, args.context, tokenizer, args.dtype)
    cut = max(1, len(every) // 20)
    training = data.Subset(every, range(len(every) - cut))
    testing = data.Subset(every, range(len(every) - cut, len(every)))
    tensorlib.manual_seed(args.seed)
    vocabulary = tokenizer.n_vocab if tokenizer else args.vocabulary
    model = made(vocabulary, args.context, args.layers, args.heads, args.kv_heads, args.width)
    fit_as(args, model, training)
    print(f"loss on the last twentieth: {evaluate(model, testing):.4f}")
    if tokenizer is not None:
        prompt = tokenizer.encode("Once upon a time")
        print(tokenizer.decode(prompt + story(model, prompt, args.sample, args.seed)))


if __name__ == "__main__":
    main()
