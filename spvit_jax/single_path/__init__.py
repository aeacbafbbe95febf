"""The paper: one set of attention weights contains every candidate operation.

``gates`` chooses, ``supernet`` computes under a choice, ``cost`` counts it, ``budget`` bounds it,
``architecture`` records it, ``prune`` makes it real.
"""
