"""LoRA or DoRA on a language model's quantised weights, by a text file.

    python -m zoo.train_lora notes.txt --out adapter      SmolLM2-135M-Instruct in Q4_1; a folder as PEFT writes it
    python -m zoo.train_lora notes.txt --model model.gguf --rank 16 --dora --targets "q_proj|v_proj"

The blocks stay as they are; gradients pass through them to small matrices beside. Prints the loss before and after, on
the last tenth of the text, which it was not trained on.
"""

import argparse

import tensorlib
from tensorlib import data, nn, optim, train
from tensorlib.io import adapters

TARGETS = r"self_attn\.(q|k|v|o)_proj|mlp\.(gate|up|down)_proj"


def prepared(model, rank=8, alpha=16, targets=TARGETS, dropout=0.0, dora=False):
    """The adapters' weights, added to a model whose own are frozen."""
    model.requires_grad_(False)
    nn.lora.add_lora(model, rank, alpha, targets, dropout, dora)
    return nn.lora.lora_parameters(model)


def loss_of(model, ids, targets):
    """The mean cross-entropy of what follows each token."""
    return tensorlib.cross_entropy(model(ids).flatten(0, -2), targets.flatten())


def evaluate(model, windows, batch_size=4):
    """The mean loss over windows, without dropout."""
    model.eval()
    with tensorlib.no_grad():
        losses = [(loss_of(model, x, y).item(), len(x)) for x, y in data.DataLoader(windows, batch_size)]
    model.train()
    return sum(loss * n for loss, n in losses) / sum(n for _, n in losses)


def fit(model, training, steps=60, batch_size=4, lr=2e-4, seed=0, show=None):
    """Trains the adapters by AdamW; returns the losses."""
    loader = data.DataLoader(training, batch_size, shuffle=True, seed=seed)
    optimizer = optim.AdamW(nn.lora.lora_parameters(model), lr=lr, weight_decay=0.0)
    schedule = optim.lr_scheduler.WarmupLinear(optimizer, max(1, steps // 20), steps)
    losses, progress = [], train.Progress(steps, label="LoRA", show=show)
    batches = (batch for _ in iter(int, 1) for batch in loader)  # one epoch after the other
    for _, (x, y) in zip(progress, batches):
        optimizer.zero_grad()
        loss = loss_of(model, x, y)
        loss.backward()
        nn.utils.clip_grad_norm_(nn.lora.lora_parameters(model), 1.0)
        optimizer.step(), schedule.step()
        losses.append(loss.item())
        progress.log(loss=losses[-1], lr=schedule.get_last_lr()[0])
    return losses


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m zoo.train_lora", description=__doc__.split("\n")[0])
    parser.add_argument("text", help="a text file")
    parser.add_argument("--model", help="a GGUF file, a Hub repository or a pypi: reference; the default model if none")
    parser.add_argument("--out", metavar="FOLDER", help="save the adapter there, as PEFT's files")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--alpha", type=float, default=16.0)
    parser.add_argument("--targets", default=TARGETS, metavar="REGEX", help="the layers to adapt, by their paths")
    parser.add_argument("--dora", action="store_true", help="directions and lengths apart (arXiv:2402.09353)")
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--context", type=int, default=128, help="tokens of a window")
    parser.add_argument("--lr", type=float, default=2e-4)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)
    from zoo.generate import load

    tensorlib.manual_seed(args.seed)
    text = load(args.model, context=args.context + 1)
    windows = data.TextFile(args.text, args.context, text.tokenizer)
    cut = max(1, len(windows) // 10)
    training, testing = (
        data.Subset(windows, r) for r in (range(len(windows) - cut), range(len(windows) - cut, len(windows)))
    )
    weights = prepared(text.model, args.rank, args.alpha, args.targets, args.dropout, args.dora)
    print(f"{sum(p.numel() for p in weights):,} weights of {text.model.num_parameters():,} are trained")
    before = evaluate(text.model, testing, args.batch_size)
    fit(text.model, training, args.steps, args.batch_size, args.lr, args.seed)
    print(f"loss on held-out text: {before:.4f} before, {evaluate(text.model, testing, args.batch_size):.4f} after")
    if args.out:
        adapters.save(args.out, text.model)
        print(f"saved to {args.out}")


if __name__ == "__main__":
    main()
