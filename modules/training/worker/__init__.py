"""The process that trains: one run folder in, checkpoints, events and an adapter out."""
