"""The global training on Ray Train."""
