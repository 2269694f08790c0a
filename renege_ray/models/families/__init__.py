"""The families of models, a file each, and the registry that lists them."""
