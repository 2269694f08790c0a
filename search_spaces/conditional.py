"""A conditional space, as an example: a start from a handwritten negative is near a good point already, so it is held
there by a penalty on the drift; a start from null is free to go far. Only one of the two has each parameter.
"""

OBJECTIVES = [{"metric": "eval/global/reward/mean", "direction": "maximize"}]
OVERRIDES = {"validation.every": {"share": 0.15, "of": "optim.steps"}}
SCHEDULER = {"name": "asha", "grace": 0.15, "reduction_factor": 3}
TRIALS = 24
# What the preset's own settings are for names that are no fields.
DEFAULTS = {"stride": 1.0}


def space(trial, preset):
    """Draw a point; a parameter with the name of a field sets that field, and so does what is returned."""
    lr = preset.optim.lr
    if trial.suggest_categorical("optim.init", ["null", "handwritten"]) == "handwritten":
        trial.suggest_float("optim.lr", 0.05 * lr, lr, log=True)
        trial.suggest_float("optim.drift_penalty", 1e-4, 1e-1, log=True)
        return {}
    return {"optim.lr": lr * trial.suggest_float("stride", 0.3, 4.0, log=True), "optim.drift_penalty": 0.0}
