"""RoBERTa (arXiv:1907.11692) and XLM-RoBERTa (arXiv:1911.02116): BERT trained longer, on more, without task 2.

What differs in the model: positions are counted from behind the padding's id. Shapes: see zoo/bert.py.
"""

from zoo import bert


class RobertaConfig(bert.BertConfig):
    """BERT's, with the padding's id at 1."""

    @classmethod
    def from_hf(cls, c):
        """Out of the fields of a config.json (zoo/config.py)."""
        return super().from_hf(c)._replace(pad_token_id=c("pad_token_id", int, 1))


TINY = RobertaConfig(*bert.TINY)._replace(pad_token_id=1, type_vocab_size=1)


class RobertaEmbeddings(bert.BertEmbeddings):
    def __init__(self, config):
        super().__init__(config)
        self._first = config.pad_token_id + 1

    def places(self, tokens):
        return tokens.positions + self._first


class RobertaModel(bert.BertModel):
    """`forward(ids, attention_mask)`: as BertModel's."""

    Embeddings, prefix = RobertaEmbeddings, "roberta"

    def __init__(self, config):
        super().__init__(config)
        self.max_length = config.max_position_embeddings - config.pad_token_id - 1
