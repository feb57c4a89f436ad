"""Judging trained models: evaluate, compare-models."""
