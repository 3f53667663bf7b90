"""Several processes of one run, their device, and their signals.

- `collectives.py`: the session of a call, and the messages between its processes
- `joining.py`, `heartbeat.py`, `board.py`: how processes meet, and notice that one has ended
- `signals.py`: signals as a flag that long work polls
- `device.py`, `memory.py`, `settings.py`: the device, the available memory, PyTorch's settings
"""
