"""A bidirectional LSTM as a student (DistilBiLSTM, Tang et al., 1903.12136), saved as safetensors and JSON.

Shape legend: B rows, L length, E embedding, U units of one direction, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

MODEL_TYPE = "lmdistill_bilstm"


class BiLstmConfig(PreTrainedConfig):
    """Sizes of a `BiLstm`."""

    model_type = MODEL_TYPE

    def __init__(
        self,
        vocab_size: int = 30522,
        embedding: int = 300,
        hidden: int = 150,
        layers: int = 1,
        projection: int = 200,
        dropout: float = 0.1,
        **kwargs: Any,
    ) -> None:
        self.vocab_size = vocab_size
        self.embedding = embedding
        self.hidden = hidden
        self.layers = layers
        self.projection = projection
        self.dropout = dropout
        super().__init__(**kwargs)


@dataclass
class Logits:
    """What a forward pass gives."""

    logits: Tensor


class BiLstm(PreTrainedModel):
    """Embeddings, a bidirectional LSTM, its last states of both directions, ReLU, classes (1903.12136, figure 1)."""

    config_class = BiLstmConfig
    base_model_prefix = ""
    main_input_name = "input_ids"

    def __init__(self, config: BiLstmConfig) -> None:
        super().__init__(config)
        self.embedding = nn.Embedding(config.vocab_size, config.embedding)
        self.lstm = nn.LSTM(
            config.embedding, config.hidden, num_layers=config.layers, bidirectional=True, batch_first=True
        )
        self.dropout = nn.Dropout(config.dropout)
        self.projection = nn.Linear(2 * config.hidden, config.projection)
        self.classifier = nn.Linear(config.projection, int(config.num_labels or 2))
        self.post_init()  # type: ignore[no-untyped-call]

    def _init_weights(self, module: nn.Module) -> None:
        """Every module keeps the weights that torch draws."""

    def get_input_embeddings(self) -> nn.Module:
        """The word embeddings."""
        return self.embedding

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
    ) -> Logits:
        """Class logits (B, C). `token_type_ids` is taken and not used: an LSTM reads the separator between texts."""
        x_BLE = self.embedding(input_ids) if inputs_embeds is None else inputs_embeds
        if attention_mask is None:
            attention_mask = torch.ones(x_BLE.shape[:2], dtype=torch.long, device=x_BLE.device)
        lengths_B = attention_mask.sum(-1).clamp(min=1).cpu()
        packed = nn.utils.rnn.pack_padded_sequence(x_BLE.float(), lengths_B, batch_first=True, enforce_sorted=False)
        with torch.autocast(x_BLE.device.type, enabled=False):  # the packed kernel knows no 16-bit format on processors
            _, (last, _) = self.lstm(packed)
        state_B2U = torch.cat([last[-2], last[-1]], dim=-1)
        return Logits(self.classifier(torch.relu(self.projection(self.dropout(state_B2U)))))
