"""Benchmark workloads: a block, a network and a converted network."""
