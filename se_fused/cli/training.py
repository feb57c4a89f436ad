"""Training on radiographs: train."""
