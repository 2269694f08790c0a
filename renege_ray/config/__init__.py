"""The typed configuration of a run, where it comes from (presets, YAML, flags), and its faults in words."""
