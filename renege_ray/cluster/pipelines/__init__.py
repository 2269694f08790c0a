"""Jobs on Ray Data that go on where they were killed: per-prompt tuning and evaluation."""
