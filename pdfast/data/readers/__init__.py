"""Readers of data sets: one module per kind of file, none of which trusts the file.

A reader returns either arrays, for sets whose images have one size, or pictures yet to be decoded,
which pictures.py crops and resizes. It checks each size that a file declares before it allocates
memory for it, reads in parts so that a signal can interrupt it, runs no code from the file, and
raises UsageError naming the file for every fault. It registers itself with registry.py and declares
there which sources it reads.
"""
