"""A GPT that writes the characters of a text file.

    python -m zoo.train_gpt shakespeare.txt                     0.8 million weights, 64 characters of context
    python -m zoo.train_gpt FILE --layers 6 --heads 6 --width 384 --context 256 --dropout 0.2 --amp bf16

Prints the loss on the last tenth of the text, which it was not trained on, and text of its own.
"""

import argparse
import contextlib

import tensorlib
from tensorlib import amp, autograd, data, nn, optim, train


class Block(nn.Module):
    """x + attention(norm(x)), then x + MLP(norm(x)): GPT-2's pre-norm block, GELU within."""

    def __init__(self, width, heads, dropout):
        self._attention = nn.FullAttention(width // heads)
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc, self.out = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BTD):
        q_BTD, k_BTD, v_BTD = self.qkv(self.ln_1(x_BTD)).chunk(3, -1)
        seen_BTD = self._attention.attend(0, q_BTD, k_BTD, v_BTD, None)
        x_BTD = x_BTD + self.dropout(self.proj(seen_BTD))
        h_BTF = nn.functional.gelu(self.fc(self.ln_2(x_BTD)))
        return x_BTD + self.dropout(self.out(h_BTF))


class GPT(nn.Module):
    """ids [B, T] -> logits [B, T, V]; learned positions, up to `context` of them. `tied`: the output layer's weight is
    the embedding's. All matrices begin normal, 0.02 wide, those that add to the stream narrower with depth (GPT-2).
    """

    def __init__(self, vocabulary, context=64, layers=4, heads=4, width=128, dropout=0.0, tied=True):
        self.context, self.tied = context, tied
        self.wte, self.wpe = nn.Embedding(vocabulary, width), nn.Embedding(context, width)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList([Block(width, heads, dropout) for _ in range(layers)])
        self.ln_f = nn.LayerNorm(width)
        if not tied:
            self.head = nn.Linear(width, vocabulary, bias=False)
        begin(self, 0.02, ("proj.weight", "out.weight"), (2 * layers) ** -0.5)

    def forward(self, ids_BT):
        x_BTD = self.dropout(self.wte(ids_BT) + self.wpe.weight[: ids_BT.shape[-1]])
        for block in self.blocks:
            x_BTD = block(x_BTD)
        x_BTD = self.ln_f(x_BTD)
        return self.wte.as_linear(x_BTD) if self.tied else self.head(x_BTD)


def begin(model, std, last=(), factor=1.0):
    """Matrices normal, `std` wide, times `factor` where the name ends with one of `last`; biases 0."""
    for name, _, weight in [(name, m, getattr(m, own)) for name, m, own, _ in model.named_weights()]:
        if weight.ndim > 1:
            nn.init.normal_(weight, std=std * factor if name.endswith(tuple(last)) else std)
        elif name.endswith("bias"):
            nn.init.zeros_(weight)


def groups(model, weight_decay):
    """Parameter groups: matrices decay, vectors (biases, norms) do not."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]


def loss_of(model, ids, targets, low=None):
    """The mean cross-entropy of what follows each token; products in the dtype `low`, if one is given."""
    with amp.autocast(dtype=low or "bf16", enabled=low is not None):
        return tensorlib.cross_entropy(model(ids).flatten(0, -2), targets.flatten())


def fit(
    model, training, steps=1000, batch_size=32, lr=1e-3, seed=0, checkpoints=None, show=None, accumulate=1, low=None,
    every=250, clip=1.0,
):  # fmt: skip
    """Trains by AdamW with a warm-up and a cosine on `steps` times `accumulate` batches; returns the losses. Goes on
    from the last checkpoint, if there is one, and saves one after each `every` steps.
    """
    loader = data.DataLoader(training, batch_size, shuffle=True, drop_last=True, seed=seed)
    optimizer = optim.AdamW(groups(model, 0.1), lr=lr, betas=(0.9, 0.99))
    schedule = optim.lr_scheduler.WarmupCosine(optimizer, max(1, steps // 20), steps, 0.1)
    objects = {"model": model, "optimizer": optimizer, "schedule": schedule, "loader": loader}
    first = (checkpoints.load(**objects) or 0) if checkpoints else 0
    batches, losses = endless(loader), []
    progress = train.Progress(steps, first, label=type(model).__name__, show=show)
    for step in progress:
        optimizer.zero_grad()
        found = 0.0
        for _ in range(accumulate):
            loss = loss_of(model, *next(batches), low) / accumulate
            loss.backward()
            found += loss.item()
        norm = nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step(), schedule.step()
        losses.append(found)
        progress.log(loss=found, lr=schedule.get_last_lr()[0], norm=norm)
        if checkpoints and ((step + 1) % every == 0 or step + 1 == steps):
            checkpoints.save(step + 1, **objects)
    return losses


def endless(loader):
    """The batches of all epochs, one behind the other."""
    while True:
        yield from loader


@tensorlib.no_grad()
def evaluate(model, dataset, batch_size=32):
    """The mean loss on a dataset."""
    model.eval()
    losses = [loss_of(model, ids, targets).item() * len(ids) for ids, targets in data.DataLoader(dataset, batch_size)]
    model.train()
    return sum(losses) / len(dataset)


@tensorlib.no_grad()
def sample(model, ids, count, temperature=0.8):
    """`ids` and `count` more, drawn one after the other from what the model expects."""
    model.eval()
    ids = list(ids)
    for _ in range(count):
        logits = model(tensorlib.tensor([ids[-model.context :]]))[0, -1]
        ids.append(tensorlib.multinomial((logits / temperature).softmax(-1), 1).item())
    model.train()
    return ids


def options(doc, name):
    """An argument parser with what both programs of language models take."""
    parser = argparse.ArgumentParser(prog=f"python -m zoo.{name}", description=doc.split("\n")[0])
    for option, kind, default in (
        ("context", int, 64), ("layers", int, 4), ("heads", int, 4), ("width", int, 128), ("steps", int, 1000),
        ("batch-size", int, 32), ("lr", float, 1e-3), ("accumulate", int, 1), ("seed", int, 0), ("sample", int, 300),
    ):  # fmt: skip
        parser.add_argument(f"--{option}", type=kind, default=default, help=f"default: {default}")
    parser.add_argument("--amp", choices=("bf16",), help="the dtype of products; weights stay f32")
    parser.add_argument("--checkpoints", metavar="FOLDER", help="save there now and then, and go on from there")
    parser.add_argument("--detect-anomaly", action="store_true", help="name the op that gives the first NaN; slow")
    return parser


def fit_as(args, model, training):
    """`fit` as the options say."""
    checkpoints = train.Checkpoints(args.checkpoints) if args.checkpoints else None
    settings = {"checkpoints": checkpoints, "accumulate": args.accumulate, "low": args.amp}
    with autograd.detect_anomaly() if args.detect_anomaly else contextlib.nullcontext():
        return fit(model, training, args.steps, args.batch_size, args.lr, args.seed, **settings)


def main(arguments=None):
    parser = options(__doc__, "train_gpt")
    parser.add_argument("data", help="a text file, UTF-8")
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--untied", action="store_true", help="an output layer with a weight of its own")
    args = parser.parse_args(arguments)
    whole = data.TextFile(args.data, args.context)
    ids, vocabulary = whole.ids, whole.tokenizer
    cut = len(ids) * 9 // 10
    training, testing = data.Tokens(ids[:cut], args.context, stride=1), data.Tokens(ids[cut:], args.context)
    tensorlib.manual_seed(args.seed)
    model = GPT(len(vocabulary), args.context, args.layers, args.heads, args.width, args.dropout, not args.untied)
    fit_as(args, model, training)
    print(f"loss on the last tenth: {evaluate(model, testing):.4f}")
    print(vocabulary.decode(sample(model, ids[cut : cut + 1].tolist(), args.sample)))


if __name__ == "__main__":
    main()
