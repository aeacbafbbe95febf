"""What a model sees in images: the likeliest classes of each."""

import spvit_jax as spvit

model = spvit.load("hf-hub:timm/deit_small_patch16_224.fb_in1k")
for seen in spvit.predict(model, "photos/", top=3):
    print(*(f"{share:6.1%} {name}" for name, share in seen), sep="\n")
