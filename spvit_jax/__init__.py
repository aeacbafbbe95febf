"""SPViT in JAX: pruning self-attention into convolution in a single path."""
