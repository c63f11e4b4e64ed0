"""Models of `bench.train`, once for both libraries: what they are made of has the same names.

`F` is torch.nn.functional or tensorlib.nn.functional, `nn` and `T` the libraries' own. Each makes (model, inputs,
targets) of seeded NumPy numbers; weights are drawn as NumPy's too, by name, so that both train the same.
"""

import math


def cnn(T, nn, F):
    """The CNN of zoo/train_mnist.py: 3 x 3 convolutions with 16, 16, 32, 32 channels, two pools, two linear layers."""

    def pair(c_in, c_out):
        one, two = nn.Conv2d(c_in, c_out, 3, padding=1), nn.Conv2d(c_out, c_out, 3, padding=1)
        return [one, nn.ReLU(), two, nn.BatchNorm2d(c_out), nn.ReLU(), nn.MaxPool2d(2)]

    head = [nn.Flatten(), nn.Linear(32 * 7 * 7, 128), nn.ReLU(), nn.Linear(128, 10)]
    return nn.Sequential(*pair(1, 16), *pair(16, 32), *head)


def resnet18(T, nn, F):
    """ResNet-18 for 32 x 32 images: a 3 x 3 stem of 64 channels, two blocks each of 64, 128, 256, 512."""

    class Block(nn.Module):
        def __init__(self, c_in, c_out, stride):
            super().__init__()
            self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False)
            self.bn1 = nn.BatchNorm2d(c_out)
            self.conv2 = nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False)
            self.bn2 = nn.BatchNorm2d(c_out)
            plain = stride == 1 and c_in == c_out
            short = [] if plain else [nn.Conv2d(c_in, c_out, 1, stride, bias=False), nn.BatchNorm2d(c_out)]
            self.shortcut = nn.Sequential(*short)

        def forward(self, x):
            y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
            return F.relu(y + self.shortcut(x))

    layers = [nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
    c_in = 64
    for c_out, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        layers += [Block(c_in, c_out, stride), Block(c_out, c_out, 1)]
        c_in = c_out
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10))


def gpt(T, nn, F, vocabulary=2048, width=256, depth=12, heads=8, context=256):
    """GPT-2's blocks: pre-norm attention and a GELU MLP of 4 times the width; the output has the embedding's weight."""

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
            self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
            self.fc, self.out = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

        def forward(self, x):
            b, t, _ = x.shape
            q, k, v = self.qkv(self.ln_1(x)).reshape(b, t, 3, heads, width // heads).permute(2, 0, 3, 1, 4)
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.proj(y.transpose(1, 2).reshape(b, t, width))
            return x + self.out(F.gelu(self.fc(self.ln_2(x)), approximate="tanh"))

    class GPT(nn.Module):
        def __init__(self):
            super().__init__()
            self.wte, self.wpe = nn.Embedding(vocabulary, width), nn.Embedding(context, width)
            self.blocks, self.ln_f = nn.ModuleList([Block() for _ in range(depth)]), nn.LayerNorm(width)

        def forward(self, ids):
            x = self.wte(ids) + self.wpe.weight[: ids.shape[1]]
            for block in self.blocks:
                x = block(x)
            return F.linear(self.ln_f(x), self.wte.weight).flatten(0, 1)

    return GPT()


def _images(rng, batch, *shape):
    return rng.standard_normal((batch, *shape), "f4"), rng.integers(0, 10, batch)


def _text(rng, batch):
    return rng.integers(0, 2048, (batch, 256)), rng.integers(0, 2048, batch * 256)


CASES = {  # name: (model, batch)
    "cnn": (cnn, lambda rng, batch: _images(rng, batch, 1, 28, 28), 64),
    "resnet18": (resnet18, lambda rng, batch: _images(rng, batch, 3, 32, 32), 32),
    "gpt": (gpt, _text, 8),
}


def weights(model, rng):
    """{name: NumPy values} for a model's parameters: normal, 1 / sqrt(inputs) wide; norms' weights 1, biases 0."""
    found = {}
    for name, p in model.named_parameters():
        shape = tuple(p.shape)
        if len(shape) == 1:
            found[name] = rng.standard_normal(shape, "f4") * 0.02 + ("weight" in name)
        else:
            found[name] = rng.standard_normal(shape, "f4") / math.sqrt(max(1, math.prod(shape[1:])))
    return found
