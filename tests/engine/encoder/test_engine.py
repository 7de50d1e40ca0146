"""An encoder's engine, from lines of a batch to outcomes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from trunkline.engine.answering import AnswerEngine, LineAdmission, Summariser
from trunkline.engine.answers.embedding import embedding_answer
from trunkline.engine.answers.scoring import score_answer
from trunkline.engine.encoder import assemble
from trunkline.engine.encoder.assemble import EncoderAssembly, assemble_encoder
from trunkline.engine.encoder.engine import EncoderEngine
from trunkline.engine.model.load_format import LoadFormat
from trunkline.engine.request import Line, Refusal, Request
from trunkline.engine.requests.embedding import EmbeddingRequest
from trunkline.engine.requests.errors import RequestError
from trunkline.engine.requests.scoring import RerankRequest, ScoreRequest
from trunkline.engine.sequence import FinishReason
from trunkline.engine.simulation.hardware import HARDWARE
from trunkline.store.endpoints import CHAT_COMPLETIONS, EMBEDDINGS, RERANK, SCORE

MakeEncoder = Callable[..., Path]


@pytest.fixture(autouse=True)
def _known_hardware(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measuring this machine would take longer than the tests."""
    monkeypatch.setattr(assemble, "measure_device", lambda *_, **__: next(iter(HARDWARE.values())))


def _assembly(folder: Path, **options: Any) -> EncoderAssembly:
    return assemble_encoder(
        folder,
        torch.float32,
        torch.device("cpu"),
        LoadFormat.AUTO,
        **{"max_model_tokens": None, "max_batch_tokens": 64, **options},
    )


def _line(number: int, endpoint: str, **body: Any) -> Line:
    return Line(f"batch_{number}", number, f"id-{number}", endpoint, {"model": "m", **body})


def _admit(assembly: EncoderAssembly, *lines: Line) -> list[Request]:
    requests = []
    for admitted in assembly.admission.admit(lines):
        assert isinstance(admitted, Request), admitted
        requests.append(admitted)
    return requests


def _refused(assembly: EncoderAssembly, line: Line) -> Refusal:
    (admitted,) = assembly.admission.admit([line])
    assert isinstance(admitted, Refusal)
    return admitted


def _run(engine: EncoderEngine, requests: Iterable[Request]) -> list[Request]:
    engine.add(requests)
    finished = []
    while engine.has_work:
        finished += engine.step()
    return finished


def _vector(request: Request, index: int = 0) -> Any:
    record = request.sequences[index].record
    assert record is not None
    return record.embedding


def test_it_has_the_face_of_an_engine(make_encoder: MakeEncoder) -> None:
    assembly = _assembly(make_encoder())
    engine: AnswerEngine = assembly.engine
    admission: LineAdmission = assembly.admission
    summariser: Summariser = assembly.summariser
    assert not engine.has_work
    assert engine.step() == []
    assert list(admission.admit([])) == []
    summariser.learn(1.0, 2.0)
    assert engine.counts().num_steps == 0


def test_embeddings(make_encoder: MakeEncoder) -> None:
    assembly = _assembly(make_encoder(pooling={}))
    lines = [
        _line(1, EMBEDDINGS, input="w1 w2 w3"),
        _line(2, EMBEDDINGS, input=["w4", "w1 w2 w3", "w5 w6"]),
        _line(3, EMBEDDINGS, input=[1, 5, 6, 7, 2]),  # the tokens of the first text
        _line(4, EMBEDDINGS, input=[[9, 10], [11]], encoding_format="base64"),
    ]
    requests = _admit(assembly, *lines)
    assert [request.num_prompt_tokens for request in requests] == [5, 12, 5, 3]
    finished = _run(assembly.engine, requests)
    assert {id(request) for request in finished} == {id(request) for request in requests}
    assert all(s.finish_reason is FinishReason.STOP for r in requests for s in r.sequences)
    first, second, third, fourth = requests
    assert isinstance(second.body, EmbeddingRequest)
    body, usage = embedding_answer(second, second.body)
    assert len(body["data"]) == 3
    assert np.linalg.norm(body["data"][0]["embedding"]) == pytest.approx(1, abs=1e-5)
    assert body["usage"] == {"prompt_tokens": 12, "total_tokens": 12}
    assert usage.num_cached_tokens == 5
    np.testing.assert_array_equal(_vector(first), _vector(second, 1))
    np.testing.assert_array_equal(_vector(first), _vector(third))
    assert not np.allclose(_vector(fourth, 0), _vector(fourth, 1))


def test_identical_inputs_are_computed_once(make_encoder: MakeEncoder) -> None:
    assembly = _assembly(make_encoder())
    lines = [_line(i, EMBEDDINGS, input=["w1 w2", f"w{i}"]) for i in range(1, 11)]
    requests = _admit(assembly, *lines)
    _run(assembly.engine, requests)
    counts = assembly.engine.counts()
    assert counts.num_computed_prompt_tokens == 4 + 10 * 3
    assert sum(s.num_cached_tokens or 0 for r in requests for s in r.sequences) == 9 * 4
    assert (counts.num_running, counts.num_waiting, counts.num_output_tokens) == (0, 0, 0)
    plan = assembly.summariser.summarise(
        [s for r in requests for s in r.sequences], assembly.engine.output_lengths.expected
    )
    assert plan["prompt_tokens"] == 10 * 7
    assert plan["unique_prompt_tokens"] == 34
    assert plan["predicted_seconds"] > plan["floor_seconds"] > 0


def test_scores_by_cosine(make_encoder: MakeEncoder) -> None:
    assembly = _assembly(make_encoder(pooling={}, steps=("Transformer", "Pooling")))
    requests = _admit(
        assembly,
        _line(1, SCORE, text_1="w1 w2", text_2=["w1 w2", "w3"]),
        _line(2, RERANK, query="w1 w2", documents=["w3", "w1 w2", "w4 w5"], top_n=2),
    )
    _run(assembly.engine, requests)
    scores, ranking = requests
    assert isinstance(scores.body, ScoreRequest)
    body, usage = score_answer(scores, scores.body, 5)
    assert [item["score"] for item in body["data"]] == pytest.approx(
        [1, _cosine(_vector(scores, 0), _vector(scores, 2))], abs=1e-5
    )
    assert (body["created"], usage.num_prompt_tokens) == (5, 4 + 4 + 3)
    assert isinstance(ranking.body, RerankRequest)
    body, _ = score_answer(ranking, ranking.body, 5)
    assert body["results"][0]["index"] == 1
    assert body["results"][0]["relevance_score"] == pytest.approx(1, abs=1e-5)
    assert len(body["results"]) == 2


def _cosine(a: Any, b: Any) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def test_scores_of_a_cross_encoder(make_encoder: MakeEncoder) -> None:
    assembly = _assembly(make_encoder(num_labels=1))
    assert assembly.engine.encoder.is_cross_encoder
    requests = _admit(
        assembly,
        _line(1, SCORE, text_1=["w1 w2", "w7"], text_2=["w3", "w4"]),
        _line(2, RERANK, query="w1 w2", documents=["w4", "w3"]),
    )
    _run(assembly.engine, requests)
    scores, ranking = requests
    assert isinstance(scores.body, ScoreRequest)
    body, usage = score_answer(scores, scores.body, 5)
    first, second = (item["score"] for item in body["data"])
    assert 0 < first < 1
    assert first != second
    assert usage.num_prompt_tokens == 6 + 5
    assert isinstance(ranking.body, RerankRequest)
    body, _ = score_answer(ranking, ranking.body, 5)
    assert {r["index"]: r["relevance_score"] for r in body["results"]}[1] == pytest.approx(first)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_a_number(make_encoder: MakeEncoder, value: float) -> None:
    assembly = _assembly(make_encoder())
    request, scored = _admit(
        assembly,
        _line(1, EMBEDDINGS, input=["w1", "w2"]),
        _line(2, SCORE, text_1="w3", text_2="w4"),
    )
    _run(assembly.engine, [request, scored])
    for broken in (request.sequences[1], scored.sequences[0]):
        assert broken.record is not None
        broken.record.add_pooled(np.full(32, value, np.float32), 1)
    assert isinstance(request.body, EmbeddingRequest)
    with pytest.raises(RequestError, match="computed for text 1 of the request is not a number"):
        embedding_answer(request, request.body)
    assert isinstance(scored.body, ScoreRequest)
    with pytest.raises(RequestError, match="computed for text 0 of the request is not a number"):
        score_answer(scored, scored.body, 5)


def test_dropping(make_encoder: MakeEncoder) -> None:
    assembly = _assembly(make_encoder(), max_batch_tokens=1)  # an input a step
    engine = assembly.engine
    kept, dropped, half_done = _admit(
        assembly,
        _line(1, EMBEDDINGS, input="w1"),
        _line(2, EMBEDDINGS, input=["w1", "w2"]),
        _line(3, EMBEDDINGS, input=["w1 w2 w3", "w4"]),
    )
    engine.add([kept, dropped, half_done])
    assert engine.step() == []  # the longest first
    assert half_done.num_unfinished == 1
    engine.drop(lambda request: request in (dropped, half_done))
    finished = []
    while engine.has_work:
        finished += engine.step()
    assert finished == [kept]
    assert engine.counts().num_steps == 2


def test_those_who_wait_go_first(make_encoder: MakeEncoder) -> None:
    assembly = _assembly(make_encoder(), max_batch_tokens=1)
    (batch_request,) = _admit(assembly, _line(1, EMBEDDINGS, input=["w1 w2 w3", "w4 w5"]))
    live = Line("live_1", 1, "id", EMBEDDINGS, {"model": "m", "input": "w6"}, priority=1_000_000)
    unwanted = replace(live, batch_id="live_2", body={"model": "m", "input": "w7"})
    assembly.engine.add([batch_request])
    waiting, withdrawn = _admit(assembly, live, unwanted)
    assembly.engine.add_ahead([waiting, withdrawn])
    assembly.engine.withdraw(lambda request: request.line.batch_id == "live_2")
    assert [assembly.engine.step() for _ in range(3)] == [[waiting], [], [batch_request]]


def test_dropping_what_is_in_flight(make_encoder: MakeEncoder) -> None:
    assembly = _assembly(make_encoder())
    engine = EncoderEngine(
        assembly.engine.encoder, assembly.engine.tokenizer, max_batch_tokens=1, lookahead=1
    )
    first, second = _admit(
        assembly, _line(1, EMBEDDINGS, input="w1"), _line(2, EMBEDDINGS, input="w2 w3")
    )
    engine.add([first, second])
    assert engine.step() == []
    assert (engine.counts().num_running, engine.counts().num_waiting) == (1, 1)
    engine.drop(lambda request: request is second)
    finished = []
    while engine.has_work:
        finished += engine.step()
    assert finished == [first]
    assert (engine.counts().num_running, engine.counts().num_waiting) == (0, 0)


def test_a_device_is_given_work_ahead(make_encoder: MakeEncoder) -> None:
    assembly = _assembly(make_encoder())
    engine = EncoderEngine(
        assembly.engine.encoder, assembly.engine.tokenizer, max_batch_tokens=1, lookahead=1
    )
    lines = [_line(i, EMBEDDINGS, input=f"w{i}") for i in range(1, 4)]
    engine.add(_admit(assembly, *lines))
    assert [len(engine.step()) for _ in range(4)] == [0, 1, 1, 1]
    assert not engine.has_work


def test_an_endpoint_that_is_not_for_this_model(make_encoder: MakeEncoder) -> None:
    line = _line(1, CHAT_COMPLETIONS, messages=[{"role": "user", "content": "Hi"}])
    refusal = _refused(_assembly(make_encoder()), line)
    assert refusal.error.message == (
        "The model 'm' is an encoder: it answers '/v1/embeddings', '/v1/score' and '/v1/rerank', "
        "not '/v1/chat/completions'."
    )
    assert refusal.error.param == "model"
    cross_encoder = _assembly(make_encoder(num_labels=1))
    refusal = _refused(cross_encoder, _line(1, EMBEDDINGS, input="w1"))
    assert "a cross-encoder: it answers '/v1/score' and '/v1/rerank', not" in refusal.error.message


def test_what_is_wrong_with_a_line_is_its_own(make_encoder: MakeEncoder) -> None:
    assembly = _assembly(make_encoder())
    long = " ".join(["w1"] * 63)
    lines = [
        _line(1, EMBEDDINGS, input="w1"),
        _line(2, EMBEDDINGS, input=["w1", long]),
        _line(3, EMBEDDINGS, input=[1, 204]),
        _line(4, EMBEDDINGS, input=[10**30]),
        _line(5, EMBEDDINGS, input="w1", dimensions=33),
        _line(6, EMBEDDINGS, input=""),
        _line(7, RERANK, query="w1", documents=["w2", long]),
        _line(8, SCORE, text_1="w1", text_2="w2"),
    ]
    found = list(assembly.admission.admit(lines))
    assert [item.line for item in found] == lines
    errors = {i.line.line: i.error for i in found if isinstance(i, Refusal)}
    assert sorted(errors) == [2, 3, 4, 5, 6, 7]
    assert errors[2].code == "context_length_exceeded"
    assert errors[2].message == (
        "This model's maximum context length is 64 tokens. However, a text of your request has 65 "
        "tokens. Please reduce its length."
    )
    assert "Token id 204 is outside" in errors[3].message
    assert errors[4].param == "input"
    assert errors[5].param == "dimensions"
    assert errors[7].param == "documents"


def test_a_shorter_limit(make_encoder: MakeEncoder) -> None:
    assembly = _assembly(make_encoder(), max_model_tokens=5)
    assert assembly.max_model_tokens == 5
    assert _assembly(make_encoder(), max_model_tokens=500).max_model_tokens == 64
    _admit(assembly, _line(1, EMBEDDINGS, input="w1 w2 w3"))
    refusal = _refused(assembly, _line(1, EMBEDDINGS, input="w1 w2 w3 w4"))
    assert "maximum context length is 5 tokens" in refusal.error.message


def test_no_tokenizer(make_encoder: MakeEncoder) -> None:
    folder = make_encoder()
    for path in folder.glob("*token*"):
        path.unlink()
    with pytest.raises(FileNotFoundError, match="has no tokenizer that transformers can load"):
        _assembly(folder)
