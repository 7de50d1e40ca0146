"""How many tokens a step has, and how many rows of it are recorded, unless a setting says so."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from typer.testing import CliRunner

from tests.engine.tiny import CPU, tiny_decoder, unwritten_cache
from trunkline.engine import assemble, calibration
from trunkline.engine.calibration import measure_device
from trunkline.engine.cli import app
from trunkline.engine.config import EngineConfig
from trunkline.engine.graphs import MOST_ROWS
from trunkline.engine.simulation.hardware import HARDWARE, Hardware
from trunkline.options import ConfigError, resolve

GPU = Hardware("cuda", 250e12, 1.8e12, 0.0, 0.0, is_measured=True, gpu_bytes=24e9)


@pytest.mark.parametrize("name", ["h200", "h100", "a100", "mi300x"])
def test_large_gpus_get_large_steps(name: str) -> None:
    assert HARDWARE[name].step_tokens == 8192
    # As its driver says it, and what the model takes does not count.
    measured = dataclasses.replace(
        HARDWARE[name], memory_bytes=0.0, gpu_bytes=0.93 * HARDWARE[name].gpu_bytes
    )
    assert measured.step_tokens == 8192


def test_other_devices_get_what_their_rates_ask_for() -> None:
    assert GPU.step_tokens == 2048
    assert dataclasses.replace(GPU, gpu_bytes=69e9).step_tokens == 2048
    assert dataclasses.replace(GPU, flops=790e12, bandwidth=3e12).step_tokens == 4096
    assert HARDWARE["cpu"].step_tokens == 512
    # A CPU's own memory does not count.
    assert dataclasses.replace(HARDWARE["cpu"], memory_bytes=500e9).step_tokens == 512
    # Rates that ask for more than the least get it.
    assert dataclasses.replace(GPU, bandwidth=1e11, gpu_bytes=80e9).step_tokens == 16_384


def test_a_cpu_has_no_memory_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(calibration.GEMM_SIZE, "cpu", 64)
    monkeypatch.setitem(calibration.COPY_BYTES, "cpu", 2**16)
    assert measure_device(CPU, torch.float32, memory_bytes=100e9).gpu_bytes == 0


def test_rows_of_graphs_are_a_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRUNKLINE_CUDA_GRAPH_ROWS", raising=False)
    assert EngineConfig().cuda_graph_rows == MOST_ROWS == 4096
    assert resolve(EngineConfig, cuda_graph_rows=512).cuda_graph_rows == 512
    monkeypatch.setenv("TRUNKLINE_CUDA_GRAPH_ROWS", "1024")
    assert EngineConfig().cuda_graph_rows == 1024
    monkeypatch.setenv("TRUNKLINE_CUDA_GRAPH_ROWS", "many")
    with pytest.raises(ConfigError, match=r"TRUNKLINE_CUDA_GRAPH_ROWS is 'many': .* integer"):
        resolve(EngineConfig)
    with pytest.raises(ConfigError, match=r"--cuda-graph-rows is 0: .* than or equal to 1"):
        resolve(EngineConfig, cuda_graph_rows=0)


def test_rows_of_graphs_are_an_option() -> None:
    found = CliRunner().invoke(app, ["run", "--cuda-graph-rows", "0", "-i", "in", "-o", "out"])
    assert found.exit_code == 2
    assert "--cuda-graph-rows is 0" in found.output


@pytest.mark.parametrize(("settings", "recorded"), [({}, 4096), ({"cuda_graph_rows": 96}, 96)])
@pytest.mark.parametrize("cuda_graphs", [True, False])
def test_the_runner_gets_the_settings(
    settings: dict[str, int],
    recorded: int,
    cuda_graphs: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given: dict[str, object] = {}
    monkeypatch.setattr(assemble, "triton_for", lambda _: True)
    monkeypatch.setattr(assemble, "GpuRunner", lambda *_, **options: given.update(options))
    monkeypatch.setattr(assemble, "warm_up", lambda _: None)
    config = EngineConfig.model_validate({"cuda_graphs": cuda_graphs, **settings})
    decoder = tiny_decoder(64)
    cache = unwritten_cache(decoder.config, 4, 16)
    assemble.make_runner(decoder, cache, 8192, config)
    assert given["max_batch_tokens"] == 8192
    assert given["cuda_graphs"] is cuda_graphs
    assert given["cuda_graph_rows"] == recorded
