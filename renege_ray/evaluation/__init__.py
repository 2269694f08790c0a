"""Comparing negatives: images, figures, reports, and the paper's analyses."""
