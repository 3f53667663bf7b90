"""What is said: on the screen (`progress.py`), in log.txt (`log.py`), of errors (`messages.py`)."""
