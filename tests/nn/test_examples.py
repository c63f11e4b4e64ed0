"""zoo/train_*.py: losses are torch's, resuming is exact, the programs run, text is written, poles are balanced."""

import random

import pytest

import tensorlib
from tensorlib import data, train
from zoo import train_cartpole, train_cifar, train_gpt, train_mnist, train_tinystories

pytest.importorskip("torch")
from bench import curves

STEPS = 20
CASES = curves.cases(STEPS, width=8, size=8, count=160, context=16, words=800)
U = 2.0**-24


def those(kind):
    """Names of the cases that compute in `kind`."""
    return [name for name, case in CASES.items() if kind in case.kinds]


@pytest.mark.parametrize("name", those("float64"))
def test_losses_are_torchs(name):
    """In f64, where rounding does not decide at a ReLU's corner: 20 steps, each an error of some 1000 u at most."""
    case = CASES[name]
    weights, batches, losses = curves.ours(case, STEPS, "float64")
    assert len(losses) == len(batches) == STEPS
    assert curves.apart(losses, curves.theirs(case, weights, batches, "float64")) < 20 * 1000 * 2.0**-53
    assert losses[0] != losses[-1]


CORNERS = ["mnist-cnn", "cifar-resnet18"]  # whose rounding grows at their own rate, torch's too


@pytest.mark.parametrize("name", [name for name in those("float32") if name not in CORNERS])
def test_losses_are_torchs_in_f32(name):
    """No farther from f64 than thrice what torch is, of which a loss's own rounding is the least. Where products take 8
    bits 1e-5 is: a value between two of them may go either way (a tenth more of alpha would make 1e-4).
    """
    case = CASES[name]
    weights, batches, losses = curves.ours(case, STEPS)
    other, exact = (curves.theirs(case, weights, batches, kind) for kind in ("float32", "float64"))
    own, least = curves.apart(other, exact), 1e-5 if name == "lora" else 4 * U
    assert own < curves.BOUNDS["float32"] and losses[0] != losses[-1]
    assert curves.apart(losses, exact) < 3 * max(own, least)


@pytest.mark.parametrize("name", [name for name in those("bf16") if name not in CORNERS])
def test_losses_are_torchs_in_bf16(name):
    """No farther from f64 than twice what torch's products of bf16 are, and farther than f32."""
    case = CASES[name]
    weights, batches, losses = curves.ours(case, STEPS, "bf16")
    other, exact = (curves.theirs(case, weights, batches, kind) for kind in ("bf16", "float64"))
    assert 64 * U < curves.apart(losses, exact) < 2 * curves.apart(other, exact)


@pytest.mark.parametrize("name", CORNERS)
@pytest.mark.parametrize(("kind", "bound"), [("float32", 16 * U), ("bf16", curves.LED["bf16"])])
def test_losses_at_torchs_weights_are_torchs(name, kind, bound):
    """At the rate of the example, each step from where torch's began."""
    case, states = CASES[name], []
    weights, batches, losses = curves.ours(case, STEPS, kind)
    other = curves.theirs(case, weights, batches, kind, states=states)
    led = curves.ours(case, STEPS, kind, states=states)[2]
    assert led != losses and curves.apart(led, other) < bound


class Stopped(Exception):
    """What ends a run in the middle."""


class Breaking(train.Checkpoints):
    """Checkpoints of a run that is stopped after the first it wrote."""

    def save(self, step, **objects):
        """Writes, and stops."""
        super().save(step, **objects)
        raise Stopped


def digits(count=48):
    return curves.pictures(data.MNIST, (1, 28, 28), count)


def photographs(count=32):
    return curves.pictures(data.CIFAR10, (3, 32, 32), count)


def words(count=400):
    return data.Tokens([(7 * i * i + i) % 23 for i in range(count)], 8, stride=1)


def gpt(checkpoints):
    return train_gpt.fit(
        train_gpt.GPT(23, 8, 1, 2, 16, dropout=0.2), words(), 8, 4, show=False, checkpoints=checkpoints, every=4,
        accumulate=2,
    )  # fmt: skip


def llama(checkpoints):
    model = train_tinystories.made(23, 8, 1, 2, 1, 16)
    return train_tinystories.fit(model, words(), 8, 4, show=False, checkpoints=checkpoints, every=4, low="bf16")


RUNS = {
    "mnist": lambda checkpoints: train_mnist.fit(
        train_mnist.CNN(), digits(), 2, 12, show=False, checkpoints=checkpoints
    ),
    "cifar": lambda checkpoints: train_cifar.fit(
        train_cifar.ResNet(10, 4, (1, 1)), photographs(), 2, 8, show=False, checkpoints=checkpoints
    ),
    "gpt": gpt,
    "tinystories": llama,
    "cartpole": lambda checkpoints: train_cartpole.fit(
        train_cartpole.ActorCritic(8), 20, show=False, checkpoints=checkpoints, carts=4, steps=8, size=16, epochs=1
    ),
}


@pytest.mark.parametrize("name", RUNS)
def test_resuming_is_exact(name, tmp_path):
    """Dropout, crops, shuffled batches, schedules and the states of carts go on as if nothing had happened."""
    tensorlib.manual_seed(0)
    whole = RUNS[name](None)
    tensorlib.manual_seed(0)
    with pytest.raises(Stopped):
        RUNS[name](Breaking(tmp_path))
    tensorlib.manual_seed(1)
    rest = RUNS[name](train.Checkpoints(tmp_path))
    assert len(rest) == len(whole) // 2 and rest == whole[-len(rest) :]


@pytest.fixture
def cifar(tmp_path):
    """A folder as CIFAR-10's binary version."""
    drawn = random.Random(0)
    for name in (*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"):
        records = (bytes([drawn.randrange(10)]) + drawn.randbytes(3072) for _ in range(8))
        (tmp_path / name).write_bytes(b"".join(records))
    return tmp_path


@pytest.fixture
def text(tmp_path):
    """A text file."""
    path = tmp_path / "text.txt"
    path.write_text("the cat sat on a mat; the dog saw the cat\n" * 20)
    return path


SMALL = "--layers 1 --heads 2 --width 16 --context 16 --batch-size 8 --sample 5".split()


def test_cifar_runs(cifar, capsys):
    train_cifar.main([str(cifar), "--width", "4", "--epochs", "1", "--batch-size", "8", "--detect-anomaly"])
    assert "of 8 test images right" in capsys.readouterr().out


def test_mnist_runs(tmp_path, capsys):
    for stem, count in (("train", 64), ("t10k", 16)):
        head = lambda *sizes: bytes([0, 0, 8, len(sizes)]) + b"".join(s.to_bytes(4, "big") for s in sizes)  # noqa: E731
        (tmp_path / f"{stem}-images-idx3-ubyte").write_bytes(
            head(count, 28, 28) + random.Random(0).randbytes(784 * count)
        )
        (tmp_path / f"{stem}-labels-idx1-ubyte").write_bytes(head(count) + bytes(i % 10 for i in range(count)))
    train_mnist.main([str(tmp_path), "--model", "mlp", "--epochs", "1", "--batch-size", "16"])
    assert "of 16 held-out images right" in capsys.readouterr().out


def test_a_gpt_learns_a_text_and_writes(text, capsys, tmp_path):
    folder = str(tmp_path / "runs")
    train_gpt.main([str(text), *SMALL, "--steps", "150", "--lr", "0.01", "--checkpoints", folder])
    said = capsys.readouterr().out
    loss = float(said.split("loss on the last tenth: ")[1].split("\n")[0])
    assert loss < 1.0 and len(said.split("\n", 1)[1]) == 7  # of 2.6 for letters by their frequency; 6 letters, a line
    train_gpt.main([str(text), *SMALL, "--steps", "150", "--lr", "0.01", "--checkpoints", folder])
    assert capsys.readouterr().out == said  # nothing was left to do


def test_a_gpt_runs_in_bf16(text, capsys):
    options = ["--steps", "3", "--amp", "bf16", "--untied", "--dropout", "0.1", "--accumulate", "2"]
    train_gpt.main([str(text), *SMALL, *options, "--detect-anomaly"])
    assert "loss on the last tenth" in capsys.readouterr().out


def test_stories_run(tmp_path, capsys):
    paths = [str(tmp_path / f"{i}.bin") for i in range(2)]
    for path in paths:
        data.text.write_tokens(path, [i * i % 40 for i in range(400)])
    train_tinystories.main([*paths, *SMALL, "--vocabulary", "40", "--steps", "3", "--kv-heads", "1"])
    assert "loss on the last twentieth" in capsys.readouterr().out


def test_a_story_goes_on():
    model = train_tinystories.made(23, 16, 1, 2, 1, 16)
    train_tinystories.fit(model, words(), 2, 4, show=False)
    ids = train_tinystories.story(model, [3, 1], 30)
    assert len(ids) == 14 and all(0 <= i < 23 for i in ids)


def test_carts_obey_their_equations():
    """A pole that stands still upright stays; pushed to the right, the cart goes right and the pole falls left."""
    carts = train_cartpole.CartPole(2)
    carts.state[:] = 0.0
    fallen, over = carts.step(tensorlib.tensor([1, 0]).numpy())
    assert not fallen.any() and not over.any() and (carts.state[:, 0] == 0).all()
    (_, v, _, turn), (_, other, _, back) = carts.state
    assert v == -other > 0 and turn == -back < 0
    # from the equations at rest: the force over the cart and what the pole resists
    bend = -10 / 1.1 / (0.5 * (4 / 3 - 0.1 / 1.1))
    assert turn == pytest.approx(0.02 * bend) and v == pytest.approx(0.02 * (10 / 1.1 - 0.05 * bend / 1.1))
    carts.state[0, 2], carts.age[1] = 0.3, 499
    fallen, over = carts.step(tensorlib.tensor([1, 0]).numpy())
    assert fallen.tolist() == [True, False] and over.tolist() == [True, True]
    assert carts.lengths == [2.0, 500.0] and (abs(carts.state) <= 0.05).all()


def test_poles_are_balanced_longer():
    tensorlib.manual_seed(0)
    model = train_cartpole.ActorCritic()
    before = train_cartpole.judge(model, 20)
    train_cartpole.fit(model, 12, show=False)
    assert train_cartpole.judge(model, 20) > 2 * before
