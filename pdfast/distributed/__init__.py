"""Several processes of one run, their device, and their signals.

- `collectives.py`: the session of a call, and what its processes tell each other
- `joining.py`, `heartbeat.py`, `board.py`: how they meet, and notice that one has ended
- `signals.py`: signals as a flag that long work polls
- `device.py`, `memory.py`, `settings.py`: the device, the memory there is, PyTorch's settings
"""
