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


# Hopper's code differs in its matrix products alone: the GPT has all of their kinds.
@pytest.mark.parametrize("device, name", [*((80, name) for name in training.CASES), (90, "gpt")], indirect=["device"])
def test_losses_are_those_of_the_cpu(device, name):
    training.check(name)
