"""Images in, device arrays out: ``sources`` → ``transforms`` → ``pipeline``.

A ``Source`` is random access over decoded RGB images and labels. ``pipeline`` shuffles, transforms
and batches it with Grain; which images a step sees, and how they are cropped, is a pure function
of (seed, step), so a resumed run needs no iterator state. Nothing here imports TensorFlow.
"""
