"""The version of the package, which pyproject.toml and ``se_fused.__version__`` read from here."""

__version__ = "0.1.0"
