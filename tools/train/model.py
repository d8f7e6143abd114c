"""The networks that are trained: a Wan video transformer and a UMT5 text encoder, in plain torch.

Parameter names are those of diffusers' `WanTransformer3DModel` and transformers' `UMT5EncoderModel`, so a
state dict is the shipped checkpoint. Written out here because training works on token sequences (a clip
with most of its frames left out, see stages.py), which the library classes do not take, and because the
machine that trains may have nothing but torch. tools/parity compares the shipped folder with diffusers.
"""
import dataclasses
import math

import torch
import torch.nn.functional as F
from torch import nn


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Shape of both networks. A token is `patch_frames` latent frames of one 8x8 pixel patch."""
    layers: int = 10
    heads: int = 4
    head_dim: int = 64
    ffn: int = 1024
    channels: int = 32
    patch_frames: int = 2
    freq_dim: int = 256
    vocab: int = 576
    text_dim: int = 128
    text_len: int = 32
    text_layers: int = 2
    text_heads: int = 4
    text_ffn: int = 256

    @property
    def width(self):
        return self.heads * self.head_dim

    @property
    def token_values(self):
        return self.channels * self.patch_frames


# --- rotary positions ---------------------------------------------------------------------------------


def rope_tables(frames, rows, columns, head_dim):
    """[2, tokens, head_dim] for every (frame, row, column) of the three position lists: what rotate() multiplies a
    channel by (cosine) and its neighbour by (minus or plus sine).

    The split of a head's channels and the frequencies are Wan's: 2 (d // 6) channels for rows and for
    columns, the rest for frames; theta 10000.
    """
    side = 2 * (head_dim // 6)
    grid = torch.meshgrid(*(torch.as_tensor(p, dtype=torch.float64) for p in (frames, rows, columns)), indexing="ij")
    angles = []
    for positions, width in zip(grid, (head_dim - 2 * side, side, side)):
        frequencies = 10000.0 ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
        angles.append(positions.reshape(-1, 1) * frequencies)
    angles = torch.cat(angles, dim=1).repeat_interleave(2, dim=1)
    signs = torch.tensor([-1.0, 1.0], dtype=torch.float64).repeat(head_dim // 2)
    return torch.stack((angles.cos(), angles.sin() * signs)).float()


def rotate(x, rope):
    """Rotates adjacent channel pairs (a, b) of x [B, N, heads, head_dim] to (a cos - b sin, b cos + a sin)."""
    neighbour = x.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
    cos, sin = rope[:, :, None]
    return torch.addcmul(x * cos, neighbour, sin)


# --- transformer --------------------------------------------------------------------------------------


class Attention(nn.Module):
    """Q and K are normalised over all channels, before the heads are split, as in Wan."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, width) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(width, width)])
        self.norm_q, self.norm_k = nn.RMSNorm(width, eps=1e-6), nn.RMSNorm(width, eps=1e-6)

    def forward(self, x, source, rope=None):
        q = self.norm_q(self.to_q(x)).unflatten(-1, (self.heads, -1))
        k = self.norm_k(self.to_k(source)).unflatten(-1, (self.heads, -1))
        v = self.to_v(source).unflatten(-1, (self.heads, -1))
        if rope is not None:
            q, k = rotate(q, rope), rotate(k, rope)
        out = F.scaled_dot_product_attention(*(t.transpose(1, 2).to(v.dtype) for t in (q, k, v)))
        return self.to_out[0](out.transpose(1, 2).flatten(-2))


class Projection(nn.Module):
    def __init__(self, width, out):
        super().__init__()
        self.proj = nn.Linear(width, out)

    def forward(self, x):
        return F.gelu(self.proj(x), approximate="tanh")


class FeedForward(nn.Module):
    def __init__(self, width, inner):
        super().__init__()
        self.net = nn.ModuleList([Projection(width, inner), nn.Identity(), nn.Linear(inner, width)])

    def forward(self, x):
        return self.net[2](self.net[0](x))


def modulate(x, shift, scale):
    return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:], eps=1e-6), 1 + scale)


class Block(nn.Module):
    def __init__(self, sizes):
        super().__init__()
        self.attn1, self.attn2 = (Attention(sizes.width, sizes.heads) for _ in range(2))
        self.norm2 = nn.LayerNorm(sizes.width, eps=1e-6)
        self.ffn = FeedForward(sizes.width, sizes.ffn)
        self.scale_shift_table = nn.Parameter(torch.randn(1, 6, sizes.width) / sizes.width ** 0.5)

    def forward(self, x, text, modulation, rope):
        m = (self.scale_shift_table + modulation).unsqueeze(2).unbind(1)
        u = modulate(x, m[0], m[1])
        x = torch.addcmul(x, self.attn1(u, u, rope), m[2])
        x = x + self.attn2(self.norm2(x), text)
        return torch.addcmul(x, self.ffn(modulate(x, m[3], m[4])), m[5])


class Mlp(nn.Module):
    def __init__(self, inputs, width, activation):
        super().__init__()
        self.linear_1, self.linear_2 = nn.Linear(inputs, width), nn.Linear(width, width)
        self.activation = activation

    def forward(self, x):
        return self.linear_2(self.activation(self.linear_1(x)))


class ConditionEmbedder(nn.Module):
    def __init__(self, sizes):
        super().__init__()
        self.freq_dim = sizes.freq_dim
        self.time_embedder = Mlp(sizes.freq_dim, sizes.width, F.silu)
        self.time_proj = nn.Linear(sizes.width, 6 * sizes.width)
        self.text_embedder = Mlp(sizes.text_dim, sizes.width, lambda x: F.gelu(x, approximate="tanh"))

    def time(self, sigma):
        """sigma [B] in (0, 1] -> embedding [B, d] and modulation [B, 6, d]."""
        half = self.freq_dim // 2
        frequencies = torch.exp(torch.arange(half, device=sigma.device) * (-math.log(10000.0) / half))
        angles = 1000.0 * sigma[:, None] * frequencies
        embedding = self.time_embedder(torch.cat((angles.cos(), angles.sin()), dim=1))
        return embedding, self.time_proj(F.silu(embedding)).unflatten(-1, (6, -1))


class WanTransformer(nn.Module):
    """Velocity of noisy tokens. Input values of a token are ordered (channel, frame), output (frame, channel)."""

    def __init__(self, sizes):
        super().__init__()
        self.sizes = sizes
        self.patch_embedding = nn.Conv3d(sizes.channels, sizes.width, (sizes.patch_frames, 1, 1))
        self.condition_embedder = ConditionEmbedder(sizes)
        self.blocks = nn.ModuleList(Block(sizes) for _ in range(sizes.layers))
        self.scale_shift_table = nn.Parameter(torch.randn(1, 2, sizes.width) / sizes.width ** 0.5)
        self.proj_out = nn.Linear(sizes.width, sizes.token_values)
        self.initialise()

    def initialise(self):
        """Xavier, but branches that write to the residual start small and the output at zero."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(self.patch_embedding.weight.flatten(1))
        nn.init.zeros_(self.patch_embedding.bias)
        for block in self.blocks:
            for linear in (block.attn1.to_out[0], block.attn2.to_out[0], block.ffn.net[2]):
                nn.init.normal_(linear.weight, std=0.02 / math.sqrt(2 * len(self.blocks)))
        nn.init.normal_(self.condition_embedder.time_proj.weight, std=0.02)
        nn.init.zeros_(self.proj_out.weight)

    def forward(self, tokens, sigma, context, rope, taps=()):
        """tokens [B, N, values], sigma [B], context [B, text_len, text_dim] zero past the prompt -> [B, N, values].

        With taps also the hidden states [B, N, width] after that many blocks each: (velocity, list)."""
        embedding, modulation = self.condition_embedder.time(sigma)
        text = self.condition_embedder.text_embedder(context)
        x = F.linear(tokens, self.patch_embedding.weight.flatten(1), self.patch_embedding.bias)
        hidden = []
        for done, block in enumerate(self.blocks, 1):
            x = block(x, text, modulation, rope)
            if done in taps:
                hidden.append(x)
        shift, scale = (self.scale_shift_table + embedding[:, None]).unsqueeze(2).unbind(1)
        velocity = self.proj_out(modulate(x, shift, scale))
        return (velocity, hidden) if taps else velocity


# --- text encoder -------------------------------------------------------------------------------------


def relative_buckets(length, buckets=32, max_distance=128):
    """T5's bucket of (key - query) for every pair [length, length]: exact below 8, logarithmic above."""
    offset = torch.arange(length)[None, :] - torch.arange(length)[:, None]
    half, exact = buckets // 2, buckets // 4
    distance = offset.abs()
    large = exact + (torch.log(distance.clamp(min=1) / exact) / math.log(max_distance / exact) * (half - exact)).long()
    return torch.where(distance < exact, distance, large.clamp(max=half - 1)) + (offset > 0) * half


class SelfAttention(nn.Module):
    def __init__(self, sizes):
        super().__init__()
        self.heads = sizes.text_heads
        self.q, self.k, self.v, self.o = (nn.Linear(sizes.text_dim, sizes.text_dim, bias=False) for _ in range(4))
        self.relative_attention_bias = nn.Embedding(32, sizes.text_heads)

    def forward(self, x, mask, buckets):
        q, k, v = (f(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.q, self.k, self.v))
        bias = self.relative_attention_bias(buckets).permute(2, 0, 1)
        bias = bias.masked_fill(~mask[:, None, None, :], float("-inf"))
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=1.0)  # T5 does not scale
        return self.o(out.transpose(1, 2).flatten(-2))


class AttentionLayer(nn.Module):
    def __init__(self, sizes):
        super().__init__()
        self.SelfAttention = SelfAttention(sizes)
        self.layer_norm = nn.RMSNorm(sizes.text_dim, eps=1e-6)

    def forward(self, x, mask, buckets):
        return x + self.SelfAttention(self.layer_norm(x), mask, buckets)


class GatedFeedForward(nn.Module):
    def __init__(self, sizes):
        super().__init__()
        self.wi_0, self.wi_1 = (nn.Linear(sizes.text_dim, sizes.text_ffn, bias=False) for _ in range(2))
        self.wo = nn.Linear(sizes.text_ffn, sizes.text_dim, bias=False)

    def forward(self, x):
        return self.wo(F.gelu(self.wi_0(x), approximate="tanh") * self.wi_1(x))


class FeedForwardLayer(nn.Module):
    def __init__(self, sizes):
        super().__init__()
        self.DenseReluDense = GatedFeedForward(sizes)
        self.layer_norm = nn.RMSNorm(sizes.text_dim, eps=1e-6)

    def forward(self, x, mask, buckets):
        return x + self.DenseReluDense(self.layer_norm(x))


class TextBlock(nn.Module):
    def __init__(self, sizes):
        super().__init__()
        self.layer = nn.ModuleList([AttentionLayer(sizes), FeedForwardLayer(sizes)])


class TextStack(nn.Module):
    def __init__(self, sizes):
        super().__init__()
        self.block = nn.ModuleList(TextBlock(sizes) for _ in range(sizes.text_layers))
        self.final_layer_norm = nn.RMSNorm(sizes.text_dim, eps=1e-6)


class TextEncoder(nn.Module):
    """ids [B, text_len], 0 = padding -> [B, text_len, text_dim], zero at padding, as Wan's pipeline hands it on."""

    def __init__(self, sizes):
        super().__init__()
        self.shared = nn.Embedding(sizes.vocab, sizes.text_dim)
        self.encoder = TextStack(sizes)
        self.register_buffer("buckets", relative_buckets(sizes.text_len), persistent=False)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=module.in_features ** -0.5)
        for block in self.encoder.block:  # logits are not scaled: T5 starts q that much smaller
            nn.init.normal_(block.layer[0].SelfAttention.q.weight,
                            std=(sizes.text_dim * sizes.text_dim / sizes.text_heads) ** -0.5)
            nn.init.zeros_(block.layer[0].SelfAttention.relative_attention_bias.weight)

    def forward(self, ids):
        mask = ids != 0
        x = self.shared(ids)
        for block in self.encoder.block:
            for layer in block.layer:
                x = layer(x, mask, self.buckets)
        return self.encoder.final_layer_norm(x) * mask[..., None]
