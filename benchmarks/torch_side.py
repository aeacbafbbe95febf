"""timm's model for ``accelerator.py``: training steps and inference through ``torch.compile``.

Peak memory is what PyTorch's tensors take during a step, without what the other contestant holds.
"""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

from sides import NO_TIME, Begin, Prepared, Run, reason

NAMES = ("training, PyTorch", "inference, PyTorch")
MEAN = STD = 127.5  # of uint8 pixels, as on the other side

Step = Callable[[], Any]


def introduce(platform: str) -> tuple[dict, dict[str, str]]:
    """Names the libraries.

    Raises:
      ImportError: torch or timm is missing.
      RuntimeError: PyTorch cannot use what JAX calls ``platform``.
    """
    import timm
    import torch

    if platform != ("gpu" if torch.cuda.is_available() else "cpu"):
        raise RuntimeError(f"PyTorch {torch.__version__} cannot use this {platform}")
    return {}, {"torch": torch.__version__, "timm": timm.__version__}


def prepare(sizes: dict[str, int], batch: int, backend: str, seconds: float) -> Prepared:
    """Compiles by running; after ``seconds`` it begins no other contestant.

    Args:
      sizes: the fields of a plain ``ViTSpec``.
      batch: images a step.
      backend: of ``torch.compile``.
    """
    import torch

    end = time.monotonic() + seconds
    begin: dict[str, Begin] = {}
    failed: dict[str, str] = {}
    for name, make in zip(NAMES, (_training, _inference), strict=True):
        if time.monotonic() > end:
            failed[name] = NO_TIME
            continue
        try:
            begin[name] = partial(_begin, *_compiled(make, sizes, batch, backend))
        except Exception as error:
            failed[name] = reason(error)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # others compile beside this process
    return begin, failed


def _compiled(
    make: Callable[..., Step], sizes: dict[str, int], batch: int, backend: str
) -> tuple[Step, float, int]:
    """A step, the seconds of its first call, and the bytes it holds between calls."""
    before, step, start = _allocated(), make(sizes, batch, backend), time.perf_counter()
    step()
    _wait()
    return step, time.perf_counter() - start, _allocated() - before


def _begin(step: Step, seconds: float, held: int) -> tuple[Run, dict[str, Any]]:
    import torch

    def run(count: int) -> None:
        for _ in range(count):
            step()
        _wait()

    facts = {"compile_seconds": seconds}
    if torch.cuda.is_available():
        others = _allocated() - held
        torch.cuda.reset_peak_memory_stats()
        run(1)
        facts["peak_memory_mb"] = (torch.cuda.max_memory_allocated() - others) / 2**20
    return run, facts


def _model(sizes: dict[str, int]) -> tuple[Any, str]:
    """``timm.create_model``'s ViT of these sizes, which computes every token, and its device."""
    import torch
    from timm.models.vision_transformer import VisionTransformer

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = VisionTransformer(
        img_size=sizes["image_size"],
        patch_size=sizes["patch_size"],
        num_classes=sizes["classes"],
        embed_dim=sizes["width"],
        depth=sizes["depth"],
        num_heads=sizes["heads"],
        mlp_ratio=sizes["hidden"] / sizes["width"],
    )
    return model.to(device), device


def _training(sizes: dict[str, int], batch: int, backend: str) -> Step:
    """A whole step: normalising uint8 images, forward, backward and AdamW on float32 weights."""
    import torch

    model, device = _model(sizes)
    adamw = torch.optim.AdamW(model.parameters(), 1e-4, weight_decay=0.05, fused=device == "cuda")
    shape = (batch, 3, sizes["image_size"], sizes["image_size"])
    images = torch.randint(0, 256, shape, dtype=torch.uint8, device=device)
    labels = torch.randint(0, sizes["classes"], (batch,), device=device)

    def loss(images: Any, labels: Any) -> Any:
        with torch.autocast(device, torch.bfloat16):
            logits = model((images.float() - MEAN) / STD)
        return torch.nn.functional.cross_entropy(logits.float(), labels)

    compiled = torch.compile(loss, backend=backend, dynamic=False)

    def step() -> None:
        compiled(images, labels).backward()
        adamw.step()
        adamw.zero_grad()

    return step


def _inference(sizes: dict[str, int], batch: int, backend: str) -> Step:
    """Logits of normalised images, weights in bfloat16."""
    import torch

    model, device = _model(sizes)
    model = model.eval().to(torch.bfloat16)
    shape = (batch, 3, sizes["image_size"], sizes["image_size"])
    images = torch.randn(shape, device=device).to(torch.bfloat16)
    compiled = torch.compile(model, backend=backend, dynamic=False)

    def step() -> Any:
        with torch.inference_mode():
            return compiled(images)

    return step


def _allocated() -> int:
    import torch

    return torch.cuda.memory_allocated()  # 0 without a GPU


def _wait() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
