"""What is benchmarked: a block, a network, a converted network."""
