"""The paper's analyses of an embedding and its model, a file each: `renege-ray analyses --help`."""
