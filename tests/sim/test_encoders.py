"""Encoders and encoder-decoders of the zoo on the simulated GPU: hidden states of two texts, as on the CPU's tests."""

import numpy as np
import pytest

import tensorlib
from tensorlib import nn
from tests.sim.host import install
from tests.sim.simulated import Simulated
from tests.zoo import test_encoders as whole
from tests.zoo import test_jina_bert as jina
from tests.zoo import test_marian as marian
from tests.zoo import test_nv_embed as nv
from zoo import auto

torch = pytest.importorskip("torch")

ROWS = [[5, 17, 80, 9, 33], [7, 8, 90]]
ENCODERS = ("bert", "deberta-v2", "distilbert", "gte", "modernbert", "nomic_bert", "roberta", "t5", "xlm-roberta")
OTHERS = "jina_bert", "nvembed", "marian"  # which have tests of their own below


@pytest.fixture(scope="module")
def device():
    """A device "cuda:0"."""
    gpu = Simulated(90)
    install(gpu)
    yield gpu
    gpu.check()
    install(None)


def check(folder, theirs):
    """Ours out of a folder, for texts of two lengths without padding."""
    with torch.no_grad():
        want = [theirs(np.array([row]), np.ones((1, len(row)), np.int64))[0].numpy() for row in ROWS]
    ours = auto.load(folder, device="cuda:0")[1]
    with tensorlib.no_grad():
        whole.close(ours(nn.Sequences(ROWS, device="cuda:0")).cpu().numpy(), np.concatenate(want))


@pytest.mark.parametrize("name", ENCODERS)
def test_encoders(name, device, tmp_path):
    theirs = whole.made(name, tmp_path)
    check(tmp_path, lambda ids, mask: theirs(torch.tensor(ids)).last_hidden_state)


def test_heads(device, tmp_path):
    """Words and labels, of two texts one behind the other."""
    for task in whole.TASKS:
        folder = tmp_path / task
        theirs, ours = whole.made("bert", folder, f"Bert{task}"), auto.load(folder, device="cuda:0")[1]
        types = [[0, 0, 1, 1, 1], [0, 1, 1]]
        with torch.no_grad():
            want = [theirs(torch.tensor([row]), token_type_ids=torch.tensor([t])).logits for row, t in zip(ROWS, types)]
        flat = tensorlib.tensor([*types[0], *types[1]], dtype="i64", device="cuda:0")
        with tensorlib.no_grad():
            found = ours(nn.Sequences(ROWS, device="cuda:0"), token_type_ids=flat).cpu().numpy()
        want = torch.cat([x[0] for x in want]) if want[0].ndim == 3 else torch.cat(want)
        whole.close(found, want.numpy())


def test_jina_bert(device, tmp_path):
    check(tmp_path, jina.made("text", tmp_path))


def test_nvembed(device, tmp_path):
    check(tmp_path, nv.save_nv_embed(tmp_path))


def test_marian(device, tmp_path):
    """Logits of two texts, and steps of one with its cache."""
    theirs, ours = marian.made("opus", tmp_path), auto.load(tmp_path, device="cuda:0")[1]
    ids, answer = np.array([ROWS[0], ROWS[0][::-1]]), np.arange(3, 11).reshape(2, 4)
    with torch.no_grad():
        want = theirs(torch.tensor(ids), decoder_input_ids=torch.tensor(answer)).logits.numpy()
        options = {"max_new_tokens": 4, "num_beams": 1, "do_sample": False}
        text = theirs.generate(torch.tensor(ids[:1]), bad_words_ids=[[98]], **options)[0, 1:].tolist()
    with tensorlib.no_grad():
        ids = tensorlib.tensor(ids, device="cuda:0")
        whole.close(ours(ids, tensorlib.tensor(answer, device="cuda:0")).cpu().numpy(), want)
    assert list(ours.answer(ids[0], 4)) == (text[: text.index(0)] if 0 in text else text)
