"""Results of ``pytest benchmarks/ --benchmark-json=FILE`` for people: a document, pictures, and what changed."""
