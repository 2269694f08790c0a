"""Ray: starting it, what it has room for, signals, and messages between processes."""
