"""Mixtures of experts: gradients of all operands, recorded steps, and what is refused."""

import numpy as np
import pytest

import tensorlib
from tensorlib.capture import Capture
from tensorlib.errors import DTypeError, ShapeError
from tensorlib.ops import moe
from tensorlib.quant.encode import quantize

torch = pytest.importorskip("torch")
random = np.random.default_rng(5)


@pytest.fixture(autouse=True)
def own_numbers():
    """Every test draws the same numbers, whichever ran before it in its process."""
    random.bit_generator.state = np.random.default_rng(5).bit_generator.state


def draw(*shape):
    return tensorlib.from_numpy(random.standard_normal(shape).astype("f4"))


@pytest.mark.parametrize("normalize", [True, False])
def test_gradients_are_torchs(normalize):
    operands = draw(2, 3, 4), draw(2, 3, 5), draw(5, 6, 4), draw(5, 4, 3)
    x, logits, gate_up, down = (torch.from_numpy(a.numpy()).requires_grad_() for a in operands)
    for a in operands:
        a.requires_grad = True
    out = tensorlib.moe(*operands, 2, normalize=normalize)
    share, chosen = logits.softmax(-1).topk(2)
    share = share / share.sum(-1, keepdim=True) if normalize else share
    gate, up = torch.einsum("btd,eid->btei", x, gate_up).chunk(2, -1)
    every = torch.einsum("btei,edi->bted", torch.nn.functional.silu(gate) * up, down)
    expected = (every.gather(2, chosen[..., None].expand(-1, -1, -1, 4)) * share[..., None]).sum(2)
    assert np.allclose(out.detach().numpy(), expected.detach().numpy(), rtol=1e-5, atol=1e-5)
    (out * out).sum().backward()
    (expected * expected).sum().backward()
    for ours, theirs in zip(operands, (x, logits, gate_up, down), strict=True):
        assert np.allclose(ours.grad.numpy(), theirs.grad.numpy(), rtol=1e-4, atol=1e-5)


def test_refusals():
    x, logits, gate_up, down = draw(3, 4), draw(3, 5), draw(5, 6, 4), draw(5, 4, 3)
    with pytest.raises(ShapeError, match="top_k 6; expected 1 to 5"):
        tensorlib.moe(x, logits, gate_up, down, 6)
    with pytest.raises(ShapeError, match="w_gate_up"):
        tensorlib.moe(x, logits, gate_up[:4], down, 2)
    with pytest.raises(ShapeError, match="reshape"):
        tensorlib.moe(x, logits, gate_up[0], down, 2)
    with pytest.raises(ShapeError, match=r"chosen: got x \(3, 4\), 2 ids"):
        moe.chosen(x, tensorlib.tensor([0, 1], dtype="i64"), gate_up, 1)
    with pytest.raises(DTypeError, match="floats"):
        tensorlib.moe(x.to("i64"), logits, gate_up, down, 2)
    assert tensorlib.moe(x[:0], logits[:0], gate_up, down, 2).shape == (0, 4)


@pytest.mark.parametrize("fmt", [None, "f16", "q8_0", "q4_k"])
@pytest.mark.parametrize("pair", [False, True])
def test_a_recorded_step_reads_who_was_chosen(fmt, pair):
    """Replayed with other tokens: what those choose is not what was chosen when it was recorded."""
    d, inner, many, top_k = 256, 256, 6, 2
    dense = [draw(many, 2 * inner, d) * d**-0.5, draw(many, d, inner) * inner**-0.5]
    gate_up, down = (w if fmt is None else w.to(fmt) if fmt == "f16" else quantize(w, fmt) for w in dense)
    if fmt is not None and fmt != "f16":
        dense = [w.dequantize() for w in (gate_up, down)]
    if pair:
        halves = [dense[0][:, :inner].contiguous(), dense[0][:, inner:].contiguous()]
        gate_up = tuple(h if fmt is None else h.to(fmt) if fmt == "f16" else quantize(h, fmt) for h in halves)
    x, router = draw(1, d), draw(many, d)
    x = tensorlib.cat([x, -x])  # what is best for one is worst for the other
    token, step = x[:1].clone(), Capture("cpu")

    def mixed(token):
        weights, experts = (token @ router.T).softmax(-1).topk(top_k)
        return moe.mix(token, weights, experts, gate_up, down), experts

    with step:
        out, experts = mixed(token)
    seen = []
    for i in range(2):
        token.copy_(x[i : i + 1])
        step.replay()
        seen.append(sorted(experts.tolist()[0]))
        expected = 0
        for e, share in zip(experts.tolist()[0], (x[i] @ router.T).softmax(-1).topk(top_k).values.tolist()):
            gate, up = (dense[0][e] @ x[i]).chunk(2, -1)
            expected = expected + share * (dense[1][e] @ (gate.silu() * up))
        # activations in 8 bits: half a step of 1 / 127 of the largest of 32, some 2 of their root mean squares, each
        tolerance = {None: 1e-5, "f16": 2e-3}.get(fmt, 2e-2)
        assert np.abs(out.numpy()[0] - expected.numpy()).max() <= tolerance * np.abs(expected.numpy()).max()
    assert seen[0] != seen[1], "the two tokens go to the same experts: no test"


@pytest.mark.parametrize("tokens", [1, 3, 12])
@pytest.mark.parametrize("fmt", [None, "q8_0", "q4_k"])
def test_choices_equal_experts_one_by_one(fmt, tokens):
    """Of 12 tokens some experts have five choices and more, which blocks take up to four at a time."""
    d, many = (52, 3) if fmt is None else (256, 3)  # 52: two vectors, one, and four elements
    x, logits, *weights = draw(tokens, d), draw(tokens, many), draw(many, 2 * d, d) * d**-0.5, draw(many, d, d)
    weights = weights if fmt is None else [quantize(w, fmt) for w in weights]
    shares, experts = logits.softmax(-1).topk(2)
    found, want = (f(x, shares, experts, *weights).numpy() for f in (moe._few, moe._by_expert))
    # both round activations to 8 bits, which the order of a sum may tip
    assert np.abs(found - want).max() <= (1e-6 if fmt is None else 1e-3) * np.abs(want).max()


@pytest.mark.parametrize("formats", [("q8_0", "q4_k"), ("q8_0", "q8_0"), (None, None), (None, "q8_0")])
def test_gate_and_up_apart_may_differ(formats):
    """Of one kind they are one launch, even if they are one weight; else they are multiplied one after the other."""
    d, many = 256, 3
    x, logits, down = draw(5, d), draw(5, many), draw(many, d, d) * d**-0.5
    dense = draw(many, d, d) * d**-0.5
    kinds = {fmt: dense if fmt is None else quantize(dense, fmt) for fmt in formats}
    pair = tuple(kinds[fmt] for fmt in formats)
    shares, experts = logits.softmax(-1).topk(2)
    found, want = (f(x, shares, experts, pair, down).numpy() for f in (moe._few, moe._by_expert))
    assert np.abs(found - want).max() <= 1e-3 * np.abs(want).max()


def test_a_choice_is_the_same_alone_and_among_others():
    for weights in ([draw(3, 2 * 64, 64), draw(3, 64, 64)], [quantize(draw(3, n, 64), "q4_0") for n in (128, 64)]):
        x, (shares, experts) = draw(7, 64), draw(7, 3).softmax(-1).topk(2)
        every = moe._few(x, shares, experts, *weights).numpy()
        each = [moe._few(x[i : i + 1], shares[i : i + 1], experts[i : i + 1], *weights).numpy()[0] for i in range(7)]
        assert (every == np.stack(each)).all()


def test_many_choices_can_be_recorded():
    """More than are taken by choice otherwise: what experts have to do must not be that of the first run."""
    top_k, tokens = 2, 4 * moe.CHOICES
    x, router, *weights = draw(tokens, 4), draw(3, 4), draw(3, 6, 4), draw(3, 4, 3)

    def mixed(x):
        return tensorlib.moe(x, x @ router.T, *weights, top_k)

    assert tokens * top_k > moe.CHOICES * 3
    want, step = [mixed(x).numpy().copy(), mixed(-x).numpy().copy()], Capture("cpu")
    with step:
        out = mixed(x)
    found = [out.numpy().copy()]
    x.copy_(-x)
    step.replay()
    found.append(out.numpy().copy())
    assert np.allclose(found, want, rtol=1e-4, atol=1e-5)


def test_an_id_of_no_expert_gives_nan():
    for weight in (draw(7, 32, 32), quantize(draw(7, 32, 32), "q8_0")):
        ids = tensorlib.tensor([0, 7, -1], dtype="i64")
        assert np.isnan(moe.chosen(draw(3, 32), ids, weight, 1).numpy()).all(1).tolist() == [False, True, True]


def test_gradients_through_experts_in_blocks():
    """Of tokens and router those of the dense weights, but for activations in 8 bits on the way; blocks have none."""
    d, many, found = 64, 3, []
    weights = [quantize(draw(many, 2 * d, d) * d**-0.5, "q8_0"), quantize(draw(many, d, d) * d**-0.5, "q8_0")]
    x, logits = draw(9, d), draw(9, many)
    for some in (weights, [w.dequantize() for w in weights]):
        operands = [a.clone().requires_grad_() for a in (x, logits)]
        tensorlib.moe(*operands, *some, 2).sum().backward()
        found.append([a.grad.numpy() for a in operands])
    # Two roundings to 8 bits: half a step of 1 / 127 of the largest of 32, some 2.5 root mean squares, has a deviation
    # of 0.6 % of those; 0.85 % together, of each element of an expert's result y. The largest of x's gradient is over
    # 2.5 root mean squares, so six deviations are 2 % of it. A logit's is p (1 - p) (sum y1 - sum y2).
    gate_up, down = (w.dequantize().numpy().astype(float) for w in weights)
    gate, up = np.split(x.numpy() @ gate_up.swapaxes(1, 2), 2, -1)
    y = (gate / (1 + np.exp(-gate)) * up) @ down.swapaxes(1, 2)
    bounds = 2e-2 * np.abs(found[1][0]).max(), 6 * 0.0085 / 4 * 2**0.5 * np.linalg.norm(y, axis=-1).max()
    for got, want, bound in zip(*found, bounds, strict=True):
        assert np.abs(got - want).max() <= bound


def test_groups_that_do_not_fit_are_told():
    a, b = draw(5, 3), draw(2, 3, 4)
    assert tensorlib.grouped_mm(a, b, tensorlib.tensor([2, 5])).shape == (5, 4)
    with pytest.raises(ShapeError, match=r"offs \[2, 4\]; expected ends that ascend from 0 to 5"):
        tensorlib.grouped_mm(a, b, [2, 4])
    with pytest.raises(ShapeError, match=r"\(5, 3\), \(2, 3, 4\) and 3 groups"):
        tensorlib.grouped_mm(a, b, [2, 3, 5])
    with pytest.raises(ShapeError, match="1 groups"):
        tensorlib.grouped_mm(a, b[0, 0], [5])
