"""Refining a negative embedding for each prompt by itself."""
