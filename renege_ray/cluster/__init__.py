"""Where the package meets Ray, Optuna and MLflow; nothing outside this folder and jobs/ imports them."""
