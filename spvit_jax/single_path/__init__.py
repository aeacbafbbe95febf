"""The paper and what we add: one set of attention weights contains every candidate operation.

``ops`` are the operations, ``axes`` what a block may lose, ``space`` what a search may touch;
``gates`` chooses, ``supernet`` computes under a choice, ``prices`` counts it, ``budget`` bounds it,
``architecture`` records it, ``prune`` makes it real.
"""
