"""The BitNet b1.58 graph of the demo model, with quantisation-aware ternary layers.

Shapes: B sequences, T positions, D = n_embd. Master weights are float32; every forward pass sees
ternary weights (one absmean scale per matrix) and int8 activations (one absmax scale per token),
the same numbers the exported file produces. Gradients pass straight through the rounding.
Integers up to 256 are exact in bfloat16, so the matrix products run in bfloat16.
"""

from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import nn

NORM_EPS = 1e-5
SCALE_FLOOR = 1e-5
INT8_MAX = 127.0
INIT_STD = 0.02


@dataclass
class Config:
    """Sizes of one model. Every input width of a ternary layer is a multiple of 128 (I2_S)."""

    vocab_size: int = 2048
    n_embd: int = 256
    n_layer: int = 6
    n_head: int = 4
    n_head_kv: int = 2
    n_ff: int = 768
    context_length: int = 1024
    rope_theta: float = 10000.0

    @property
    def head_dim(self):
        return self.n_embd // self.n_head

    def to_dict(self):
        return asdict(self)


def ternary(weight):
    """weight: [M, K] float32 -> (codes -1/0/+1 as float32, scale)."""
    scale = weight.abs().mean().clamp_min(SCALE_FLOOR)
    return (weight * (1.0 / scale)).round().clamp(-1, 1), scale


class TernaryMatmul(torch.autograd.Function):
    """y = x W^T for one or more stacked ternary matrices that share their input x: [N, K]."""

    @staticmethod
    def forward(ctx, x, *weights):
        to_int = INT8_MAX / x.abs().amax(-1, keepdim=True).clamp_min(SCALE_FLOOR)
        x_int = (x * to_int).round().to(torch.bfloat16)
        pairs = [ternary(w) for w in weights]
        codes = torch.cat([code for code, _ in pairs]).to(torch.bfloat16)
        row_scale = torch.cat([scale.expand(code.shape[0]) for code, scale in pairs])
        from_int = 1.0 / to_int
        ctx.save_for_backward(x_int, codes, row_scale, from_int)
        ctx.rows = [w.shape[0] for w in weights]
        return (x_int @ codes.t()).float() * row_scale * from_int

    @staticmethod
    def backward(ctx, grad):
        x_int, codes, row_scale, from_int = ctx.saved_tensors
        grad_x = ((grad * row_scale).to(torch.bfloat16) @ codes).float()
        grad_w = ((grad * from_int).to(torch.bfloat16).t() @ x_int).float()
        return grad_x, *grad_w.split(ctx.rows)


def ternary_linear(x, *weights):
    """x: [B, T, K] -> one [B, T, M_i] per weight [M_i, K]."""
    flat = TernaryMatmul.apply(x.reshape(-1, x.shape[-1]), *weights)
    parts = flat.split([w.shape[0] for w in weights], dim=-1)
    return [part.reshape(*x.shape[:-1], -1) for part in parts]


def rms_norm(x, weight):
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + NORM_EPS) * weight


def rope_table(config, length):
    """cos and sin, each [length, head_dim], for NeoX pairs (i, i + head_dim/2)."""
    half = torch.arange(config.head_dim // 2, dtype=torch.float32)
    frequency = config.rope_theta ** (-2.0 * half / config.head_dim)
    angle = torch.arange(length, dtype=torch.float32)[:, None] * frequency
    angle = torch.cat([angle, angle], dim=-1)
    return angle.cos(), angle.sin()


def rotate(x, cos, sin):
    """x: [B, H, T, head_dim]."""
    left, right = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-right, left], dim=-1) * sin


class Block(nn.Module):
    """One layer: attention, then the squared-ReLU feed-forward, both with sub-norms."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        width, kv_width = config.n_embd, config.n_head_kv * config.head_dim

        def matrix(rows, columns):
            return nn.Parameter(torch.randn(rows, columns) * INIT_STD)

        self.attn_norm = nn.Parameter(torch.ones(width))
        self.attn_q = matrix(width, width)
        self.attn_k = matrix(kv_width, width)
        self.attn_v = matrix(kv_width, width)
        self.attn_sub_norm = nn.Parameter(torch.ones(width))
        self.attn_output = matrix(width, width)
        self.ffn_norm = nn.Parameter(torch.ones(width))
        self.ffn_gate = matrix(config.n_ff, width)
        self.ffn_up = matrix(config.n_ff, width)
        self.ffn_sub_norm = nn.Parameter(torch.ones(config.n_ff))
        self.ffn_down = matrix(width, config.n_ff)

    def attention(self, x, cos, sin):
        batch, length, width = x.shape
        head_dim, group = self.config.head_dim, self.config.n_head // self.config.n_head_kv
        q, k, v = ternary_linear(rms_norm(x, self.attn_norm), self.attn_q, self.attn_k, self.attn_v)
        q, k, v = (y.reshape(batch, length, -1, head_dim).transpose(1, 2) for y in (q, k, v))
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
        q, k, v = (y.to(torch.bfloat16) for y in (q, k, v))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True).float()
        mixed = mixed.transpose(1, 2).reshape(batch, length, width)
        return ternary_linear(rms_norm(mixed, self.attn_sub_norm), self.attn_output)[0]

    def feed_forward(self, x):
        gate, up = ternary_linear(rms_norm(x, self.ffn_norm), self.ffn_gate, self.ffn_up)
        hidden = F.relu(gate).square() * up
        return ternary_linear(rms_norm(hidden, self.ffn_sub_norm), self.ffn_down)[0]

    def forward(self, x, cos, sin):
        x = x + self.attention(x, cos, sin)
        return x + self.feed_forward(x)


class BitNet(nn.Module):
    """The whole model. The output head is the embedding table."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.token_embd = nn.Parameter(torch.randn(config.vocab_size, config.n_embd) * INIT_STD)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.output_norm = nn.Parameter(torch.ones(config.n_embd))
        cos, sin = rope_table(config, config.context_length)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def forward(self, tokens):
        """tokens: [B, T] -> logits [B, T, vocab_size] in bfloat16 precision."""
        cos, sin = self.cos[: tokens.shape[1]], self.sin[: tokens.shape[1]]
        x = F.embedding(tokens, self.token_embd)
        for block in self.blocks:
            x = block(x, cos, sin)
        x = rms_norm(x, self.output_norm)
        return (x.to(torch.bfloat16) @ self.token_embd.to(torch.bfloat16).t()).float()
