"""Prompts: their sources, the files they are read from, and their refinement by a language model."""
