"""Which model folders hold an encoder."""

from __future__ import annotations

import json
from pathlib import Path

# Those whose attention leaves padding out, so that a text's vector does not depend on its batch.
ENCODER_MODEL_TYPES = (
    *("albert", "bert", "camembert", "deberta", "deberta-v2", "distilbert", "electra", "ernie"),
    *("eurobert", "gte", "modernbert", "mpnet", "nomic_bert", "roberta"),
    *("xlm-roberta", "xlm-roberta-xl"),
)


def is_encoder(folder: Path) -> bool:
    """Whether the model in `folder` is of a kind that `engine/encoder` runs.

    A folder without a readable config.json holds none.
    """
    path = folder / "config.json"
    if not path.is_file():
        return False
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return False
    return isinstance(config, dict) and config.get("model_type") in ENCODER_MODEL_TYPES
