"""One YAML file per device, every number with its source."""
