"""The whole trade-off as a value: a model for each share of the MACs, made when it is asked for."""

import spvit_jax as spvit

dense = spvit.load("hf-hub:timm/deit_small_patch16_224.fb_in1k")
curve = spvit.frontier(dense, "photos/", macs=(0.8, 0.6, 0.4))
print(curve)  # a table; in a notebook `curve` alone shows it with the figure
curve.plot().savefig("frontier.png")
near = [point for point in curve if point.quality.cosine > 0.9]
spvit.save(near[-1].model, "near.safetensors")  # the smallest that is near enough
