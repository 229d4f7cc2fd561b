"""Chat history, and the replies that are written into it."""
