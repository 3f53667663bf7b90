"""What TensorBoard and Weights & Biases have of a run, read back from their own files."""

import json
import struct

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from wandb.proto.wandb_internal_pb2 import Record

BLOCK = 2**15  # bytes of W&B's files, which are logs of LevelDB's form behind 7 bytes of their own


def shown(run):
    """TensorBoard's own reader of a run, which drops nothing."""
    everything = {"scalars": 0, "images": 0, "tensors": 0}
    reader = EventAccumulator(str(run / "tensorboard"), size_guidance=everything)
    reader.Reload()
    return reader


def events(run):
    """What TensorBoard shows: (scalars, pictures, texts) by tag, as lists of (step, value)."""
    reader = shown(run)
    tags = reader.Tags()
    scalars = {t: [(e.step, e.value) for e in reader.Scalars(t)] for t in tags["scalars"]}
    images = {
        t: [(e.step, e.encoded_image_string) for e in reader.Images(t)] for t in tags["images"]
    }
    texts = {
        t: [(e.step, e.tensor_proto.string_val[0].decode()) for e in reader.Tensors(t)]
        for t in tags["tensors"]
    }
    return scalars, images, texts


def sessions(run):
    """W&B's offline sessions, in order: the folder of each and its records."""
    return [
        (file.parent, list(_records(file.read_bytes())))
        for file in sorted((run / "wandb").glob("offline-run-*/*.wandb"))
    ]


def history(records):
    """(step, {name: value}) of each row of a session."""
    return [
        (
            record.history.step.num,
            {
                ".".join(item.nested_key) or item.key: json.loads(item.value_json)
                for item in record.history.item
            },
        )
        for record in records
        if record.WhichOneof("record_type") == "history"
    ]


def _records(content):
    at, parts = 7, []
    while at + 7 <= len(content):
        if BLOCK - at % BLOCK < 7:
            at += BLOCK - at % BLOCK
            continue
        _, length, kind = struct.unpack_from("<IHB", content, at)
        at += 7 + length
        parts.append(content[at - length : at])
        if kind in (1, 4):  # whole, or the last part
            record = Record()
            record.ParseFromString(b"".join(parts))
            yield record
            parts = []
