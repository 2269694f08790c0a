"""Finding a model, checking its files, reading its weights, and what is added to them."""
