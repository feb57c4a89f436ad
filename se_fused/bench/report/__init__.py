"""Reports of ``pytest benchmarks/ --benchmark-json=FILE``: a document, pictures, and comparisons of two runs."""
