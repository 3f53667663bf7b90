"""The command line.

- `main.py`: parses the arguments; `commands/`: the commands
- `flags.py`: the flags and their help; `mistakes.py`: messages about wrong arguments
"""
