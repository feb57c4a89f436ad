"""Machine code of the CUDA kernels, read and executed without a GPU, to count what one warp of a launch does.

:mod:`parse` reads the disassembler's text, :mod:`operations` has what each instruction computes, and :mod:`warp` runs
one warp with a launch's real parameters. It counts instructions by the unit that executes them, memory sectors and bank
conflicts, and how long the warp takes if nothing else runs.
"""
