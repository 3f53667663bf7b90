"""The configuration: its schema, [model], names, and TOML and JSON to dataclasses and back."""
