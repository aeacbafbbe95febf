"""What timm's code says of the architectures whose names its files give; of no others."""

import re
from typing import NamedTuple

PLAIN = r"^vit_[a-z0-9]+_patch\d+(_plus|_36x1)?(_reg\d)?(_gap|_map)?_\d+(_miil)?$"
FAMILIES = r"(vit|deit|deit3|flexivit|eva|eva02|beit|beitv2|swin)_"
HEADS = (  # a part of a name, and the heads of each block; of Swin, in the first stage
    (r"^swin_(tiny|small)_patch4_", 3),
    (r"^swin_base_patch4_", 4),
    (r"^swin_large_patch4_", 6),
    (r"^swin_s3_", 3),
    (r"_base_patch16_gap_224$", 16),
    (r"_base_patch(32|16)_plus_", 14),
    (r"_giant_patch1[46]_(reg\d_)?(dinov2|tipsv2|lingbot)$", 24),
    (r"_huge_plus_", 20),
    (r"_7b_", 32),
    (r"_tiny_", 3),
    (r"_(xsmall|wee)_", 4),
    (r"_little_", 5),
    (r"_small_((plus|distilled)_)?patch|^flexivit_small$", 6),
    (r"_(medium|mediumd)_", 8),
    (r"_betwixt_", 10),
    (r"_base_(distilled_)?patch|^flexivit_base$", 12),
    (r"_so150m2_", 13),
    (r"_so150m_", 14),
    (r"_(large|huge|so400m|giant|giantopt|gigantic|enormous|intern300m)_patch", 16),
    (r"^flexivit_large$", 16),
)
NO_HEADS = r"_resnet|_r\d+_|_r26_|radio|sapiens|^vit_pe_|x2_224$|_xp_|_d?pwee_|^beit3"
EPSILONS = (
    (r"^swin_", 1e-5),
    (r"^(eva|eva02|beit|beitv2|deit|deit3|flexivit)_", 1e-6),
    (r"_clip_|_dinov3|_lingbot$", 1e-5),
    (r"_siglip_|_dinov2$|_tipsv2$", 1e-6),
    (PLAIN, 1e-6),
)
ACTIVATIONS = (
    (r"_clip_quickgelu_", "quick_gelu"),
    (r"_patch32_siglip_|_so400m_patch16_siglip_|_giantopt_", "gelu_tanh"),
    (r"_large_patch16_siglip_(gap_)?512$", "gelu_tanh"),
    (r"^eva02_enormous_", "gelu"),
    (r"^eva02_|_giant_.*_(dinov2|tipsv2|lingbot)$|_plus_patch16_dinov3|_7b_patch16_dinov3", "silu"),
    (r"^(swin|eva|beit|beitv2|deit|deit3|flexivit)_", "gelu"),
    (r"_clip_|_siglip_|_dinov2$|_tipsv2$|_dinov3|_lingbot$", "gelu"),
    (PLAIN, "gelu"),
)
ROTARIES: tuple[tuple[str, tuple[str, float, int | None] | None], ...] = (  # kind, base, grid
    (r"_dinov3(_qkvb)?$|_lingbot$", ("dinov3", 100.0, None)),
    (r"^eva02_enormous_", None),
    (r"^eva02_", ("eva", 10000.0, 16)),
)


class Known(NamedTuple):
    """What a name says; None: nothing.

    ``heads`` of a block, of Swin in the first stage; ``epsilon`` of the layer norms;
    ``activation`` of the FFNs; ``patch_size`` in pixels; ``rotary`` kind, base and grid of the
    rotary embedding; ``staged``, whether the width grows from stage to stage.
    """

    heads: int | None = None
    epsilon: float | None = None
    activation: str | None = None
    patch_size: int | None = None
    rotary: tuple[str, float, int | None] | None = None
    staged: bool = False


def architecture(name: str) -> Known:
    """What timm's code says of an architecture, by its name without the tag of the weights."""
    if not re.match(FAMILIES, name):
        return Known(staged=True)
    patch = re.search(r"_patch(\d+)", name)
    return Known(
        heads=None if re.search(NO_HEADS, name) else _first(HEADS, name),
        epsilon=_first(EPSILONS, name),
        activation=_first(ACTIVATIONS, name),
        patch_size=int(patch[1]) if patch else None,
        rotary=_first(ROTARIES, name),
        staged=name.startswith("swin"),
    )


def _first(table: tuple, name: str):
    """What the first row that a name matches says."""
    return next((value for pattern, value in table if re.search(pattern, name)), None)
