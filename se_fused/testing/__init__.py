"""Verification of results: derived error bounds, and a check of every function against float64."""
