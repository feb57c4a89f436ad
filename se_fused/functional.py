from .reference import batch_norm_act, batch_norm_squeeze_excite, squeeze_excite  # noqa: F401  (placeholder)
