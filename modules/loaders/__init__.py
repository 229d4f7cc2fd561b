"""From a ModelSpec to a LoadedModel: one file for each way of loading."""
