"""The version, read by setup.py and by the package."""

__version__ = "0.2.0.dev0"
