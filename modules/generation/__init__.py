"""From a request to a stream of events, whatever kind of model answers."""
