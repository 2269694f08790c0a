"""Rewards to train against and judges that only measure, each in a file; `catalogue` names them all."""
