"""MLflow: the run of a job, and what is kept on disk until the store has it."""
