"""Data sets of radiographs: prepare, audit."""
