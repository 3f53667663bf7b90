"""The configuration: one frozen dataclass per TOML table, checked before anything starts.

- `schema.py`: [data], [eval], [engine], [backends], the whole config, and how it is read
- `loops.py`: [train] and [distill]
- `model.py`, `edm.py`: [model] and [model.edm], all that defines a network except its weights
- `names.py`, `detectors.py`: parameterizations, loss weights, detectors; `class_names.py`: classes
- `serialization.py`: conversion of TOML and JSON to dataclasses and back
- `formats.py`: the formats of stored files, and the meaning of older ones; `former.py`: names of
  fields in earlier versions
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
