"""The commands: each is a dataclass of its flags, and its `run` carries it out.

- `runs.py`: train, distill
- `models.py`: sample, eval, compare
- `exchange.py`: import, export
- `tools.py`: data, stats, doctor

Nothing here imports torch before a command runs.
"""

from functools import reduce
from operator import or_
from typing import Annotated, Any

from tyro.conf import subcommand

from pdfast.cli.commands.exchange import Export, Import
from pdfast.cli.commands.models import Compare, Eval, Sample
from pdfast.cli.commands.runs import Distill, Train
from pdfast.cli.commands.shared import DEFAULT_CONFIG as DEFAULT_CONFIG
from pdfast.cli.commands.tools import Data, Doctor, Stats

Command = Train | Distill | Sample | Eval | Compare | Import | Export | Data | Stats | Doctor
COMMANDS: dict[str, type[Command]] = {
    "train": Train,
    "distill": Distill,
    "sample": Sample,
    "eval": Eval,
    "compare": Compare,
    "import": Import,
    "export": Export,
    "data": Data,
    "stats": Stats,
    "doctor": Doctor,
}


def _subcommand(name: str, kind: type[Command]) -> Any:
    """Return the command as tyro takes it, described by the first line of its docstring."""
    return Annotated[kind, subcommand(name, description=(kind.__doc__ or "").partition("\n")[0])]


PARSED: Any = reduce(or_, (_subcommand(name, kind) for name, kind in COMMANDS.items()))
"""Union of the commands, as tyro takes it."""
