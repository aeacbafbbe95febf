"""Half of a DeiT's MACs in five lines: minutes on a laptop, no labels, no training."""

import spvit_jax as spvit

dense = spvit.load("hf-hub:timm/deit_small_patch16_224.fb_in1k")
small = spvit.compress(dense, "photos/", macs=0.5)
spvit.save(small, "small.safetensors")
spvit.export(small, "small.onnx")
