"""Distances and scores of samples, and the report."""
