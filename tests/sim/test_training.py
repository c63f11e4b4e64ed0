"""Steps of training as they are compiled, in the simulator: cases of the interpreted tests."""

import pytest

from tests.sim.host import install
from tests.sim.interpreted import test_training as training
from tests.sim.simulated import Simulated

GPUS: dict = {}  # compiled programs are kept


@pytest.fixture
def device(request):
    """A device "cuda:0" of the architecture."""
    gpu = GPUS.setdefault(request.param, Simulated(request.param))
    install(gpu)
    yield gpu
    gpu.check()
    install(None)


CASES = [(80, "mlp"), (80, "cnn"), (80, "resnet"), (80, "gpt"), (90, "mlp")]  # 90: its own matrix products


@pytest.mark.parametrize("device, name", CASES, indirect=["device"])
def test_losses_are_those_of_the_cpu(device, name):
    training.check(name)
