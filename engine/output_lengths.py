"""How many tokens a request will generate, learned from those that are like it.

`max_tokens` is a bound that most answers stay far below. Requests that begin with the same tokens
follow one template, and their answers are of like length: a high quantile of what the template's
finished requests generated predicts the next ones. A prediction that was too short costs a
preemption, no more.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass, field

import numpy as np

from trunkline.engine.sequence import Sequence

# Prompts that agree in so many tokens follow one template.
TEMPLATE_TOKENS = 64
# Templates that are remembered.
MAX_TEMPLATES = 4096
# The newest lengths of a template that are remembered.
MAX_SAMPLES = 512
# With fewer samples than this a quantile says nothing.
MIN_SAMPLES = 16
QUANTILE = 0.95
# The quantile is computed anew after so many samples.
REFRESH_SAMPLES = 16


@dataclass
class _Template:
    lengths: deque[int] = field(default_factory=lambda: deque(maxlen=MAX_SAMPLES))
    num_seen: int = 0
    quantile: int | None = None  # tokens

    def observe(self, num_tokens: int) -> None:
        self.lengths.append(num_tokens)
        self.num_seen += 1
        if self.num_seen >= MIN_SAMPLES and self.num_seen % REFRESH_SAMPLES == 0:
            self.quantile = int(np.ceil(np.quantile(np.array(self.lengths), QUANTILE)))


class OutputLengths:
    """Predicts output lengths by template."""

    def __init__(self) -> None:
        self._templates: OrderedDict[bytes, _Template] = OrderedDict()  # used last at the end

    def expected(self, sequence: Sequence) -> int:
        """Tokens that `sequence` is expected to generate, at most its `max_tokens`."""
        sampling = sequence.sampling
        if not sampling.stop_token_ids and not sampling.stop_strings:
            return sampling.max_tokens  # nothing else can end it
        template = self._templates.get(_key(sequence))
        if template is None or template.quantile is None:
            return sampling.max_tokens
        return min(template.quantile, sampling.max_tokens)

    def observe(self, sequence: Sequence, num_tokens: int) -> None:
        """Learn that a sequence with the prompt of `sequence` generated `num_tokens`."""
        key = _key(sequence)
        template = self._templates.pop(key, None) or _Template()
        template.observe(num_tokens)
        self._templates[key] = template
        if len(self._templates) > MAX_TEMPLATES:
            self._templates.popitem(last=False)


def _key(sequence: Sequence) -> bytes:
    return sequence.prompt[:TEMPLATE_TOKENS].tobytes()
