"""The configuration: a frozen dataclass a table of TOML, checked before anything starts.

- `schema.py`: all tables but [model], and how a config is read; a new field goes there
- `model.py`: [model], all that defines a network but its weights
- `names.py`, `detectors.py`: parameterizations, loss weights, detectors; `class_names.py`: classes
- `serialization.py`: TOML and JSON to dataclasses and back
- `formats.py`: the formats of what is stored, and what older ones mean
"""

from pdfast.config.schema import (
    BackendsConfig,
    Config,
    DataConfig,
    DistillConfig,
    EngineConfig,
    EvalConfig,
    NetConfig,
    TrainConfig,
    dump_config,
    load_config,
)

__all__ = [
    "BackendsConfig",
    "Config",
    "DataConfig",
    "DistillConfig",
    "EngineConfig",
    "EvalConfig",
    "NetConfig",
    "TrainConfig",
    "dump_config",
    "load_config",
]
