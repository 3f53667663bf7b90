#!/usr/bin/env bash
# tyro: a docstring below a dataclass field keeps its line breaks in --help, and each line is wrapped
# again; comments and docstrings elsewhere are joined into paragraphs.
#
# tyro 1.0.17, docstring-parser 0.18.0, Python 3.11.
# tyro joins lines that begin with a letter, and leaves breaks before any other, so that lists stay.
# For the docstring below a field it does so before it removes the indentation: every line but the
# first begins with a space, so no line is joined. A source wrapped at 100 columns then shows in a
# terminal of 80 as full and nearly empty lines in turn. The same text as a comment above the field,
# or as dataclasses.field(metadata={"help": ...}), is one paragraph.
#
#     docstring: 2 lines for 60 characters, in a terminal of 200 columns
#     comment:   1 line
#
# Exits 0 as long as this is so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
python="$folder/env/bin/python"
"$python" -m pip install --quiet 'tyro==1.0.17' 'docstring-parser==0.18.0'

cat > "$folder/options.py" <<'PY'
import contextlib
import io
import os
from dataclasses import dataclass

os.environ["COLUMNS"] = "200"
import tyro


@dataclass
class Below:
    size: int = 8
    """Height and width of the images,
    in pixels, after the centre crop."""


@dataclass
class Above:
    # Height and width of the images,
    # in pixels, after the centre crop.
    size: int = 8


def shown(kind):
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        tyro.cli(kind, args=["--help"])
    words = ("Height", "crop.")
    return [line.strip() for line in text.getvalue().splitlines() if any(w in line for w in words)]


below, above = shown(Below), shown(Above)
print("tyro", tyro.__version__)
print("docstring:", *below, sep="\n    ")
print("comment:  ", *above, sep="\n    ")
assert len(below) == 2, below
assert len(above) == 1, above
PY
"$python" "$folder/options.py"
