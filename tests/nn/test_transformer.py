"""Attention layers and transformers against torch.nn's with the same weights, in float64."""

import pytest

import tensorlib
from tensorlib import nn
from tensorlib.errors import DTypeError, ShapeError
from tests.nn.test_layers import both, close

torch = pytest.importorskip("torch")


def ours_of(x):
    return None if x is None else tensorlib.from_torch(x.detach().clone())


def compare(ours, theirs, inputs, **masks):
    """Results and all gradients of ours(*inputs, **masks) and theirs."""
    torch.manual_seed(1)
    xs = [x.requires_grad_() for x in inputs]
    mine = [ours_of(x).requires_grad_() for x in xs]
    z = ours(*mine, **{k: v if isinstance(v, bool) else ours_of(v) for k, v in masks.items()})
    y = theirs(*xs, **masks)
    z, y = (found if isinstance(found, tuple) else (found, None) for found in (z, y))
    assert (z[1] is None) == (y[1] is None)
    for a, b in zip(z, y):
        if b is not None:
            assert tuple(a.shape) == tuple(b.shape)
            close(a, b)
    y[0].square().sum().backward()
    z[0].square().sum().backward()
    for a, b in zip(mine, xs):
        close(a.grad, b.grad, 100)
    for (path, a), (_, b) in zip(ours.named_parameters(), theirs.named_parameters()):
        assert a.grad is not None, path
        close(a.grad, b.grad, 100)


def random(*shape):
    return torch.randn(*shape, dtype=torch.float64)


HIDDEN = torch.tensor([[False, False, True, False], [False] * 4])
ATTENTION = [  # options, shapes of query, key and value, options of the call
    ({}, [(3, 2, 8), (4, 2, 8), (4, 2, 8)], {}),
    ({"bias": False}, [(3, 2, 8), (4, 2, 8), (4, 2, 8)], {"need_weights": False}),
    ({"batch_first": True}, [(2, 3, 8), (2, 4, 8), (2, 4, 8)], {"key_padding_mask": HIDDEN}),
    ({"kdim": 5, "vdim": 6}, [(3, 2, 8), (4, 2, 5), (4, 2, 6)], {"average_attn_weights": False}),
    ({"add_bias_kv": True, "add_zero_attn": True}, [(3, 2, 8), (4, 2, 8), (4, 2, 8)], {"key_padding_mask": HIDDEN}),
    ({}, [(4, 8)] * 3, {"attn_mask": torch.ones(4, 4).triu(1).bool(), "key_padding_mask": HIDDEN[0]}),
    ({}, [(4, 8)] * 3, {"attn_mask": torch.ones(4, 4).triu(1).bool(), "is_causal": True, "need_weights": False}),
    ({}, [(4, 2, 8)] * 3, {"attn_mask": torch.randn(4, 4, 4, dtype=torch.float64), "need_weights": False}),
]


@pytest.mark.parametrize("row", ATTENTION, ids=range(len(ATTENTION)))
def test_attention(row):
    options, shapes, call = row
    torch.manual_seed(0)
    ours, theirs = both("MultiheadAttention", (8, 2), options)
    compare(ours, theirs, [random(*shape) for shape in shapes], **call)


def test_attention_of_one_tensor_to_itself():
    torch.manual_seed(0)
    ours, theirs = both("MultiheadAttention", (8, 2), {})
    x = random(3, 2, 8)
    mine = ours_of(x)
    close(ours(mine, mine, mine)[0], theirs(x, x, x)[0])
    causal = torch.ones(3, 3).triu(1).bool()
    close(ours(mine, mine, mine, is_causal=True)[1], theirs(x, x, x, attn_mask=causal)[1])
    nothing = tensorlib.ones(3, 3, dtype="bool")
    assert not ours(mine, mine, mine, attn_mask=nothing)[1].any()


def test_attention_begins_and_drops_as_torchs():
    tensorlib.manual_seed(0)
    layer = nn.MultiheadAttention(32, 4, dropout=0.5)
    theirs = torch.nn.MultiheadAttention(32, 4)
    for name, value in layer.state_dict().items():
        other = theirs.state_dict()[name]
        # the deviation of n draws is off by less than 5 / sqrt(2 n), and so is that of theirs
        assert value.std().item() == pytest.approx(other.std().item(), rel=2 * 5 / (2 * value.numel()) ** 0.5)
    x = tensorlib.randn(3, 2, 32)
    dropped = layer(x, x, x, average_attn_weights=False)[1]
    whole = layer.eval()(x, x, x, average_attn_weights=False)[1]
    assert (((dropped - 2 * whole).abs() < 1e-6) | (dropped == 0)).all() and (dropped == 0).any()
    kept, _ = layer(x, x, x, need_weights=False)
    assert (kept == layer(x, x, x, need_weights=False)[0]).all()


@pytest.mark.parametrize(
    "options", [{}, {"norm_first": True, "activation": "gelu"}, {"batch_first": True, "bias": False}]
)
def test_encoder_and_decoder_layers(options):
    torch.manual_seed(0)
    options = {"dim_feedforward": 5, "dropout": 0.0, **options}
    ours, theirs = both("TransformerEncoderLayer", (8, 2), options)
    causal = torch.nn.Transformer.generate_square_subsequent_mask(4, dtype=torch.float64)
    shape = (2, 4, 8) if options.get("batch_first") else (4, 2, 8)
    compare(ours, theirs, [random(*shape)], src_mask=causal, is_causal=True)
    ours, theirs = both("TransformerDecoderLayer", (8, 2), options)
    compare(ours, theirs, [random(*shape), random(*shape)], tgt_mask=causal, memory_key_padding_mask=HIDDEN)


@pytest.mark.filterwarnings("ignore:enable_nested_tensor")  # a hint of torch's
def test_transformer():
    torch.manual_seed(0)
    sizes = {"num_encoder_layers": 2, "num_decoder_layers": 1, "dim_feedforward": 5, "dropout": 0.0}
    ours, theirs = both("Transformer", (8, 2), sizes)
    compare(ours, theirs, [random(4, 2, 8), random(3, 2, 8)], src_key_padding_mask=HIDDEN)
    mask = nn.Transformer.generate_square_subsequent_mask(3)
    assert mask.tolist() == torch.nn.Transformer.generate_square_subsequent_mask(3).tolist()
    with pytest.raises(ShapeError, match="one batch"):
        ours(tensorlib.zeros(4, 2, 8), tensorlib.zeros(4, 3, 8))


@pytest.mark.filterwarnings("ignore:enable_nested_tensor")  # a hint of torch's
def test_stacks_are_of_copies():
    layer = nn.TransformerEncoderLayer(8, 2, 5)
    stack = nn.TransformerEncoder(layer, 2, nn.LayerNorm(8))
    theirs = torch.nn.TransformerEncoder(torch.nn.TransformerEncoderLayer(8, 2, 5), 2, torch.nn.LayerNorm(8))
    assert list(stack.state_dict()) == list(theirs.state_dict())
    first, second = (block.linear1.weight for block in stack.layers)
    assert (first == second).all() and first is not second
    model = nn.Transformer(8, 2, 2, 1, 5)
    first, second = (block.linear1.weight for block in model.encoder.layers)
    assert not (first == second).any()


def test_what_does_not_fit_is_told():
    with pytest.raises(ShapeError, match="divisor"):
        nn.MultiheadAttention(8, 3)
    layer, x = nn.MultiheadAttention(8, 2), tensorlib.zeros(3, 2, 8)
    with pytest.raises(ShapeError, match="as many keys as values"):
        layer(x, x, tensorlib.zeros(4, 2, 8))
    with pytest.raises(ShapeError, match="attn_mask of shape"):
        layer(x, x, x, attn_mask=tensorlib.zeros(3, 4))
    with pytest.raises(DTypeError, match="True hides"):
        layer(x, x, x, attn_mask=tensorlib.zeros(3, 3, dtype="i64"))
    with pytest.raises(ValueError, match="relu or gelu"):
        nn.TransformerEncoderLayer(8, 2, activation="elu")
