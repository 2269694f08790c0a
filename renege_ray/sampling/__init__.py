"""Making images of prompts, and what all that make them share: batches, keyed randomness, encoded prompts, rewards."""
