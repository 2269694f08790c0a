"""What people do with learned negatives: name them, use them in diffusers, look into them, convert, publish, check."""
