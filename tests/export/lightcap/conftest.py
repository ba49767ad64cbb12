"""Models of transformers that the tests here compare with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.export.lightcap.random_checkpoints import Multimodal, rn50, save_script


@pytest.fixture(scope="session")
def tinybert() -> Any:
    """transformers' BERT in the shape of TinyBERT 4L-312D, every weight random."""
    from transformers import BertConfig, BertForPreTraining

    config = BertConfig(
        vocab_size=30_522,
        hidden_size=312,
        num_hidden_layers=4,
        num_attention_heads=12,
        intermediate_size=1200,
        max_position_embeddings=512,
    )
    torch.manual_seed(23)
    model: Any = BertForPreTraining(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


@pytest.fixture(scope="session")
def openai_clip() -> Multimodal:
    """RN50 with random weights."""
    return rn50()


@pytest.fixture(scope="session")
def openai_archive(openai_clip: Multimodal, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as OpenAI packs it, in float16."""
    return save_script(openai_clip, tmp_path_factory.mktemp("openai") / "RN50.pt")
