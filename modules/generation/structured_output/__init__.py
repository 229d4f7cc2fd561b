"""The form that a reply must have: from what a request says to a grammar, tried in a process of its own before a loader gets it."""
