"""The forms in which a chat goes to a file and comes back: one module each, with NAME, SUFFIX, `write` and `read`."""
