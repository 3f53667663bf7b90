"""Noise schedules, angles, samplers, and wrappers of networks of other conventions."""
