"""The mathematics of diffusion, without networks.

- `angles.py`: z_t, targets and losses as rotations; where to begin
- `schedules.py`, `betas.py`: noise schedules; `samplers.py`: DDIM and ancestral steps
- `preconditioning.py`: what networks of Karras et al. 2022 are given, and put out
- `conditioning.py`: what a network is told beside z and its noise level
- `wrappers.py`: networks of other conventions; `rng.py`: every random number, by counter
"""
