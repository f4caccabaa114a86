"""A decoder-only Transformer over tokens: pre-norm, rotary positions, tied embeddings, a cache of keys and values.

A token attends to itself and the `context` - 1 tokens before it, in every layer. So the cache of an endless history is
bounded, and stepping through it gives what a pass over the whole gives.

Sources: Vaswani et al. 2017; rotary positions: Su et al. 2021; SwiGLU: Shazeer 2020; RMSNorm: Zhang & Sennrich 2019.

Shapes: B rows, T tokens, P cached tokens, L layers, D d_model, H heads, E = D / H.
"""

from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from mode_ssm.config import Activation, LanguageModelConfig
from mode_ssm.models.activations import ParametricSine

ROPE_BASE = 10000.0
INIT_STD = 0.02


class Rotation:
    """Cosines and sines that turn queries and keys by their positions (..., T). Angles in float64: they stay exact far
    into a stream."""

    def __init__(self, positions: Tensor, width: int, dtype: torch.dtype) -> None:
        exponents = torch.arange(0, width, 2, device=positions.device, dtype=torch.float64) / width
        angles = positions.unsqueeze(-1) * ROPE_BASE**-exponents
        self.cos, self.sin = (x.to(dtype).unsqueeze(-2) for x in (angles.cos(), angles.sin()))  # (..., T, 1, E / 2)

    def __call__(self, x: Tensor) -> Tensor:
        """x (..., T, H, E), feature i paired with feature i + E / 2."""
        first, second = x.chunk(2, dim=-1)
        return torch.cat([first * self.cos - second * self.sin, first * self.sin + second * self.cos], dim=-1)


class CausalSelfAttention(nn.Module):
    def __init__(self, d_model: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.qkv = nn.Linear(d_model, 3 * d_model, bias=False)
        self.out = nn.Linear(d_model, d_model, bias=False)

    def forward(self, x: Tensor, rotation: Rotation, mask: Tensor | None) -> Tensor:
        """x (B, T, D); mask (T, T), true where attended, None for plain causality."""
        q, k, v = self._heads(x, rotation)
        return self._attend(q, k, v, mask)

    def step(self, x: Tensor, rotation: Rotation, past: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, T, D) after past (B, P, 2, D), mask (B, T, P + T) -> (y (B, T, D), keys and values (B, T, 2, D))."""
        q, k, v = self._heads(x, rotation)
        new = torch.stack([k, v], dim=2)  # (B, T, 2, H, E)
        k, v = torch.cat([past.unflatten(-1, new.shape[-2:]), new], dim=1).unbind(2)
        return self._attend(q, k, v, mask.unsqueeze(1)), new.flatten(-2)

    def _heads(self, x: Tensor, rotation: Rotation) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = (part.unflatten(-1, (self.n_heads, -1)) for part in self.qkv(x).chunk(3, dim=-1))
        return rotation(q), rotation(k), v  # (B, T, H, E) each

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))
        # Sentences are short: there torch's fused CPU kernel takes several times as long as plain matrix products.
        with sdpa_kernel(SDPBackend.MATH) if q.device.type == "cpu" else nullcontext():
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
        return self.out(y.transpose(1, 2).flatten(-2))


class MLP(nn.Module):
    """down(activation(up(x))). SwiGLU gates with a second projection and is narrower, for the same parameters."""

    def __init__(self, d_model: int, d_hidden: int, activation: Activation) -> None:
        super().__init__()
        self.gated = activation is Activation.swiglu
        if self.gated:
            d_hidden = round(2 * d_hidden / 3)
        self.up = nn.Linear(d_model, 2 * d_hidden if self.gated else d_hidden, bias=False)
        self.sine = ParametricSine(d_hidden) if activation is Activation.sine else None
        self.down = nn.Linear(d_hidden, d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        z = self.up(x)
        if self.gated:
            gate, value = z.chunk(2, dim=-1)
            return self.down(F.silu(gate) * value)
        return self.down(F.gelu(z) if self.sine is None else self.sine(z))


class TransformerBlock(nn.Module):
    """x + dropout(attention(norm(x))), then the same with the MLP."""

    def __init__(self, config: LanguageModelConfig) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(config.d_model)
        self.attention = CausalSelfAttention(config.d_model, config.n_heads)
        self.mlp_norm = nn.RMSNorm(config.d_model)
        self.mlp = MLP(config.d_model, config.d_hidden, config.activation)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, rotation: Rotation, mask: Tensor | None) -> Tensor:
        x = x + self.dropout(self.attention(self.attention_norm(x), rotation, mask))
        return x + self.dropout(self.mlp(self.mlp_norm(x)))

    def step(self, x: Tensor, rotation: Rotation, past: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        attended, new = self.attention.step(self.attention_norm(x), rotation, past, mask)
        x = x + attended
        return x + self.mlp(self.mlp_norm(x)), new


class TransformerLM(nn.Module):
    """Tokens to hidden vectors; `output_weights` turn those into probabilities of the next token."""

    def __init__(self, config: LanguageModelConfig, num_tokens: int) -> None:
        super().__init__()
        self.context = config.context
        self.head_width = config.d_model // config.n_heads
        self.embedding = nn.Embedding(num_tokens, config.d_model)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(TransformerBlock(config) for _ in range(config.n_layers))
        self.norm = nn.RMSNorm(config.d_model)
        self.num_frequent = min(config.frequent_tokens, num_tokens)
        self.any_rare = nn.Parameter(torch.zeros(1, config.d_model)) if self.num_frequent < num_tokens else None
        self._initialise()

    def _initialise(self) -> None:
        """Normal weights; those that write into the residual stream smaller, by the number of writers (GPT-2)."""
        nn.init.normal_(self.embedding.weight, std=INIT_STD)
        for name, parameter in self.blocks.named_parameters():
            if parameter.dim() == 2:
                writes = name.endswith(("attention.out.weight", "mlp.down.weight"))
                nn.init.normal_(parameter, std=INIT_STD / (2 * len(self.blocks)) ** 0.5 if writes else INIT_STD)

    @property
    def cache_shape(self) -> tuple[int, int, int]:
        """(L, 2, D) of the keys and values of one token."""
        return len(self.blocks), 2, self.embedding.embedding_dim

    def output_weights(self) -> tuple[Tensor, Tensor]:
        """(F + 1, D) and (R, D) for `two_level_cross_entropy`; tied to the embedding."""
        frequent, rare = self.embedding.weight.tensor_split([self.num_frequent])
        any_rare = frequent.new_zeros(1, frequent.shape[1]) if self.any_rare is None else self.any_rare
        return torch.cat([frequent, any_rare]), rare

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens (B, T) int64 -> hidden (B, T, D). What follows a token never matters, so padding stands at the end."""
        length = tokens.shape[1]
        positions = torch.arange(length, device=tokens.device)
        mask = None
        if length > self.context:
            distance = positions[:, None] - positions
            mask = (distance >= 0) & (distance < self.context)
        x = self.dropout(self.embedding(tokens))
        rotation = Rotation(positions, self.head_width, x.dtype)
        for block in self.blocks:
            x = block(x, rotation, mask)
        return self.norm(x)

    def step(
        self, tokens: Tensor, first_positions: Tensor, past: Tensor, past_lengths: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Continue histories of different lengths.

        tokens (B, T): new ones, padded at the end; first_positions (B,): the place of each row's first new token in its
        history; past (B, P, L, 2, D): keys and values of the tokens before it, the newest at the end, of which
        past_lengths (B,) count. Returns hidden (B, T, D), and keys and values of the new tokens (B, T, L, 2, D).
        """
        num_past, num_new = past.shape[1], tokens.shape[1]
        offsets = torch.arange(-num_past, num_new, device=tokens.device)
        distance = offsets[num_past:, None] - offsets  # (T, P + T): how far a key lies behind a query
        mask = ((distance >= 0) & (distance < self.context)) & (offsets >= -past_lengths[:, None, None])
        rotation = Rotation(first_positions[:, None] + offsets[num_past:], self.head_width, past.dtype)
        x: Tensor = self.embedding(tokens)
        new: list[Tensor] = []
        for layer, block in enumerate(self.blocks):
            assert isinstance(block, TransformerBlock)
            x, keys_and_values = block.step(x, rotation, past[:, :, layer], mask)
            new.append(keys_and_values)
        return self.norm(x), torch.stack(new, dim=2)
