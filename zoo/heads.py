"""What stands on an encoder: words that are masked (arXiv:1810.04805, section 3.1), and labels of texts or of tokens.

Models differ in names, and in what comes before the last product: a row of ROWS each. Names of weights are Hugging
Face's.

Shapes: N tokens of all sequences, B sequences, D hidden, V vocabulary, L labels.
"""

from functools import reduce
from typing import NamedTuple

from tensorlib import nn

TASKS = "ForMaskedLM", "ForSequenceClassification", "ForTokenClassification"


class Row(NamedTuple):
    """Paths of parts as files have them. `dense`, `norm`, `bias`, `decoder`: of what is done before words are chosen,
    of the bias of each word, and of an output layer where that is not the table of words. `pooled`, `classifier`: of
    the two products that a label comes from; with `normed`, the first is `dense`, and `norm` behind it, for tokens too.

    `acts`: of `dense` and of `pooled`, each as the field of the config that says it and what it is by default.
    """

    trunk: str
    dense: str
    norm: str
    bias: str
    decoder: str
    pooled: str
    acts: tuple
    classifier: str = "classifier"
    table: str = "embeddings.word_embeddings"
    normed: bool = False


WORDS = tuple(f"cls.predictions{name}" for name in (".transform.dense", ".transform.LayerNorm", "", ".decoder"))
ACT, PLAIN = ("hidden_act", "gelu"), (("", "gelu"), ("", "tanh"))
ROWS = {
    "Bert": Row("bert", *WORDS, "bert.pooler.dense", (ACT, PLAIN[1])),
    "DebertaV2": Row("deberta", *WORDS, "pooler.dense", (ACT, ("pooler_hidden_act", "gelu"))),
    "DistilBert": Row(
        "distilbert", "vocab_transform", "vocab_layer_norm", "vocab_projector", "vocab_projector", "pre_classifier",
        (("activation", "gelu"), ("", "relu")),
    ),
    "Gte": Row("new", "lm_head.dense", "lm_head.norm", *("lm_head.decoder",) * 2, "new.pooler.dense", PLAIN),
    "ModernBert": Row(
        "model", "head.dense", "head.norm", "decoder", "decoder", "head.dense",
        (("classifier_activation", "gelu"),) * 2, table="embeddings.tok_embeddings", normed=True,
    ),
    "Roberta": Row(
        "roberta", "lm_head.dense", "lm_head.layer_norm", "lm_head", "lm_head.decoder", "classifier.dense", PLAIN,
        "classifier.out_proj",
    ),
}  # fmt: skip
NEW = "lm_predictions.lm_head"  # DeBERTa's masked words, where a config says that they are not `legacy`


class HeadConfig(NamedTuple):
    """`labels`: names of classes. `acts`: see Row. `mean`: whether labels of texts are of the mean of tokens, not of
    the first. `biases`: whether the product before the last and the words have one.
    """

    labels: tuple
    acts: tuple
    eps: float
    mean: bool = False
    tied: bool = True
    biases: tuple = (True, True)
    norm_bias: bool = True

    @classmethod
    def from_hf(cls, c, row, trunk):
        """Out of the fields of a config.json (zoo/config.py); `trunk`: the config of what is below."""
        names, count = c("id2label", dict, {}), c("num_labels", int, 2)
        labels = [names[i] for i in sorted(names, key=int)] or [f"LABEL_{i}" for i in range(count)]
        return cls(
            labels=tuple(map(str, labels)),
            acts=tuple(c(field, str, default) for field, default in row.acts),
            eps=getattr(trunk, "norm_eps" if row.normed else "layer_norm_eps", 1e-12),
            mean=c.one_of("classifier_pooling", {"cls": False, "mean": True}, "cls"),
            tied=c("tie_word_embeddings", bool, True),
            biases=(c("classifier_bias", bool, not row.normed), c("decoder_bias", bool, True)),
            norm_bias=c("norm_bias", bool, not row.normed),
        )


def put(module, path, part):
    """A part at a path of names below a module; modules on the way are made where they are missing."""
    *above, name = path.split(".")
    for step in above:
        if not hasattr(module, step):
            setattr(module, step, nn.Module())
        module = getattr(module, step)
    setattr(module, name, part)


def at(module, path):
    """The part at a path."""
    return reduce(getattr, path.split("."), module)


class Head(nn.Module):
    """A `trunk` and what stands on it, as a Row and a HeadConfig say. `labels`: names of what logits are of."""

    def __init__(self, trunk, row, config):
        self.config, self.max_length, self.labels = trunk.config, trunk.max_length, config.labels
        self._row, self._head = row, config
        self._width = at(trunk, row.table).embedding_dim
        setattr(self, row.trunk, trunk)

    def transform(self, path, norm=True):
        """Makes a product [D, D] at `path`, with the row's norm behind it."""
        put(self, path, nn.Linear(self._width, self._width, self._head.biases[0]))
        if norm:
            put(self, self._row.norm, nn.LayerNorm(self._width, self._head.eps, bias=self._head.norm_bias))

    def transformed(self, x, path, act, norm=True):
        """norm(act(W x))."""
        x = nn.activation(act)(at(self, path)(x))
        return at(self, self._row.norm)(x) if norm else x

    def hidden(self, ids, attention_mask, token_type_ids):
        """(Sequences, hidden states [N, D]) of what `forward` takes."""
        tokens = nn.Sequences.of(ids, attention_mask)
        types = {} if token_type_ids is None else {"token_type_ids": tokens.pack(token_type_ids)}
        return tokens, getattr(self, self._row.trunk)(tokens.flat(), **types)


class ForMaskedLM(Head):
    """`forward(ids, attention_mask, token_type_ids)`, as `BertModel`'s: logits [..., V] of what stands, or is masked,
    at each place; 0 for padding.
    """

    def __init__(self, trunk, row, config):
        super().__init__(trunk, row, config)
        self.transform(row.dense)
        words = trunk.config.vocab_size
        if not config.tied:
            put(self, row.decoder, nn.Linear(self._width, words, config.biases[1]))
        elif config.biases[1]:
            put(self, f"{row.bias}.bias", nn.Parameter(words))

    def forward(self, ids, attention_mask=None, token_type_ids=None):
        (tokens, x_ND), row = self.hidden(ids, attention_mask, token_type_ids), self._row
        x_ND = self.transformed(x_ND, row.dense, self._head.acts[0])
        if not self._head.tied:
            return tokens.unpack(at(self, row.decoder)(x_ND))
        x_NV = at(self, f"{row.trunk}.{row.table}").as_linear(x_ND)
        return tokens.unpack(x_NV + at(self, f"{row.bias}.bias") if self._head.biases[1] else x_NV)


class ForSequenceClassification(Head):
    """`forward(ids, attention_mask, token_type_ids)`, as `BertModel`'s: logits [B, L] of each text's label."""

    def __init__(self, trunk, row, config):
        super().__init__(trunk, row, config)
        self.transform(row.pooled, row.normed)
        put(self, row.classifier, nn.Linear(self._width, len(config.labels)))

    def forward(self, ids, attention_mask=None, token_type_ids=None):
        (tokens, x_ND), row = self.hidden(ids, attention_mask, token_type_ids), self._row
        x_BD = tokens.mean(x_ND) if self._head.mean else tokens.at(x_ND, 0)
        return at(self, row.classifier)(self.transformed(x_BD, row.pooled, self._head.acts[1], row.normed))


class ForTokenClassification(Head):
    """`forward(ids, attention_mask, token_type_ids)`, as `BertModel`'s: logits [..., L] of the label of each token."""

    def __init__(self, trunk, row, config):
        super().__init__(trunk, row, config)
        if row.normed:
            self.transform(row.dense)
        self.classifier = nn.Linear(self._width, len(config.labels))

    def forward(self, ids, attention_mask=None, token_type_ids=None):
        tokens, x_ND = self.hidden(ids, attention_mask, token_type_ids)
        x_ND = self.transformed(x_ND, self._row.dense, self._head.acts[0]) if self._row.normed else x_ND
        return tokens.unpack(self.classifier(x_ND))


def named(trunk, architecture):
    """(task, row) for the class `trunk` of an encoder and what a config calls the whole; None where none is here.

    >>> class BertModel: pass
    >>> named(BertModel, "BertForMaskedLM")[0], named(BertModel, "BertForQuestionAnswering"), named(BertModel, None)
    ('ForMaskedLM', None, None)
    """
    task = next((task for task in TASKS if str(architecture).endswith(task)), None)
    row = ROWS.get(trunk.__name__.removesuffix("Model"))
    return None if task is None or row is None else (task, row)


def made(task, row, trunk, config, c):
    """The whole model for a trunk's class and config; `c`: the fields of the config.json."""
    if hasattr(config, "add_pooling_layer"):
        config = config._replace(add_pooling_layer=False)
    if task == TASKS[0] and not c("legacy", bool, True):
        row = row._replace(dense=f"{NEW}.dense", norm=f"{NEW}.LayerNorm", bias=NEW)
    return globals()[task](trunk(config), row, HeadConfig.from_hf(c, row, config))
