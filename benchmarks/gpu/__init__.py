"""A short window on a GPU: three commands that say whether the kernels are right, where their time goes, what they win.

    python3 -m benchmarks.gpu right|where|claims|all [--budget SECONDS] [--output DIR]

``steps`` says what each command runs, ``runner`` how: every step is a process with a time limit, results are written as
they come. ``work`` has the programs of the steps. ``pack`` builds the libraries beforehand on a machine without a GPU,
``keep`` puts what came back under benchmarks/results.
"""
