"""Models of spvit_jax in PyTorch. This file needs nothing but torch: copy it next to the weights.

    import spvit_torch

    model = spvit_torch.load("pruned.safetensors")  # in eval mode, on the CPU
    logits = model(images)  # [batch, channels, H, W], normalised by model.mean and model.std
    seen, patches = model.features(images)
    spvit_torch.save(model, "tuned.safetensors")  # which spvit_jax.load reads

Any model that ``spvit_jax.save`` writes, a supernet excepted: dense, pruned, folded, deployed, with
merged tokens; ViT, Swin, RegNetY. Everything trains and goes through ``torch.compile`` and
``torch.export``. Besides the spec, a model has ``class_names``, ``mean``, ``std`` (of RGB in 0..1),
``crop_ratio`` and ``image_size``, each empty or None where the file does not say. On NVIDIA's GPUs
float32 convolutions are of less than float32 unless ``torch.backends.cudnn.allow_tf32 = False``.

Names in ``state_dict`` are those of the file, with PyTorch's leaves: ``blocks.3.mixer.qk.weight``.
A block has ``norm1``, ``mixer``, ``norm2`` and ``ffn``. A mixer is attention (``qk``, ``v``,
``out``), a folded convolution (``weight``, ``bias``, ``norm``, ``out``), one that still shares
attention's weights (``v``, ``out``, ``head_logits``, ``norm``), or nothing.
"""

import contextlib
import functools
import json
import math
import os
from collections import OrderedDict
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

HEADER = "spvit_jax"  # the metadata key
VERSIONS = (1, 2)
LEAST, MOST = torch.finfo(torch.float32).tiny, torch.finfo(torch.float32).max
LONGEST = 100_000_000  # bytes of a header, safetensors' own limit
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
SPECS: dict[str, dict[str, Any]] = {  # the fields of each, and what files from before one mean
    "ViTSpec": {
        "width": 768, "depth": 12, "heads": 12, "hidden": 3072, "patch_size": 16,
        "image_size": 224, "classes": 1000, "class_token": True, "distilled": False,
        "registers": 0, "pool": "token", "patches": False, "positions": True, "rotary": "",
        "rotary_base": 100.0, "rotary_grid": 16, "norm_pre": False, "qk_norm": False,
        "gated": False, "activation": "gelu", "epsilon": 1e-6, "channels": 3,
    },
    "SwinSpec": {
        "width": 96, "depths": (2, 2, 6, 2), "heads": (3, 6, 12, 24),
        "hidden": (384, 768, 1536, 3072), "window": 7, "patch_size": 4, "image_size": 224,
        "classes": 1000, "epsilon": 1e-5, "channels": 3,
    },
    "RegNetSpec": {
        "widths": (224, 448, 1232, 3024), "depths": (2, 4, 11, 1), "group": 112,
        "image_size": 224, "classes": 1000,
    },
}  # fmt: skip
TEMPERATURES = {"ViTSpec": 0.01, "SwinSpec": 100.0}  # of head mixtures, where the file has none
POOLS = ("token", "norm_average", "average_norm", "attention")
FORMS = ("dense", "shared", "folded", "deploy")
OPS = ("skip", "norm_skip", "conv1x1", "conv3x3", "msa")
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": functools.partial(F.gelu, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "silu": F.silu,
}
ROTARY: dict[str, Callable[[Tensor, int, int], Tensor]] = {  # of places, a side, a trained side
    "dinov3": lambda line, grid, trained: 2 * math.pi * ((2 * line + 1) / grid - 1),
    "eva": lambda line, grid, trained: line / grid * trained,
}


class ModelFileError(ValueError):
    """A file that is not a model of spvit_jax, or that is damaged."""


class Geometry(NamedTuple):
    """What one block is made of."""

    width: int
    head_dim: int
    heads: int  # those that are kept
    hidden: int  # FFN units
    grid: tuple[int, int]  # rows and columns of the map of patches
    epsilon: float
    op: str = "msa"
    dims: tuple[int, int] | None = None  # features of a head's keys and values; None: head_dim
    merges: int = 0  # patches that are merged away between mixer and FFN
    prefix: int = 0  # class tokens and registers before the patches
    read: int | None = None  # tokens that go on, the first ones; None: all
    window: tuple[int, int] | None = None  # attention runs in windows of so many rows and columns
    shift: tuple[int, int] = (0, 0)  # the windows' offset down and to the right
    qk_norm: bool = False
    gated: bool = False
    activation: str = "gelu"


class Tokens(NamedTuple):
    """What flows between blocks; class tokens come first and are never merged."""

    x: Tensor  # [batch, n, D]
    angles: Tensor | None = None  # by which queries and keys are turned, [batch or 1, n, d / 2]
    sizes: Tensor | None = None  # how many each stands for, [batch, n]; None: one each
    sources: Tensor | None = None  # which of them each embedded one is in, [batch, embedded]

    @property
    def bias(self) -> Tensor | None:
        """What is added to the logits of attention: a merged token counts as so many."""
        return None if self.sizes is None else self.sizes.log()[:, None, None].to(self.x.dtype)


def merge(tokens: Tokens, alike: Tensor, count: int, prefix: int) -> Tokens:
    """Averages the ``count`` pairs of patches that are most ``alike [batch, n, k]`` by cosine.

    Every second patch looks for its like among the others; of equals the first. There is no
    gradient of which they are. Source: Bolya et al., ICLR 2023.
    """
    x, sizes, left = tokens.x, tokens.sizes, tokens.x.shape[1] - count
    patches = alike.detach()[:, prefix:]
    patches = patches.to(torch.promote_types(patches.dtype, torch.float32))
    patches = F.normalize(patches, dim=-1, eps=torch.finfo(patches.dtype).tiny)
    best, partner = (patches[:, 1::2] @ patches[:, 0::2].mT).max(-1)
    order = torch.arange(best.shape[1], device=x.device)
    equal = (best[:, None] == best[..., None]) & (order < order[:, None])
    gone = ((best[:, None] > best[..., None]) | equal).sum(-1) < count
    stays = torch.ones_like(patches[..., 0], dtype=torch.bool)
    stays[:, 1::2] = ~gone
    places = stays.cumsum(1) - 1 + prefix
    places[:, 1::2] = torch.where(gone, places[:, 0::2].gather(1, partner), places[:, 1::2])
    first = torch.arange(prefix, device=x.device).expand(x.shape[0], -1)
    places = torch.cat([first, places], 1)

    def summed(y: Tensor) -> Tensor:
        zeros = y.new_zeros(y.shape[0], left, y.shape[2])
        return zeros.scatter_add(1, places[..., None].expand_as(y), y)

    sizes = torch.ones_like(x[..., 0], dtype=patches.dtype) if sizes is None else sizes
    total = summed(sizes[..., None])
    shares = sizes[..., None] / total.gather(1, places[..., None])
    return Tokens(
        summed(shares.to(x.dtype) * x),
        None if tokens.angles is None else summed(shares * tokens.angles),
        total[..., 0],
        places if tokens.sources is None else places.gather(1, tokens.sources),
    )


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    """Averages values ``[batch, tokens, heads, d]`` to those of the queries, heads side by side."""
    q, k, v = (a.transpose(1, 2) for a in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, bias).transpose(1, 2).flatten(2)


class Linear(nn.Linear):
    """A fully connected layer that leaves its weights to the file."""

    def reset_parameters(self) -> None:
        pass


class Attention(nn.Module):
    """Multi-head self-attention of normalised tokens; it gives the branch and the keys."""

    def __init__(self, geometry: Geometry):
        super().__init__()
        self.heads, self.read = geometry.heads, geometry.read
        keyed, inner = (self.heads * n for n in geometry.dims or (geometry.head_dim,) * 2)
        self.qk = Linear(geometry.width, 2 * keyed)
        self.v = Linear(geometry.width, inner)
        self.out = Linear(inner, geometry.width)
        norm: Callable[[], nn.Module] = nn.Identity
        if geometry.qk_norm:
            norm = functools.partial(nn.LayerNorm, geometry.head_dim, geometry.epsilon)
        self.q_norm, self.k_norm = norm(), norm()

    def forward(self, x: Tensor, tokens: Tokens) -> tuple[Tensor, Tensor]:
        q, k = self.qk(x).chunk(2, -1)
        parts = (q[:, : self.read], k, self.v(x))
        q, keys, v = (a.unflatten(-1, (self.heads, -1)) for a in parts)
        q, k = self.q_norm(q), self.k_norm(keys)
        if tokens.angles is not None:
            q, k = _turned(q, tokens.angles), _turned(k, tokens.angles)
        return self.out(self.attend(q, k, v, tokens)), keys

    def attend(self, q: Tensor, k: Tensor, v: Tensor, tokens: Tokens) -> Tensor:
        """Averages values ``[batch, tokens, heads, d]``: ``[batch, read, heads * d]``."""
        return attend(q, k, v, tokens.bias)


def _turned(x: Tensor, angles: Tensor) -> Tensor:
    """Rotates feature ``j`` of each head with ``j + d / 2``."""
    angles = angles[:, : x.shape[1], None]
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    one, other = x.chunk(2, -1)
    return torch.cat([one * cos - other * sin, other * cos + one * sin], -1)


class WindowAttention(Attention):
    """Attention within shifted windows, each pair of tokens biased by its relative position."""

    def __init__(self, geometry: Geometry):
        super().__init__(geometry)
        self.grid, self.shift = geometry.grid, geometry.shift
        self.window = geometry.window or geometry.grid
        self.relative = 2 * self.window[0] - 1, 2 * self.window[1] - 1  # positions down and across
        self.position_bias = nn.Parameter(torch.empty(math.prod(self.relative), geometry.heads))

    def attend(self, q: Tensor, k: Tensor, v: Tensor, tokens: Tokens) -> Tensor:
        q, k, v = (self.split(self.rolled(a, -1)).transpose(2, 3) for a in (q, k, v))
        bias = self.bias(q.shape[1]).flatten(0, 1)[None]  # [1, windows * heads, w*w, w*w]
        q, k, v = (a.flatten(1, 2) for a in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v, bias)
        y = y.unflatten(1, (-1, self.heads)).transpose(2, 3).flatten(3)
        y = y.unflatten(2, self.window)
        y = y.unflatten(1, (-1, self.grid[1] // self.window[1])).transpose(2, 3).flatten(1, 4)
        return self.rolled(y, 1)

    def rolled(self, x: Tensor, sign: int) -> Tensor:
        """Moves a map ``[batch, n, …]`` by the shift, down and to the right if ``sign`` is 1."""
        if not any(self.shift):
            return x
        down, right = self.shift
        return x.unflatten(1, self.grid).roll((sign * down, sign * right), (1, 2)).flatten(1, 2)

    def split(self, x: Tensor) -> Tensor:
        """Cuts a map ``[batch, n, …]`` into windows ``[batch, windows, tokens, …]``."""
        high, wide = self.window
        x = x.unflatten(1, (-1, high, self.grid[1] // wide, wide))
        return x.transpose(2, 3).flatten(3, 4).flatten(1, 2)

    def bias(self, windows: int) -> Tensor:
        """What is added to the logits of each window, ``[windows, heads, tokens, tokens]``.

        It is -100 between tokens that only the shift around the borders made neighbours.
        """
        high, wide = self.window
        bias = self.position_bias.unflatten(0, self.relative).unfold(0, high, 1)
        bias = bias.unfold(1, wide, 1).flip(-2, -1)  # [y, x, heads, y of the key, x of it]
        bias = bias.permute(2, 0, 1, 3, 4).flatten(3).flatten(1, 2).expand(windows, -1, -1, -1)
        if not any(self.shift):
            return bias
        lines = (torch.arange(side, device=bias.device) for side in self.grid)
        down, right = (
            (line >= len(line) - window).long() + (line >= len(line) - shift)
            for line, window, shift in zip(lines, self.window, self.shift, strict=True)
        )
        region = self.split((3 * down[:, None] + right).flatten()[None])[0]
        return bias - 100.0 * (region[:, :, None] != region[:, None])[:, None].to(bias.dtype)


class Convolution(nn.Module):
    """A convolution of the patches, batch norm, ReLU, 1x1 convolution; class tokens pass.

    With a ``temperature`` it is of attention's weights: each tap mixes the heads' projections.
    """

    def __init__(self, geometry: Geometry, norm: bool, temperature: float | None):
        super().__init__()
        width, inner, self.size = geometry.width, geometry.head_dim, int(geometry.op[-1])
        self.columns = geometry.grid[1] if self.size > 1 else 1  # merged patches are no map
        self.prefix, self.class_only = geometry.prefix, geometry.read is not None
        self.heads, self.temperature = geometry.heads, temperature
        if temperature is None:
            self.weight = nn.Parameter(torch.empty(inner, width, self.size, self.size))
            self.bias = nn.Parameter(torch.empty(inner))
        else:
            self.head_logits = nn.Parameter(torch.empty(geometry.heads, 9))
            self.v = Linear(width, width)
        self.out = Linear(inner if temperature is None else width, width)
        self.norm = nn.BatchNorm2d(inner) if norm else None

    def kernels(self) -> tuple[Tensor, Tensor, Tensor]:
        """Gives the kernel ``[d, D, s, s]``, its bias ``[d]`` and the output's ``[D, d]``."""
        if self.temperature is None:
            return self.weight, self.bias, self.out.weight
        logits = self.head_logits - self.head_logits.amax(0)
        mixture = (logits / self.temperature).softmax(0)
        mixture = mixture if self.size == 3 else mixture[:, 4:5]  # of the nine taps, the centre
        v, bias = (a.unflatten(0, (self.heads, -1)) for a in (self.v.weight, self.v.bias))
        kernel = torch.einsum("hdi,ht->dit", v, mixture).unflatten(2, (self.size, self.size))
        out = self.out.weight.unflatten(1, (self.heads, -1))
        out = torch.einsum("ohd,ht->od", out, mixture)
        return kernel, torch.einsum("hd,ht->d", bias, mixture), out

    def forward(self, x: Tensor, tokens: Tokens) -> tuple[Tensor, None]:
        first, patches = x[:, : self.prefix], x[:, self.prefix :]
        if self.class_only:
            return first, None
        kernel, bias, out = self.kernels()
        if self.norm is not None and self.training:
            bias = bias.detach()  # which the norm takes off again: its gradient would be rounding
        maps = patches.mT.unflatten(2, (-1, self.columns))
        y = F.conv2d(maps, kernel, bias, padding=self.size // 2)
        y = F.relu(y if self.norm is None else self.norm(y)).flatten(2).mT
        return torch.cat([first, F.linear(y, out, self.out.bias)], 1), None


class Mlp(nn.Module):
    """The feed-forward network; with a gate for each unit, that is what is activated."""

    def __init__(self, geometry: Geometry):
        super().__init__()
        width, hidden = geometry.width, geometry.hidden
        self.fc1, self.fc2 = Linear(width, hidden), Linear(hidden, width)
        self.gate = Linear(width, hidden) if geometry.gated else None
        self.activate = ACTIVATIONS[geometry.activation]

    def forward(self, x: Tensor) -> Tensor:
        if self.gate is None:
            return self.fc2(self.activate(self.fc1(x)))
        return self.fc2(self.activate(self.gate(x)) * self.fc1(x))


class Block(nn.Module):
    """``x + mixer(norm1(x))``, then ``x + ffn(norm2(x))``; between the two, patches are merged.

    They are by their keys, or where nothing attends by what enters the FFN.
    """

    def __init__(self, geometry: Geometry, convolution: Callable[[Geometry], Convolution]):
        super().__init__()
        self.read, self.merges, self.prefix = geometry.read, geometry.merges, geometry.prefix
        norm = functools.partial(nn.LayerNorm, geometry.width, geometry.epsilon)
        self.norm1 = None if geometry.op == "skip" else norm()
        self.mixer: nn.Module | None = None
        if geometry.op == "msa":
            self.mixer = (WindowAttention if geometry.window else Attention)(geometry)
        elif geometry.op.startswith("conv"):
            self.mixer = convolution(geometry)
        self.norm2, self.ffn = norm(), Mlp(geometry)

    def forward(self, tokens: Tokens) -> Tokens:
        x, keys = tokens.x[:, : self.read], None
        if self.norm1 is not None:
            branch = self.norm1(tokens.x)
            if self.mixer is not None:
                branch, keys = self.mixer(branch, tokens)
            x = x + branch[:, : self.read]
        tokens = tokens._replace(x=x) if self.read is None else Tokens(x)
        if self.merges:
            alike = self.norm2(x) if keys is None else keys.mean(2)
            tokens = merge(tokens, alike, self.merges, self.prefix)
        return tokens._replace(x=tokens.x + self.ffn(self.norm2(tokens.x)))


class AttentionPool(nn.Module):
    """Attention of a learnt query over normalised tokens, and an FFN of its own."""

    def __init__(self, geometry: Geometry):
        super().__init__()
        width, self.heads = geometry.width, geometry.heads
        self.latent = nn.Parameter(torch.empty(1, width))
        self.q, self.k, self.v, self.out = (Linear(width, width) for _ in range(4))
        self.norm, self.ffn = nn.LayerNorm(width, geometry.epsilon), Mlp(geometry)

    def forward(self, x: Tensor, tokens: Tokens) -> Tensor:
        query = self.q(self.latent).expand(x.shape[0], -1, -1)
        q, k, v = (a.unflatten(-1, (self.heads, -1)) for a in (query, self.k(x), self.v(x)))
        pooled = self.out(attend(q, k, v, tokens.bias))
        return pooled + self.ffn(self.norm(pooled))


class Network(nn.Module):
    """A classifier, or where its spec has no classes a backbone."""

    def __init__(self, spec: SimpleNamespace, width: int):
        super().__init__()
        self.spec, self.image_size = spec, spec.image_size
        self.head = Linear(width, spec.classes) if spec.classes else None
        self.head_dist: Linear | None = None
        self.metadata: dict[str, str] = {}  # of the file
        self.class_names: tuple[str, ...] = ()
        self.mean: tuple[float, ...] = ()
        self.std: tuple[float, ...] = ()
        self.crop_ratio: float | None = None

    def stream(self, images: Tensor) -> Tokens:
        """What leaves the last block, of ``images [batch, channels, S*p, S*p]``."""
        raise NotImplementedError

    def pooled(self, tokens: Tokens) -> Tensor:
        """What each head sees, ``[batch, heads, D]``."""
        return tokens.x.mean(1, keepdim=True)

    def patches(self, tokens: Tokens) -> Tensor | None:
        """The patches that left the last block on the full grid, row by row."""
        return None

    def features(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Features of normalised images.

        Returns:
          What each head sees, ``[batch, heads, D]``: one class token or average, or of a distilled
          DeiT two tokens; and the patches ``[batch, S*S, D]`` behind the last norm, unmerged, or
          None where the last block computes class tokens alone.
        """
        tokens = self.stream(images)
        return self.pooled(tokens), self.patches(tokens)

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``[batch, classes]``, the mean of all heads'; without a head, features."""
        seen = self.pooled(self.stream(images))
        if self.head is None:
            return seen[:, 0]
        logits = self.head(seen[:, 0])
        return logits if self.head_dist is None else (logits + self.head_dist(seen[:, 1])) / 2


class Transformer(Network):
    """Patches, then blocks."""

    def __init__(self, spec: SimpleNamespace, blocks: list[Geometry], convolution: Callable):
        super().__init__(spec, blocks[-1].width)
        self.patch_embed = Linear(spec.channels * spec.patch_size**2, blocks[0].width)
        self.blocks = nn.Sequential(*(Block(geometry, convolution) for geometry in blocks))
        self.norm = nn.LayerNorm(blocks[-1].width, spec.epsilon)

    def embedded(self, images: Tensor) -> Tensor:
        """Embeds patches, ``[batch, n, D]``."""
        patch = self.spec.patch_size
        expected = (self.spec.channels, *_sides(self.image_size))
        if images.shape[1:] != expected:
            raise ValueError(
                f"expected images [batch, {', '.join(map(str, expected))}], got"
                f" {list(images.shape)}; resize or convert them"
            )
        x = images.unflatten(3, (-1, patch)).unflatten(2, (-1, patch))
        return self.patch_embed(x.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2))


class ViT(Transformer):
    """A vision transformer over class tokens, registers and patches."""

    def __init__(self, spec: SimpleNamespace, blocks: list[Geometry], convolution: Callable):
        super().__init__(spec, blocks, convolution)
        self.prefix, width = blocks[0].prefix, spec.width
        self.class_only = blocks[-1].read is not None
        self.tokens = nn.Parameter(torch.empty(self.prefix, width)) if self.prefix else None
        self.grid = blocks[0].grid
        embedded = self.prefix + math.prod(self.grid)
        self.pos_embed = nn.Parameter(torch.empty(embedded, width)) if spec.positions else None
        self.norm_pre = nn.LayerNorm(width, spec.epsilon) if spec.norm_pre else None
        if spec.pool == "attention":
            dense = {"heads": spec.heads, "hidden": spec.hidden, "gated": False}
            self.pool = AttentionPool(blocks[-1]._replace(**dense))
        if spec.classes and spec.distilled:
            self.head_dist = Linear(width, spec.classes)

    def stream(self, images: Tensor) -> Tokens:
        x = self.embedded(images)
        if self.tokens is not None:
            x = torch.cat([self.tokens.expand(x.shape[0], -1, -1), x], 1)
        if self.pos_embed is not None:
            x = x + self.pos_embed
        x = x if self.norm_pre is None else self.norm_pre(x)
        return self.blocks(Tokens(x, self.angles(x) if self.spec.rotary else None))

    def angles(self, x: Tensor) -> Tensor:
        """Angles of the places of tokens, ``[1, n, d / 2]``; those of class tokens are 0."""
        spec, wide = self.spec, torch.promote_types(x.dtype, torch.float32)
        bands = spec.width // spec.heads // 4
        places = (torch.arange(side, device=x.device, dtype=wide) for side in self.grid)
        lines = (ROTARY[spec.rotary](line, len(line), spec.rotary_grid) for line in places)
        waves = spec.rotary_base ** (torch.arange(bands, device=x.device, dtype=wide) / -bands)
        angles = (torch.cartesian_prod(*lines)[..., None] * waves).flatten(1)
        return F.pad(angles, (0, 0, self.prefix, 0))[None]

    def pooled(self, tokens: Tokens) -> Tensor:
        pool, x, sizes = self.spec.pool, tokens.x, tokens.sizes
        if pool == "token":
            return self.norm(x[:, : self.prefix - self.spec.registers])
        if pool == "attention":
            return self.pool(self.norm(x), tokens)
        x = (self.norm(x) if pool == "norm_average" else x)[:, self.prefix :]
        if sizes is None:
            x = x.mean(1, keepdim=True)
        else:
            shares = sizes[:, self.prefix :] / sizes[:, self.prefix :].sum(1, keepdim=True)
            x = (shares[..., None].to(x.dtype) * x).sum(1, keepdim=True)
        return x if pool == "norm_average" else self.norm(x)

    def patches(self, tokens: Tokens) -> Tensor | None:
        """As documented for ``features``; not normalised where the norm is of averages alone."""
        x = tokens.x
        if self.class_only:
            return None
        if tokens.sources is not None:
            x = x.gather(1, tokens.sources[..., None].expand(-1, -1, x.shape[2]))
        return (x if self.spec.pool == "average_norm" else self.norm(x))[:, self.prefix :]


class PatchMerging(Linear):
    """The end of a stage: each 2x2 patches, read column by column, become one, twice as wide."""

    def __init__(self, width: int, columns: int, epsilon: float):
        super().__init__(4 * width, 2 * width, bias=False)
        self.norm, self.columns = nn.LayerNorm(4 * width, epsilon), columns

    def forward(self, x: Tensor) -> Tensor:
        x = x.unflatten(1, (-1, 2, self.columns // 2, 2)).permute(0, 1, 3, 4, 2, 5)
        return super().forward(self.norm(x.flatten(3).flatten(1, 2)))


class Swin(Transformer):
    """A Swin: attention in windows, on a map that shrinks stage by stage."""

    def __init__(self, spec: SimpleNamespace, blocks: list[Geometry], convolution: Callable):
        super().__init__(spec, blocks, convolution)
        self.embed_norm = nn.LayerNorm(spec.width, spec.epsilon)
        self.ends = [sum(spec.depths[:stage]) for stage in range(1, len(spec.depths))]
        lasts = [blocks[end - 1] for end in self.ends]
        self.merges = nn.ModuleList(PatchMerging(b.width, b.grid[1], spec.epsilon) for b in lasts)

    def stream(self, images: Tensor) -> Tokens:
        x = self.embed_norm(self.embedded(images))
        for i, block in enumerate(self.blocks):
            x = self.merges[self.ends.index(i)](x) if i in self.ends else x
            x = block(Tokens(x)).x
        return Tokens(x)

    def pooled(self, tokens: Tokens) -> Tensor:
        return self.norm(tokens.x).mean(1, keepdim=True)

    def patches(self, tokens: Tokens) -> Tensor | None:
        return self.norm(tokens.x)


def _conv_norm(inputs: int, outputs: int, size: int, stride: int = 1, groups: int = 1) -> nn.Module:
    conv = nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False)
    return nn.Sequential(OrderedDict(conv=conv, norm=nn.BatchNorm2d(outputs)))


class Bottleneck(nn.Module):
    """1x1, grouped 3x3, squeeze and excite, 1x1; a shortcut, projected where shapes differ."""

    def __init__(self, inputs: int, width: int, stride: int, group: int):
        super().__init__()
        squeezed, differs = round(inputs / 4), inputs != width or stride != 1
        self.conv1 = _conv_norm(inputs, width, 1)
        self.conv2 = _conv_norm(width, width, 3, stride, width // group)
        fc1, fc2 = Linear(width, squeezed), Linear(squeezed, width)
        self.se = nn.Sequential(OrderedDict(fc1=fc1, relu=nn.ReLU(), fc2=fc2, gate=nn.Sigmoid()))
        self.conv3 = _conv_norm(width, width, 1)
        self.shortcut = _conv_norm(inputs, width, 1, stride) if differs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.conv2(F.relu(self.conv1(x))))
        y = y * self.se(y.mean((2, 3)))[..., None, None]
        return F.relu(self.conv3(y) + self.shortcut(x))


class RegNet(Network):
    """A RegNetY, of images of any size; it says nothing of patches."""

    def __init__(self, spec: SimpleNamespace):
        super().__init__(spec, spec.widths[-1])
        inputs, stages = 32, []
        self.stem = _conv_norm(3, inputs, 3, 2)
        for width, depth in zip(spec.widths, spec.depths, strict=True):
            widths = [inputs] + [width] * (depth - 1)
            blocks = [Bottleneck(n, width, 1 + (not i), spec.group) for i, n in enumerate(widths)]
            stages.append(nn.Sequential(*blocks))
            inputs = width
        self.stages = nn.Sequential(*stages)

    def stream(self, images: Tensor) -> Tokens:
        return Tokens(self.stages(F.relu(self.stem(images))).flatten(2).mT)


def load(path: str | os.PathLike) -> Network:
    """Reads the model in a file that ``spvit_jax.save`` or ``save`` wrote.

    Returns:
      The model on the CPU in eval mode, in the file's dtype; ``.to`` and ``.train`` as ever.

    Raises:
      ModelFileError: not such a file, a supernet, or a damaged one.
      OSError: the file cannot be read.
    """
    with _explained(path), torch.no_grad():
        metadata, arrays = _read(path)
        model = _empty(metadata, len(arrays))
        _require_same({name: tuple(array.shape) for name, array in arrays.items()}, model)
        bad = [name for name, array in arrays.items() if not array.isfinite().all()]
        _require(not bad, f"damaged: {', '.join(bad[:5])} holds what is no number, or infinite")
        dtype = functools.reduce(torch.promote_types, (array.dtype for array in arrays.values()))
        model = model.to(dtype).to_empty(device="cpu")
        for buffer in model.buffers():
            buffer.zero_()  # among them how many batches a norm has seen
        for name, tensor, _ in _arrays(model):
            tensor.copy_(arrays[name].reshape(tensor.shape))
        return model


def save(model: Network, path: str | os.PathLike) -> None:
    """Writes a model of ``load`` for ``spvit_jax.load``, whole or not at all; bfloat16 as float32.

    Raises:
      ModelFileError: layers were replaced by others of another shape, or it is no ….safetensors.
      OSError: the file cannot be written, or is none; what was there is untouched.
    """
    rows = sorted(_arrays(model), key=lambda one: (-one[1].dtype.itemsize, one[0]))
    with _explained(path):
        _require(f"{path}".endswith(".safetensors"), "its name has to end in .safetensors")
        _require_same({name: shape for name, _, shape in rows}, _empty(model.metadata, len(rows)))
    target = os.path.realpath(path)  # what a link leads to
    if os.path.islink(target) or (os.path.exists(target) and not os.path.isfile(target)):
        raise FileExistsError(f"{path} is a folder, pipe, device or endless link; name a file")
    names = {dtype: name for name, dtype in DTYPES.items()}
    header: dict[str, Any] = {"__metadata__": model.metadata}
    body = bytearray()
    for name, tensor, shape in rows:
        wide = torch.float32 if tensor.dtype == torch.bfloat16 else tensor.dtype
        data = bytearray(tensor.numel() * wide.itemsize)
        if data:
            torch.frombuffer(data, dtype=wide).view(tensor.shape).copy_(tensor.detach())
        span = [len(body), len(body) + len(data)]
        header[name] = {"dtype": names[wide], "shape": shape, "data_offsets": span}
        body += data
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    temporary = f"{target}.{os.getpid()}.tmp"
    try:
        with open(temporary, "wb") as file:
            file.writelines((len(text).to_bytes(8, "little"), text, body))
        os.replace(temporary, target)
    finally:
        if os.path.exists(temporary):
            os.remove(temporary)


@contextlib.contextmanager
def _explained(path: str | os.PathLike) -> Iterator[None]:
    """Puts the file's name to what is wrong when a damaged header is believed."""
    try:
        yield
    except ModelFileError as error:
        raise ModelFileError(f"{path}: {error}") from None
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as e:
        raise ModelFileError(
            f"{path} says of itself what no model is: {type(e).__name__}: {e}; write it again with"
            " spvit_jax.save"
        ) from e


def _require(fits: bool, problem: str) -> None:
    if not fits:
        raise ModelFileError(problem)


def _require_same(shapes: dict[str, tuple[int, ...]], model: Network) -> None:
    expected = {name: shape for name, _, shape in _arrays(model)}
    wrong = sorted(name for name in {*shapes, *expected} if shapes.get(name) != expected.get(name))
    problems = [f"{n} is {shapes.get(n, 'missing')}, not {expected.get(n, 'any')}" for n in wrong]
    _require(not wrong, f"{len(wrong)} arrays do not fit the header: {'; '.join(problems[:5])}")


def _arrays(model: Network) -> Iterator[tuple[str, Tensor, tuple[int, ...]]]:
    """Each array's name in the file, its tensor with the axes in the file's order, its shape."""
    leaves = {"weight": "kernel", "running_mean": "mean", "running_var": "var"}
    for path, module in model.named_modules():
        own = [*module.named_parameters(path, False), *module.named_buffers(path, False)]
        for name, tensor in own:
            path, _, leaf = name.rpartition(".")
            shape = tensor.shape
            if leaf == "num_batches_tracked":
                continue
            if isinstance(module, nn.LayerNorm | nn.BatchNorm2d):
                leaf = "scale" if leaf == "weight" else leaf
            elif leaf == "weight":
                folded = isinstance(module, Convolution)
                order = (1, 0) if tensor.dim() == 2 else (1, 2, 3, 0) if folded else (2, 3, 1, 0)
                tensor = tensor.permute(order)
                shape = tensor.flatten(1, 2).shape if folded else tensor.shape
            yield f"{path}.{leaves.get(leaf, leaf)}".lstrip("."), tensor, tuple(shape)


def _read(path: str | os.PathLike) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Reads the metadata and the arrays of a safetensors file, of which nothing is believed."""
    stream = os.path.exists(path) and not (os.path.isfile(path) or os.path.isdir(path))
    _require(not stream, "a pipe or a device; copy it to a file")
    with open(path, "rb") as file:
        size, length = os.fstat(file.fileno()).st_size, int.from_bytes(file.read(8), "little")
        _require(8 + length <= size and length <= LONGEST, "damaged: its header ends behind it")
        header = json.loads(file.read(length).decode())
        metadata, arrays, end = header.pop("__metadata__", {}), {}, 0
        for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            shape, (start, stop) = entry["shape"], entry["data_offsets"]
            _require(entry["dtype"] in DTYPES, f"{name} is of {entry['dtype']}, not a float")
            dtype = DTYPES[entry["dtype"]]
            whole = all(type(n) is int and n >= 0 for n in (*shape, start, stop))
            fits = whole and start == end and stop - start == math.prod(shape) * dtype.itemsize
            _require(fits and 8 + length + stop <= size, f"damaged: {name} is {entry}")
            data, end = bytearray(file.read(stop - start)), stop
            array = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
            arrays[name] = array.view(shape)
        _require(8 + length + end == size, f"damaged: {size} bytes, not {8 + length + end}")
    return metadata, arrays


def _empty(metadata: dict[str, str], most: int) -> Network:
    """Builds the model that a header describes, without numbers; of ``most`` blocks at most."""
    _require(HEADER in metadata, "not a model of spvit_jax; write it with spvit_jax.save")
    values = json.loads(metadata[HEADER])
    version, form, about = values["version"], values["form"], values.get("about", {})
    _require(
        version in VERSIONS,
        f"its format version is {version}, this file reads {VERSIONS}; take the spvit_torch.py of"
        " the spvit_jax that wrote it",
    )
    _require(form in FORMS, f"{form!r} is none of {FORMS}; if a supernet, prune it first")
    entries: dict[str, Any] = dict(values["spec"])
    kind = entries.pop("type")
    known = SPECS[kind]
    temperature = entries.pop("temperature", values.get("temperature", TEMPERATURES.get(kind)))
    fields = {name: tuple(v) if isinstance(v, list) else v for name, v in entries.items()}
    kinds = {name: (type(v), int)[: 1 + isinstance(v, float)] for name, v in known.items()}
    kinds["image_size"] = (int, tuple)
    wrong = [n for n, v in fields.items() if n not in known or type(v) not in kinds[n]]
    wrong += [n for n, v in fields.items() if isinstance(v, float) and not LEAST <= v <= MOST]
    _require(not wrong, f"no {kind} of this file's has such {', '.join(wrong)}: {entries}")
    spec = SimpleNamespace(**known | fields)
    depth = sum(getattr(spec, "depths", ())) + getattr(spec, "depth", 0)
    _require(depth <= most, f"it cannot have {depth} blocks, of {most} arrays")
    _require(form != "shared" or LEAST <= temperature <= MOST, f"its temperature is {temperature}")
    temperature = temperature if form == "shared" else None
    convolution = functools.partial(Convolution, norm=form != "deploy", temperature=temperature)
    model: Network
    with torch.device("meta"):
        if kind == "RegNetSpec":
            model = RegNet(spec)
        else:
            network, blocks = (ViT, _vit(spec)) if kind == "ViTSpec" else (Swin, _swin(spec))
            blocks = blocks if form == "dense" else _pruned(blocks, values["architecture"])
            model = network(spec, blocks, convolution)
    model.metadata, model.crop_ratio = metadata, about.get("crop_ratio")
    trained = (tuple(about.get(name, ())) for name in ("class_names", "mean", "std"))
    model.class_names, model.mean, model.std = trained
    return model.eval()


def _vit(spec: SimpleNamespace) -> list[Geometry]:
    """The blocks of a dense ViT; of the last, class tokens alone may be read."""
    head_dim, token = spec.width // spec.heads, spec.pool == "token"
    sides, patch = _sides(spec.image_size), spec.patch_size
    fits = all(side > 0 == side % patch for side in sides) and spec.width % spec.heads == 0
    fits &= spec.pool in POOLS and (spec.class_token if token else not spec.distilled)
    fits &= not spec.rotary or (spec.rotary in ROTARY and head_dim % 4 == 0)
    _require(fits, f"there is no such ViT: {vars(spec)}")
    class_tokens = spec.class_token + spec.distilled
    fields = {name: getattr(spec, name) for name in ("qk_norm", "gated", "activation", "epsilon")}
    block = Geometry(
        width=spec.width, head_dim=head_dim, heads=spec.heads, hidden=spec.hidden,
        grid=(sides[0] // patch, sides[1] // patch), prefix=class_tokens + spec.registers, **fields,
    )  # fmt: skip
    alone = token and not spec.patches
    return [block] * (spec.depth - 1) + [block._replace(read=class_tokens if alone else None)]


def _swin(spec: SimpleNamespace) -> list[Geometry]:
    """The blocks of a dense Swin; every second shifts its windows, if there are several."""
    blocks = []
    for stage, (depth, heads, hidden) in enumerate(
        zip(spec.depths, spec.heads, spec.hidden, strict=True)
    ):
        width, patch = spec.width << stage, spec.patch_size << stage
        height, across = _sides(spec.image_size)
        fits = height % patch == 0 == across % patch and width % heads == 0
        grid = rows, columns = height // patch, across // patch
        high, wide = min(spec.window, rows), min(spec.window, columns)
        fits = fits and rows % high == 0 == columns % wide
        _require(fits, f"there is no such Swin: {vars(spec)}")
        block = Geometry(
            width, width // heads, heads, hidden, grid, spec.epsilon, window=(high, wide)
        )
        shift = high // 2 if high < rows else 0, wide // 2 if wide < columns else 0
        blocks += [block._replace(shift=shift if i % 2 else (0, 0)) for i in range(depth)]
    return blocks


def _sides(size: int | tuple[int, int]) -> tuple[int, int]:
    """Height and width of an image size, which may be one number."""
    return (size, size) if isinstance(size, int) else size


def _pruned(blocks: list[Geometry], architecture: dict[str, Any]) -> list[Geometry]:
    """What an architecture leaves of a dense model's blocks."""
    geometries, away = [], 0
    heads = architecture.get("heads") or [block.heads for block in blocks]
    merges = architecture.get("merges") or [0] * len(blocks)
    dims = [tuple(kept) for kept in architecture.get("dims") or [()] * len(blocks)]
    entries = architecture["ops"], heads, architecture["ffn"], merges, dims
    for i, (block, op, *kept, merged, of) in enumerate(zip(blocks, *entries, strict=True)):
        count, hidden = (n if type(n) is int else len(n) for n in kept)
        count = count if op == "msa" else block.heads
        most = 0 if block.window or block.read is not None else (math.prod(block.grid) - away) // 2
        fits = op in OPS and 0 <= merged <= most and not (op == "conv3x3" and away)
        fits &= 0 < count <= block.heads and 0 <= hidden <= block.hidden
        fits &= not of or ((op, len(of)) == ("msa", 2) and 0 < min(of) <= max(of) <= block.head_dim)
        _require(
            fits, f"block {i} cannot be {op!r}, {kept}, {of}, and merge {merged} behind {away}"
        )
        block = block._replace(op=op, heads=count, hidden=hidden, merges=merged, dims=of or None)
        geometries.append(block)
        away += merged
    return geometries
