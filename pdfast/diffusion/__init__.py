"""The mathematics of diffusion, without networks.

- `angles.py`: z_t, targets and losses as rotations; start reading here
- `schedules.py`, `betas.py`: noise schedules; `samplers.py`: DDIM and ancestral steps
- `preconditioning.py`: inputs and outputs of the networks of Karras et al. 2022
- `conditioning.py`: labels, guidance weights and other network inputs beside z and its noise level
- `wrappers.py`: networks of other conventions; `rng.py`: counter-based random numbers
"""
