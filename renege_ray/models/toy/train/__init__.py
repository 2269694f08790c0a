"""Trains everything that the embedded model is made of: `python -m renege_ray.models.toy.train`."""
