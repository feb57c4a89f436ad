"""Commands for a short session on a GPU: check the kernels, measure their times, compare with the baselines.

    python3 -m benchmarks.gpu right|where|claims|all [--budget SECONDS] [--output DIR]

``steps`` lists the steps of each command. ``runner`` runs each step as a process with a time limit and writes its
results immediately. ``work`` contains the programs of the steps. ``pack`` builds the libraries in advance on a machine
without a GPU. ``keep`` stores the returned results under benchmarks/results.
"""
