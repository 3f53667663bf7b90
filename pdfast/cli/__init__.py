"""The command line: `main.py` parses, `commands/` has a module a group of commands."""
