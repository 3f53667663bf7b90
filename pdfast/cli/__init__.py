"""The command line: `main.py` parses the arguments, `commands/` has the commands."""
