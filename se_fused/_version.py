"""The version's one home: pyproject.toml and ``se_fused.__version__`` read it from here."""

__version__ = "0.1.0"
