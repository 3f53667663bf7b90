"""Output: on the screen (`progress.py`), in log.txt (`log.py`), error messages (`messages.py`)."""
