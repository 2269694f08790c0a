"""How frozen networks of diffusers and transformers are run: what they keep, in which type, where, and compiled."""
