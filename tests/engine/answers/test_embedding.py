"""Embedding responses, as OpenAI's client reads them."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any, ClassVar

import numpy as np
import openai
import pytest
from numpy.typing import NDArray
from openai.types import CreateEmbeddingResponse

from trunkline.engine.answers.embedding import check_dimensions, embedding_list, normalised
from trunkline.engine.answers.usage import Usage
from trunkline.engine.pooling import PoolingConfig
from trunkline.engine.prompt_reading import Pooling
from trunkline.engine.requests.embedding import EmbeddingRequest
from trunkline.engine.requests.errors import RequestError

NORMALISING = PoolingConfig(Pooling.MEAN, normalizes=True)
PLAIN = PoolingConfig(Pooling.MEAN, normalizes=False)
USAGE = Usage(num_prompt_tokens=7, num_cached_tokens=3, num_output_tokens=0)


def _vectors(num: int, num_dimensions: int) -> list[NDArray[np.float32]]:
    generator = np.random.default_rng(0)
    return list(generator.normal(size=(num, num_dimensions)).astype(np.float32) * 3)


def _body(**fields: Any) -> EmbeddingRequest:
    return EmbeddingRequest.parse({"model": "m", "input": ["a", "b"], **fields})


def test_floats() -> None:
    vectors = _vectors(2, 8)
    body = embedding_list(_body(), vectors, NORMALISING, USAGE)
    assert set(body) == {"object", "data", "model", "usage"}
    response = CreateEmbeddingResponse.model_validate(json.loads(json.dumps(body)), strict=True)
    assert response.object == "list"
    assert response.model == "m"
    assert response.usage.model_dump() == {"prompt_tokens": 7, "total_tokens": 7}
    assert [item.index for item in response.data] == [0, 1]
    for item, vector in zip(response.data, vectors, strict=True):
        assert item.object == "embedding"
        assert np.linalg.norm(item.embedding) == pytest.approx(1, abs=1e-6)
        np.testing.assert_allclose(item.embedding, vector / np.linalg.norm(vector), atol=1e-6)


class Embeddings(BaseHTTPRequestHandler):
    """Answers with the embeddings of `_vectors`, and remembers what it was asked for."""

    asked: ClassVar[list[dict[str, Any]]] = []

    def do_POST(self) -> None:
        given = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.asked.append(given)
        body = EmbeddingRequest.parse(given)
        vectors = _vectors(len(body.prompts), 8)
        content = json.dumps(embedding_list(body, vectors, NORMALISING, USAGE)).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def client() -> Iterator[openai.OpenAI]:
    Embeddings.asked.clear()
    with HTTPServer(("127.0.0.1", 0), Embeddings) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}/v1"
        with openai.OpenAI(base_url=url, api_key="unused", max_retries=0) as made:
            yield made
        server.shutdown()
        thread.join()


def test_the_official_client_asks_for_base64_and_decodes_it(client: openai.OpenAI) -> None:
    response = client.embeddings.create(model="m", input=["a", "b", "c"])
    assert [asked["encoding_format"] for asked in Embeddings.asked] == ["base64"]
    expected = [normalised(vector) for vector in _vectors(3, 8)]
    np.testing.assert_array_equal([item.embedding for item in response.data], expected)


def test_the_official_client_asks_for_floats(client: openai.OpenAI) -> None:
    response = client.embeddings.create(model="m", input="a", encoding_format="float", dimensions=4)
    expected = normalised(_vectors(1, 8)[0][:4])
    np.testing.assert_array_equal(np.array(response.data[0].embedding, np.float32), expected)
    assert response.usage.total_tokens == 7


def test_base64_is_little_endian_float32() -> None:
    (vector,) = _vectors(1, 5)
    body = embedding_list(_body(encoding_format="base64"), [vector], PLAIN, USAGE)
    raw = base64.b64decode(body["data"][0]["embedding"], validate=True)
    assert raw == vector.astype("<f4").tobytes()


@pytest.mark.parametrize("encoding_format", ["float", "base64"])
def test_dimensions_cut_and_normalise_again(encoding_format: str) -> None:
    (vector,) = _vectors(1, 8)
    request = _body(dimensions=3, encoding_format=encoding_format)
    check_dimensions(request, 8)
    (item,) = embedding_list(request, [vector], NORMALISING, USAGE)["data"]
    found = item["embedding"]
    if isinstance(found, str):
        found = np.frombuffer(base64.b64decode(found), "<f4")
    np.testing.assert_allclose(found, vector[:3] / np.linalg.norm(vector[:3]), atol=1e-6)


def test_a_model_that_does_not_normalise() -> None:
    (vector,) = _vectors(1, 8)
    (item,) = embedding_list(_body(dimensions=5), [vector], PLAIN, USAGE)["data"]
    assert item["embedding"] == [float(str(x)) for x in vector[:5]]
    np.testing.assert_array_equal(np.array(item["embedding"], np.float32), vector[:5])


def test_more_dimensions_than_there_are() -> None:
    check_dimensions(_body(dimensions=8), 8)
    with pytest.raises(RequestError, match="have 8 dimensions, got 9") as error:
        check_dimensions(_body(dimensions=9), 8)
    assert error.value.param == "dimensions"


def test_normalising_extremes() -> None:
    assert normalised(np.zeros(3, np.float32)).tolist() == [0, 0, 0]
    huge = normalised(np.full(4, 1e30, np.float32))
    np.testing.assert_allclose(huge, 0.5, rtol=1e-6)
