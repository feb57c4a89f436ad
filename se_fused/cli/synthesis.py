"""Synthetic radiographs: synth."""
