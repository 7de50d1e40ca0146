"""Paper hardware and model shapes: what a step costs is computed from these numbers."""

from __future__ import annotations

from dataclasses import dataclass

BUDGET_PER_BALANCE = 8
# Below, what a step costs besides its products begins to count.
MIN_STEP_TOKENS = 512
MAX_STEP_TOKENS = 16_384
# A GPU with so much memory has room for the logits and activations of larger steps, in which its
# products come closer to their rate than in what suffices for their being bound by arithmetic.
LARGE_GPU_BYTES = 70e9
LARGE_GPU_STEP_TOKENS = 8192


@dataclass(frozen=True)
class Hardware:
    """What a device achieves, not what its data sheet promises."""

    name: str
    flops: float  # per second, large products in bfloat16
    bandwidth: float  # bytes per second, large copies
    memory_bytes: float
    step_seconds: float  # what a step costs besides arithmetic and memory traffic
    is_measured: bool  # False: the data sheet's numbers times what a measured device achieves
    gpu_bytes: float = 0.0  # all of a GPU's own memory, whatever is in it; 0: it is no GPU

    @property
    def balance_tokens(self) -> int:
        """Rows from which a product with bfloat16 weights is bound by arithmetic."""
        return round(self.flops / self.bandwidth)

    @property
    def step_tokens(self) -> int:
        """A good token budget of a step: well into what is bound by arithmetic.

        More would hardly make a product faster per row, and would make decoding wait for longer. A
        power of two, so that rates that are measured a little differently give the same steps. At
        least `LARGE_GPU_STEP_TOKENS` on a GPU with `LARGE_GPU_BYTES` or more.
        """
        tokens = BUDGET_PER_BALANCE * max(self.balance_tokens, 1)
        least = LARGE_GPU_STEP_TOKENS if self.gpu_bytes >= LARGE_GPU_BYTES else MIN_STEP_TOKENS
        return min(max(1 << (tokens - 1).bit_length(), least), MAX_STEP_TOKENS)


@dataclass(frozen=True)
class ModelShape:
    """The sizes of a decoder. Weights and KV take 2 bytes per number."""

    name: str
    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int

    @property
    def linear_parameters(self) -> int:
        """Weights that every token is multiplied with, without the output layer."""
        attention = self.hidden_size * self.head_dim * 2 * (self.num_heads + self.num_kv_heads)
        mlp = 3 * self.hidden_size * self.intermediate_size
        return self.num_layers * (attention + mlp)

    @property
    def head_parameters(self) -> int:
        return self.hidden_size * self.vocab_size

    @property
    def kv_bytes_per_token(self) -> int:
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * 2

    @property
    def attention_flops_per_pair(self) -> int:
        """For one query token and one key token, over all layers and heads."""
        return 4 * self.num_heads * self.head_dim * self.num_layers

    @property
    def weight_bytes(self) -> int:
        return 2 * (self.linear_parameters + 2 * self.head_parameters)


# The H200's rates are measured. The other GPUs are their data sheets' dense bfloat16 rate and
# bandwidth times the shares that the H200 achieves of its own (0.80 and 0.90).
HARDWARE = {
    hardware.name: hardware
    for hardware in (
        Hardware("h200", 790e12, 4.3e12, 141e9, 300e-6, is_measured=True, gpu_bytes=141e9),
        Hardware("h100", 790e12, 3.0e12, 80e9, 300e-6, is_measured=False, gpu_bytes=80e9),
        Hardware("a100", 250e12, 1.8e12, 80e9, 300e-6, is_measured=False, gpu_bytes=80e9),
        Hardware("mi300x", 1040e12, 4.8e12, 192e9, 300e-6, is_measured=False, gpu_bytes=192e9),
        Hardware("cpu", 0.43e12, 20e9, 16e9, 5e-3, is_measured=False),
    )
}

MODEL_SHAPES = {
    shape.name: shape
    for shape in (
        ModelShape("llama-3.1-8b", 32, 4096, 14336, 32, 8, 128, 128_256),
        ModelShape("llama-3.1-70b", 80, 8192, 28672, 64, 8, 128, 128_256),
        ModelShape("qwen2.5-7b", 28, 3584, 18944, 28, 4, 128, 152_064),
        ModelShape("smollm2-135m", 30, 576, 1536, 9, 3, 64, 49_152),
    )
}
