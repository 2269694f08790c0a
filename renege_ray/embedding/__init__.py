"""What people do with an embedding file: look into it, convert it, publish it (`python -m renege_ray.embedding`)."""
