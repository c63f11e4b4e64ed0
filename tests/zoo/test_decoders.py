"""Every decoder against `transformers`: its own weights, random and tiny, saved and loaded here."""

import importlib
import inspect

import numpy as np
import pytest

import tensorlib
from tensorlib.capture import Capture
from tests.zoo import table
from tests.zoo.decoders import CASES, SIZES
from zoo import auto, cli
from zoo.generate import load

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

IDS = [3, 71, 17, 17, 98, 4, 25, 1, 2, 77, 31, 5, 42, 8, 55, 23]  # twice a sliding window of 8
OTHER = [9, 8, 7, 60, 1, 33, 34, 35, 36, 37, 90, 91, 92, 12, 2, 5]
TOLERANCE = 1e-4  # of the largest logit


def randomise(model):
    """Weights that matter: products keep the size of what they get, norms and biases are all different."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            if p.ndim == 1:
                p.copy_(p + 0.1 * noise)
            else:
                p.copy_(noise if "embed" in name else 1.5 * noise / p.shape[-1] ** 0.5)
        for name, p in model.named_buffers():
            if "correction_bias" in name:
                p.copy_(0.3 * torch.randn(p.shape, generator=generator))


def torch_model(case):
    config = transformers.AutoConfig.for_model(case.model_type, **{**SIZES, **case.fields})
    attention = "sdpa" if case.fields.get("alibi") else "eager"  # which adds Falcon's biases twice
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation=attention).float().eval()
    randomise(model)
    return model


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case.id)
def pair(request, tmp_path_factory):
    """(transformers' model, ours, the case), from one folder."""
    case = request.param
    theirs = torch_model(case)
    folder = tmp_path_factory.mktemp("model")
    theirs.save_pretrained(folder)
    return theirs, auto.load(folder, context=case.context)[1], case


def logits(theirs, ids):
    with torch.no_grad():
        return theirs(torch.tensor(ids), use_cache=False).logits.numpy()


def close(got, want, tolerance=TOLERANCE):
    assert got.shape == want.shape
    assert np.abs(got - want).max() <= tolerance * np.abs(want).max()


def tensor(ids):
    return tensorlib.tensor(ids, dtype="i64")


def test_prefill(pair):
    theirs, ours, _ = pair
    cache = ours.new_cache(32, "f32")
    got = ours(tensor(IDS), cache, last_only=False).numpy()
    close(got, logits(theirs, [IDS])[0])


def test_cached_steps(pair):
    theirs, ours, _ = pair
    cache = ours.new_cache(32, "f32")
    found = [ours(tensor(IDS[:5]), cache, last_only=False).numpy().copy()]
    found += [ours(tensor([i]), cache).numpy().copy() for i in IDS[5:]]
    close(np.concatenate(found), logits(theirs, [IDS])[0])


def test_recorded_steps(pair):
    """One step is recorded and replayed for all tokens after it, as generation does."""
    theirs, ours, _ = pair
    cache, token, step = ours.new_cache(32, "f32"), tensor(IDS[4:5]), Capture("cpu")
    ours(tensor(IDS[:4]), cache)
    with step:
        out = ours(token, cache)
    found = [out.numpy().copy()]
    for i in IDS[5:]:
        token.fill_(i)
        step.replay()
        found.append(out.numpy().copy())
    close(np.concatenate(found), logits(theirs, [IDS])[0][4:])


def test_batch(pair):
    """Two sequences at once; the second has padding behind it, which nothing before it sees."""
    theirs, ours, _ = pair
    padded = [*OTHER[:11], 0, 0, 0, 0, 0]
    got = ours(tensor([IDS, padded])).numpy()
    close(got[:1], logits(theirs, [IDS]))
    close(got[1:, :11], logits(theirs, [OTHER[:11]]))


# where transformers lets padding on the left leak into the text: biases before a convolution, or a mask not looked at
LEAKS = "mamba-biases", "mamba2-limits", "lfm2-biases", "granitemoehybrid-limits"
LEAKS += "recurrent_gemma", "recurrent_gemma-wide"


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding(pair, side):
    """What transformers gives with a mask, and with positions that begin at the first token."""
    theirs, ours, case = pair
    rows, width = [OTHER[:11], IDS, IDS[2:]], len(IDS)
    padding = [[0] * (width - len(row)) for row in rows]
    ids = [pad + row if side == "left" else row + pad for row, pad in zip(rows, padding)]
    real = np.array(
        [[1] * len(row) + pad if side == "right" else pad + [1] * len(row) for row, pad in zip(rows, padding)]
    )
    options = {}
    if "position_ids" in inspect.signature(theirs.forward).parameters:
        options["position_ids"] = torch.tensor((real.cumsum(1) - 1).clip(0))
    with torch.no_grad():
        want = theirs(torch.tensor(ids), attention_mask=torch.tensor(real), use_cache=False, **options).logits.numpy()
    got, real = ours(tensor(ids), attention_mask=tensor(real.tolist())).numpy(), real.astype(bool)
    assert got.shape == want.shape and not got[~real].any()
    if side == "left" and case.id in LEAKS:
        alone = np.concatenate([logits(theirs, [row])[0] for row in rows])
        assert np.abs(want[real] - alone).max() > 10 * TOLERANCE * np.abs(alone).max()
        close(got[real], alone)
    else:
        close(got[real], want[real])


def test_training_step(pair):
    """Loss and the gradient of every weight."""
    theirs, ours, case = pair
    theirs.zero_grad()
    ids = torch.tensor([IDS, OTHER])
    want = theirs(ids, use_cache=False).logits[:, :-1].flatten(0, 1)
    want = torch.nn.functional.cross_entropy(want, ids[:, 1:].flatten())
    want.backward()
    ours.requires_grad_(True)
    got = ours(tensor([IDS, OTHER]))[:, :-1].flatten(0, 1)
    loss = tensorlib.cross_entropy(got, tensor([*IDS[1:], *OTHER[1:]]))
    loss.backward()
    assert abs(loss.item() - want.item()) <= 1e-5 * abs(want.item())
    found = {name: p.grad for name, p in ours.named_parameters()}
    expected = {case.name(name): p.grad for name, p in theirs.named_parameters()}
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        close(found[name].numpy(), gradient.numpy(), 1e-3)
    ours.requires_grad_(False)


def test_a_file_of_the_body_alone(tmp_path):
    """GPT-2's own, whose names begin without "transformer."."""
    theirs = torch_model(next(case for case in CASES if case.model_type == "gpt2"))
    theirs.transformer.save_pretrained(tmp_path)
    ours = auto.load(tmp_path)[1]
    close(ours(tensor(IDS)).numpy(), logits(theirs, [IDS])[0])


def test_a_folder_generates_text(tmp_path, capsys):
    """The command takes a folder with a tokenizer.json, and says what the ids say."""
    tokenizers = pytest.importorskip("tokenizers")
    words = {f"w{i}": i for i in range(SIZES["vocab_size"])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, "w0"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    theirs = torch_model(CASES[0])
    theirs.save_pretrained(tmp_path)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    model = load(tmp_path, context=24)
    assert model.context_length == 24
    ids = list(model.generate(model.tokenizer.encode("w3 w71 w17"), 8))
    rows = logits(theirs, [[3, 71, 17, *ids]])[0]
    assert [int(row.argmax()) for row in rows[2:-1]] == ids
    assert cli.main(["generate", "-m", str(tmp_path), "-n", "8", "w3 w71 w17"]) == 0
    assert capsys.readouterr().out.split() == [f"w{i}" for i in ids]
    (tmp_path / "tokenizer.json").unlink()
    assert cli.main(["generate", "-m", str(tmp_path), "w3"]) == 2
    assert "tokenizer.json" in capsys.readouterr().err


def test_the_table_is_of_what_loads():
    assert table.rows().keys() <= auto.MODELS.keys()
    assert all("training" in shown for shown in table.rows().values())
    assert "| `helium` | yes |  | yes | yes | yes |" in table.table(), "llama.cpp has no such architecture"


@pytest.mark.parametrize("model_type", sorted({case.model_type for case in CASES}))
def test_tiny(model_type):
    """Every model has a tiny config, and works without a file."""
    name, model, config = auto.MODELS[model_type]
    module = importlib.import_module(f"zoo.{name}")
    kind, tiny = getattr(module, config), [value for key, value in vars(module).items() if key.startswith("TINY")]
    config = next(value for value in tiny if type(value) is kind)
    ours = getattr(module, model)(config).requires_grad_(False)
    assert ours(tensor(IDS), ours.new_cache(16)).shape == (1, config.vocab_size)
