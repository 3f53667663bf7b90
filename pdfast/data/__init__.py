"""Data sets: read, prepared once, and held by all processes."""
