"""Text-to-image models behind one small protocol: `load.load_model` makes a `TextToImage` of a configuration."""
