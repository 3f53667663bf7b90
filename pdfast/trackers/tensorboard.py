"""TensorBoard tracker: one event file in <run>/tensorboard, with the content of the run's files.

When a resumed run has dropped lines of metrics, the file is written anew, and each point keeps its
time. Only the package's file formats are used: its writer thread prints a traceback when the disk
is full.
"""

import itertools
import os
import socket
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.compat.proto.types_pb2 import DT_STRING
from tensorboard.summary.writer.record_writer import RecordWriter

from pdfast.config.schema import Config, dump_config
from pdfast.trackers import Point

SUFFIX = ".pdfast"  # of event files that pdfast wrote and may replace
_numbers = itertools.count()


def start(run: Path, config: Config) -> "TensorBoard":
    """Start the tracker of a run directory."""
    return TensorBoard(run / "tensorboard", config)


class TensorBoard:
    """A writer of a run's events."""

    def __init__(self, folder: Path, config: Config) -> None:
        self._folder, self._config = folder, config
        self.where = f"tensorboard --logdir {folder}"
        self._before: list[Path] = []
        self._times: dict[tuple[str, int], float] = {}
        self._writer: Any = None

    def begin(self) -> None:
        """Begin a new event file."""
        self.close(0)
        self._folder.mkdir(exist_ok=True)
        self._before = sorted(self._folder.glob(f"*{SUFFIX}"))
        self._times = _times(self._before)
        # TensorBoard reads a folder's files in the order of their names.
        name = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}"
        path = self._folder / f"{name}.{os.getpid()}.{next(_numbers)}{SUFFIX}"
        self._writer = RecordWriter(path.open("wb"))
        self._write(Event(wall_time=time.time(), file_version="brain.Event:2"))
        # A TensorBoard that has read the former file then drops its points.
        anew = SessionLog(status=SessionLog.START)
        self._write(Event(wall_time=time.time(), step=0, session_log=anew))
        self._text("config", f"```toml\n{dump_config(self._config)}```", 0)

    def add(self, point: Point) -> None:
        """Write the point's values as scalars."""
        values = point.values.items()
        self._add([Summary.Value(tag=tag, simple_value=x) for tag, x in values], point.step)

    def picture(self, name: str, path: Path, step: int) -> None:
        """Write a PNG, unchanged."""
        with Image.open(path) as opened:
            width, height = opened.size
            channels = len(opened.getbands())
        image = Summary.Image(
            width=width,
            height=height,
            colorspace=channels,
            encoded_image_string=path.read_bytes(),
        )
        self._add([Summary.Value(tag=name, image=image)], step)

    def report(self, run: Path, step: int) -> None:
        """Write report.md as text, and report.png as a picture."""
        lines = (run / "report.md").read_text("utf-8").splitlines()
        self._text("report", "\n".join(line for line in lines if not line.startswith("![")), step)
        self.picture("report/distances", run / "report.png", step)

    def flush(self) -> None:
        """Make the new file visible to TensorBoard, and delete the former files."""
        self._writer.flush()
        while self._before:
            self._before.pop().unlink()

    def close(self, code: int) -> None:
        """Close the event file."""
        if self._writer is not None:
            self._writer.close()

    def _text(self, tag: str, text: str, step: int) -> None:
        """Write Markdown."""
        metadata = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="text"))
        shape = TensorShapeProto(dim=[TensorShapeProto.Dim(size=1)])
        tensor = TensorProto(dtype=DT_STRING, string_val=[text.encode()], tensor_shape=shape)
        self._add([Summary.Value(tag=tag, metadata=metadata, tensor=tensor)], step)

    def _add(self, values: Sequence[Any], step: int) -> None:
        """Write one event, at its time in a former file if it was there."""
        when = self._times.get((values[0].tag, step), time.time())
        self._write(Event(wall_time=when, step=step, summary=Summary(value=values)))

    def _write(self, event: Any) -> None:
        self._writer.write(event.SerializeToString())


def _times(files: Iterable[Path]) -> dict[tuple[str, int], float]:
    """Return the time of each event of earlier files, by its first tag and step."""
    return {
        (event.summary.value[0].tag, event.step): event.wall_time
        for file in files
        for event in LegacyEventFileLoader(str(file)).Load()
        if event.summary.value
    }
