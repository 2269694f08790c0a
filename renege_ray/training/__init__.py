"""Learning one negative embedding for all prompts."""
