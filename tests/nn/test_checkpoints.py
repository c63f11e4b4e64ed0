"""Going on from a checkpoint is exact; a writer that is killed loses nothing older; damaged files are told."""

import os
import signal
import subprocess
import sys
import time

import pytest

import tensorlib
from tensorlib import amp, nn, optim, train
from tensorlib.errors import FormatError, WriteError


class Run:
    """A small training with everything that has a state."""

    def __init__(self):
        tensorlib.manual_seed(7)
        self.model = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 3))
        self.optimizer = optim.AdamW(self.model.parameters(), lr=0.05)
        self.schedule = optim.lr_scheduler.WarmupCosine(self.optimizer, 3, 40)
        self.ema, self.scaler = optim.ExponentialMovingAverage(self.model), amp.GradScaler(growth_interval=4)
        self.objects = {k: v for k, v in vars(self).items() if k != "objects"}

    def step(self):
        x, y = tensorlib.randn(8, 6), tensorlib.randint(0, 3, (8,))
        self.optimizer.zero_grad()
        loss = tensorlib.cross_entropy(self.model(x), y)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update(), self.schedule.step(), self.ema.update()
        return loss.item()


def test_going_on_is_exact(tmp_path):
    checkpoints = train.Checkpoints(tmp_path / "new" / "folder")
    run = Run()
    for _ in range(5):
        run.step()
    checkpoints.save(5, **run.objects, note={"epoch": 2, "names": ["a", ("b", None)], "x": tensorlib.arange(3)})
    losses = [run.step() for _ in range(10)]
    other = Run()
    other.step()
    assert checkpoints.load(**other.objects) == 5
    assert [other.step() for _ in range(10)] == losses
    assert all((a == b).all() for a, b in zip(run.model.parameters(), other.model.parameters()))
    assert all((run.ema.averages[k] == other.ema.averages[k]).all() for k in run.ema.averages)
    note = checkpoints.read()["objects"]["note"]
    assert note["names"] == ["a", ("b", None)] and note["x"].tolist() == [0, 1, 2] and note["epoch"] == 2


def test_the_last_ones_are_kept(tmp_path):
    checkpoints, run = train.Checkpoints(tmp_path, keep=2), Run()
    assert checkpoints.load(model=run.model) is None and checkpoints.read() is None
    for step in (1, 3, 20, 100):
        checkpoints.save(step, model=run.model)
    assert checkpoints.steps() == [20, 100]
    assert checkpoints.load(20, model=run.model) == 20
    with pytest.raises(FormatError, match="no optimizer"):
        checkpoints.load(optimizer=run.optimizer)
    with pytest.raises(TypeError, match="model: a object"):
        checkpoints.save(101, model=object())
    assert checkpoints.steps() == [20, 100]


def test_damaged_files_are_told(tmp_path):
    checkpoints = train.Checkpoints(tmp_path)
    run = Run()
    checkpoints.save(1, model=run.model)
    data = (tmp_path / "step-00000001.safetensors").read_bytes()
    (tmp_path / "step-00000002.safetensors").write_bytes(data[:-7])
    with pytest.raises(FormatError, match=r"step-00000002"):
        checkpoints.load(model=run.model)
    tensorlib.save(tmp_path / "step-00000003.safetensors", {"x": tensorlib.ones(1)})
    with pytest.raises(FormatError, match=r"not written by Checkpoints"):
        checkpoints.load(model=run.model)
    assert checkpoints.load(1, model=run.model) == 1
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(WriteError):
        train.Checkpoints(tmp_path / "file" / "below").save(1, model=run.model)


WRITER = """
import sys, tensorlib
from tensorlib import train
checkpoints = train.Checkpoints(sys.argv[1], keep=2)
step = 0
while True:
    step += 1
    checkpoints.save(step, value=tensorlib.full((500_000,), float(step), dtype="f32"))
    print(step, flush=True)
"""


def test_a_killed_writer_loses_nothing_older(tmp_path):
    for wait in (0.0, 0.002, 0.005, 0.011):
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True, env=environment
        )
        for _ in range(3):
            done = int(writer.stdout.readline())
        time.sleep(wait)
        writer.send_signal(signal.SIGKILL)
        rest = writer.communicate()[0].split()
        done = int(rest[-1]) if rest else done
        checkpoints = train.Checkpoints(tmp_path)
        steps = checkpoints.steps()
        assert steps and steps[-1] >= done and len(steps) >= 2
        for step in steps:  # the one that it was writing may be there, whole, or not
            assert (checkpoints.read(step)["objects"]["value"] == float(step)).all()


def test_progress_keeps_history_and_draws(tmp_path, capsys):
    progress = train.Progress(4, first=1, show=False)
    for step in progress:
        progress.log(loss=1 / step, lr=0.1 if step != 2 else float("nan"))
    assert [s for s, _ in progress.history] == [1, 2, 3]
    progress.save(tmp_path / "x.csv")
    assert (tmp_path / "x.csv").read_text().splitlines()[:2] == ["step,loss,lr", "1,1.0,0.1"]
    assert progress._repr_html_().count("<svg") == 2
    assert capsys.readouterr().err == ""
