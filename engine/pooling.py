"""How the vectors of a text's tokens become the one of the text, as its model folder says.

The files are sentence-transformers': `modules.json` names the steps that follow one another, and
the folder of the pooling step has a `config.json`. A model folder without them is pooled as models
of its kind are.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trunkline.engine.model.config import UnsupportedModelError
from trunkline.engine.prompt_reading import Pooling


@dataclass(frozen=True)
class PoolingConfig:
    """What is done to a text before and after the model."""

    mode: Pooling
    normalizes: bool  # vectors are made one long
    max_input_tokens: int | None = None  # None: as many as the model takes
    lowercases: bool = False


# The suffixes of `pooling_mode_*` in the older form of the file, the values of `pooling_mode` in
# the newer one.
_MODES = {
    "mean_tokens": Pooling.MEAN,
    "mean": Pooling.MEAN,
    "cls_token": Pooling.FIRST,
    "cls": Pooling.FIRST,
    "lasttoken": Pooling.LAST,
}


def read_pooling(folder: Path, default: Pooling) -> PoolingConfig:
    """Read how the model in `folder` pools.

    Args:
        default: for a folder that does not say; its vectors are normalised.

    Raises:
        UnsupportedModelError: the files ask for a step or a mode that there is not, or are broken.
    """
    max_input_tokens, lowercases = input_limits(folder)
    modules = folder / "modules.json"
    if not modules.is_file():
        return PoolingConfig(default, True, max_input_tokens, lowercases)
    mode = default
    normalizes = False
    for module in _read_json(modules, list):
        if not isinstance(module, dict) or not isinstance(module.get("type"), str):
            raise UnsupportedModelError(f"{modules} has a step without a type")
        step = module["type"].rpartition(".")[2]
        if step == "Pooling":
            mode = _mode(folder / str(module.get("path", "")) / "config.json")
        elif step == "Normalize":
            normalizes = True
        elif step != "Transformer":
            raise UnsupportedModelError(
                f"{modules} has a step {step!r}; supported are Transformer, Pooling and Normalize"
            )
    return PoolingConfig(mode, normalizes, max_input_tokens, lowercases)


def _mode(path: Path) -> Pooling:
    config = _read_json(path, dict)
    if "pooling_mode" in config:
        named = config["pooling_mode"]
        names = [named] if isinstance(named, str) else list(map(str, named or []))
    else:
        # The mean is what sentence-transformers takes where the file says nothing of it.
        flags = {"pooling_mode_mean_tokens": True, **config}
        names = [
            name.removeprefix("pooling_mode_")
            for name, value in flags.items()
            if name.startswith("pooling_mode_") and value is True
        ]
    if len(names) != 1 or names[0] not in _MODES:
        raise UnsupportedModelError(
            f"{path} pools by {' and '.join(names) or 'nothing'}; supported is one of "
            "mean_tokens, cls_token and lasttoken"
        )
    return _MODES[names[0]]


def input_limits(folder: Path) -> tuple[int | None, bool]:
    """The longest text in tokens, None if nothing is said, and whether texts are lower-cased.

    Raises:
        UnsupportedModelError: the file is broken.
    """
    # Older files are called after the kind of model: sentence_roberta_config.json.
    for path in sorted(folder.glob("sentence_*_config.json")):
        config = _read_json(path, dict)
        return config.get("max_seq_length"), bool(config.get("do_lower_case"))
    return None, False


def _read_json(path: Path, kind: type[dict[str, Any]] | type[list[Any]]) -> Any:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UnsupportedModelError(f"{path} cannot be read: {error}") from error
    if not isinstance(found, kind):
        name = "array" if kind is list else "object"
        raise UnsupportedModelError(f"{path} does not hold a JSON {name}")
    return found
