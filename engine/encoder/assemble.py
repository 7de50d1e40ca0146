"""Puts the engine of an encoder together: model, tokenizer, admission."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from trunkline.engine.calibration import measure_device
from trunkline.engine.encoder.admission import EncoderAdmission
from trunkline.engine.encoder.engine import EncoderEngine
from trunkline.engine.encoder.model import load_encoder
from trunkline.engine.encoder.plan import EncoderPlanSummariser
from trunkline.engine.encoder.tokenizer import EncoderTokenizer
from trunkline.engine.model.load_format import LoadFormat


@dataclass(frozen=True)
class EncoderAssembly:
    """A ready engine and what belongs to it."""

    engine: EncoderEngine
    admission: EncoderAdmission
    summariser: EncoderPlanSummariser
    max_model_tokens: int


def assemble_encoder(
    folder: Path,
    dtype: torch.dtype,
    device: torch.device,
    load_format: LoadFormat,
    max_model_tokens: int | None,
    max_batch_tokens: int | None,
) -> EncoderAssembly:
    """Load the encoder in `folder` and build its engine.

    Args:
        max_model_tokens: the longest input; what the model takes unless it is less.
        max_batch_tokens: padding included; what keeps the device's arithmetic busy unless given.

    Raises:
        UnsupportedModelError, WeightsError: see `load_encoder`.
        FileNotFoundError: the folder has no weights, or no tokenizer.
    """
    encoder = load_encoder(folder, dtype, device, load_format)
    try:
        tokenizer = EncoderTokenizer(folder, lowercases=encoder.pooling.lowercases)
    except (OSError, ValueError) as error:
        raise FileNotFoundError(f"{folder} has no tokenizer that transformers can load") from error
    max_tokens = min(max_model_tokens or encoder.max_input_tokens, encoder.max_input_tokens)
    hardware = measure_device(device, dtype, memory_bytes=0.0)
    engine = EncoderEngine(
        encoder,
        tokenizer,
        max_batch_tokens or hardware.step_tokens,
        lookahead=1 if device.type == "cuda" else 0,
    )
    return EncoderAssembly(
        engine=engine,
        admission=EncoderAdmission(tokenizer, encoder, max_tokens),
        summariser=EncoderPlanSummariser(encoder, hardware),
        max_model_tokens=max_tokens,
    )
