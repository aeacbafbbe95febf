"""Folded models in PyTorch, with modules and buffers called as SPViT's released code calls them.

Written from the description of the method: what a file for PyTorch has to load into with
``strict=True``, and what it has to compute there. Buffers start as garbage on purpose.
"""

import torch
from torch import nn


def build(spec, architecture):
    """The folded network of an architecture, for a ViT's spec or a Swin's."""
    ops_and_widths = zip(architecture.ops, architecture.widths, strict=True)
    swin = hasattr(spec, "depths")
    eps = 1e-5 if swin else 1e-6
    blocks = [
        Block(geometry, op, width, eps, swin)
        for geometry, (op, width) in zip(spec.blocks, ops_and_widths, strict=True)
    ]
    return Swin(spec, blocks) if swin else DeiT(spec, blocks)


def image(tokens, grid):
    """``[B, patches, D]`` as a map ``[B, D, rows, columns]``."""
    return tokens.transpose(1, 2).reshape(tokens.shape[0], -1, *grid)


class Attention(nn.Module):
    def __init__(self, geometry, swin):
        super().__init__()
        width, self.heads, self.geometry = geometry.width, geometry.heads, geometry
        self.qk, self.v = nn.Linear(width, 2 * width), nn.Linear(width, width)
        self.proj = nn.Linear(width, width)
        self.swin = swin
        if swin:
            high, wide = geometry.window
            rows, tokens = (2 * high - 1) * (2 * wide - 1), high * wide
            self.relative_position_bias_table = nn.Parameter(torch.zeros(rows, geometry.heads))
            index = torch.full((tokens, tokens), -1)
            self.register_buffer("relative_position_index", index)

    def forward(self, x, mask):
        if not self.swin:
            return self.attend(x, None)
        g = self.geometry
        x = image(x, g.grid).permute(0, 2, 3, 1)
        x = torch.roll(x, tuple(-side for side in g.shift), (1, 2))
        (rows, columns), (high, wide) = g.grid, g.window
        x = x.reshape(-1, rows // high, high, columns // wide, wide, g.width).transpose(2, 3)
        bias = self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1)
        if mask is not None:  # one for each window, heads the same
            bias = (bias[None] + mask[:, None]).repeat(len(x), 1, 1, 1)
        x = self.attend(x.reshape(-1, high * wide, g.width), bias)
        x = x.reshape(-1, rows // high, columns // wide, high, wide, g.width).transpose(2, 3)
        x = torch.roll(x.reshape(-1, rows, columns, g.width), g.shift, (1, 2))
        return x.flatten(1, 2)

    def attend(self, x, bias):
        split = [t.unflatten(2, (self.heads, -1)).transpose(1, 2) for t in self.projected(x)]
        q, k, v = split
        logits = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
        logits = logits if bias is None else logits + bias
        return self.proj((logits.softmax(-1) @ v).transpose(1, 2).flatten(2))

    def projected(self, x):
        return (*self.qk(x).chunk(2, -1), self.v(x))


class Convolution(nn.Module):
    def __init__(self, geometry, size):
        super().__init__()
        width, inner, self.geometry = geometry.width, geometry.head_dim, geometry
        self.bconv = nn.Sequential(
            nn.Conv2d(width, inner, size, padding=size // 2),
            nn.BatchNorm2d(inner),
            nn.ReLU(),
            nn.Conv2d(inner, width, 1),
        )

    def forward(self, x, mask):
        prefix = self.geometry.prefix
        y = self.bconv(image(x[:, prefix:], self.geometry.grid))
        return torch.cat([x[:, :prefix], y.flatten(2).transpose(1, 2)], 1)


class Mlp(nn.Module):
    def __init__(self, width, hidden):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x):
        return self.fc2(nn.functional.gelu(self.fc1(x)))


class Block(nn.Module):
    def __init__(self, geometry, op, hidden, eps, swin):
        super().__init__()
        self.norm1 = nn.LayerNorm(geometry.width, eps)
        self.norm2 = nn.LayerNorm(geometry.width, eps)
        self.mlp = Mlp(geometry.width, hidden)
        if op == "msa":
            self.attn = Attention(geometry, swin)
        elif op.startswith("conv"):
            self.attn = Convolution(geometry, int(op[-1]))
        self.attn_mask = None
        if any(geometry.shift):
            tokens = geometry.window[0] * geometry.window[1]
            mask = torch.full((geometry.windows, tokens, tokens), torch.nan)
            del self.attn_mask
            self.register_buffer("attn_mask", mask)

    def forward(self, x):
        y = self.norm1(x)
        x = x + (self.attn(y, self.attn_mask) if hasattr(self, "attn") else y)
        return x + self.mlp(self.norm2(x))


class PatchEmbed(nn.Module):
    def __init__(self, spec, norm):
        super().__init__()
        self.proj = nn.Conv2d(3, spec.width, spec.patch_size, spec.patch_size)
        self.norm = nn.LayerNorm(spec.width, 1e-5) if norm else nn.Identity()

    def forward(self, images):
        return self.norm(self.proj(images).flatten(2).transpose(1, 2))


class DeiT(nn.Module):
    def __init__(self, spec, blocks):
        super().__init__()
        self.patch_embed = PatchEmbed(spec, norm=False)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, spec.width))
        self.pos_embed = nn.Parameter(torch.zeros(1, spec.blocks[0].tokens, spec.width))
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.LayerNorm(spec.width, 1e-6)
        self.head = nn.Linear(spec.width, spec.classes)

    def forward(self, images):
        x = self.patch_embed(images)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1) + self.pos_embed
        return self.head(self.norm(self.blocks(x))[:, 0])


class Merging(nn.Module):
    def __init__(self, width, grid):
        super().__init__()
        self.grid = grid
        self.reduction = nn.Linear(4 * width, 2 * width, bias=False)
        self.norm = nn.LayerNorm(4 * width, 1e-5)

    def forward(self, x):
        x = x.unflatten(1, self.grid)
        corners = [x[:, dy::2, dx::2] for dx in (0, 1) for dy in (0, 1)]
        return self.reduction(self.norm(torch.cat(corners, -1).flatten(1, 2)))


class Stage(nn.Module):
    def __init__(self, blocks, downsample):
        super().__init__()
        self.blocks = nn.Sequential(*blocks)
        if downsample is not None:
            self.downsample = downsample

    def forward(self, x):
        x = self.blocks(x)
        return self.downsample(x) if hasattr(self, "downsample") else x


class Swin(nn.Module):
    def __init__(self, spec, blocks):
        super().__init__()
        self.patch_embed = PatchEmbed(spec, norm=True)
        stages, last = [], len(spec.depths) - 1
        for s, depth in enumerate(spec.depths):
            merging = Merging(spec.width << s, spec.grid(s)) if s < last else None
            stages.append(Stage(blocks[:depth], merging))
            blocks = blocks[depth:]
        self.layers = nn.Sequential(*stages)
        self.norm = nn.LayerNorm(spec.width << last, 1e-5)
        self.head = nn.Linear(spec.width << last, spec.classes)

    def forward(self, images):
        return self.head(self.norm(self.layers(self.patch_embed(images))).mean(1))
