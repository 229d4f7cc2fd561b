"""The mathematics of choosing a token: one file per family, and `rows`, which applies them to a batch."""
