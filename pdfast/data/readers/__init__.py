"""Readers of data sets: one module a kind of file, each of which trusts nothing in the file.

A reader gives either arrays, of sets whose images have one size, or pictures yet to be decoded,
which pictures.py crops and resizes. It checks each size that a file declares before it allocates
for it, reads in parts that a signal can come between, runs no code from the file, and raises
UsageError naming the file for all that is wrong. It registers itself with registry.py, where it
says which sources are its own.
"""
