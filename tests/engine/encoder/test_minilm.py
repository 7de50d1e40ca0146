"""A real embedding model: all-MiniLM-L6-v2."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from trunkline.engine.answers.embedding import embedding_answer
from trunkline.engine.answers.scoring import score_answer
from trunkline.engine.encoder.assemble import EncoderAssembly, assemble_encoder
from trunkline.engine.encoder.config import is_encoder
from trunkline.engine.model.load_format import LoadFormat
from trunkline.engine.pooling import PoolingConfig
from trunkline.engine.prompt_reading import Pooling
from trunkline.engine.request import Line, Request
from trunkline.engine.requests.embedding import EmbeddingRequest
from trunkline.engine.requests.scoring import RerankRequest
from trunkline.store.endpoints import EMBEDDINGS, RERANK

TEXTS = [
    "This is an example sentence",
    "Each sentence is converted",
    "A man is eating food.",
    "The quick brown fox jumps over the lazy dog. " * 12,
    "Ünïcödé, 東京 and 🚆!",
]


@pytest.fixture(scope="module")
def minilm(minilm_folder: Path) -> EncoderAssembly:
    cpu = torch.device("cpu")
    return assemble_encoder(minilm_folder, torch.float32, cpu, LoadFormat.AUTO, None, 1024)


def _finished(assembly: EncoderAssembly, endpoint: str, **body: object) -> Request:
    line = Line("batch_1", 1, "id", endpoint, {"model": "minilm", **body})
    (request,) = assembly.admission.admit([line])
    assert isinstance(request, Request)
    assembly.engine.add([request])
    while assembly.engine.has_work:
        assembly.engine.step()
    return request


def _embeddings(assembly: EncoderAssembly, texts: list[str]) -> np.ndarray:
    request = _finished(assembly, EMBEDDINGS, input=texts)
    assert isinstance(request.body, EmbeddingRequest)
    body, _ = embedding_answer(request, request.body)
    return np.array([item["embedding"] for item in body["data"]])


def test_what_the_folder_says(minilm: EncoderAssembly, minilm_folder: Path) -> None:
    assert is_encoder(minilm_folder)
    assert minilm.engine.encoder.pooling == PoolingConfig(Pooling.MEAN, True, 256, lowercases=False)
    assert minilm.max_model_tokens == 256
    assert minilm.engine.encoder.num_dimensions == 384


def test_embeddings_are_those_of_transformers(minilm: EncoderAssembly, minilm_folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(minilm_folder)
    model = AutoModel.from_pretrained(minilm_folder, dtype=torch.float32).eval()
    expected = []
    for text in TEXTS:
        with torch.inference_mode():
            tokens = tokenizer(text, return_tensors="pt", padding=False, truncation=False)
            mean = model(**tokens).last_hidden_state[0].mean(0)
        expected.append((mean / mean.norm()).numpy())
    np.testing.assert_allclose(_embeddings(minilm, TEXTS), expected, atol=1e-4)


def test_embeddings_are_those_of_the_model_card(minilm: EncoderAssembly) -> None:
    found = _embeddings(minilm, TEXTS[:1])[0, :3]
    np.testing.assert_allclose(found, [0.0676569, 0.0634959, 0.0487131], atol=1e-5)


def test_documents_are_ranked_by_what_they_mean(minilm: EncoderAssembly) -> None:
    documents = [
        "The stock market fell sharply on Monday.",
        "A cheetah chases its prey across a field.",
        "Someone is having a meal.",
        "A man eats a piece of bread.",
    ]
    request = _finished(minilm, RERANK, query="A man is eating food.", documents=documents)
    assert isinstance(request.body, RerankRequest)
    body, _ = score_answer(request, request.body, 0)
    assert [result["index"] for result in body["results"]][:2] == [3, 2]
    scores = {result["index"]: result["relevance_score"] for result in body["results"]}
    assert scores[3] > 0.6
    assert scores[0] < 0.2
