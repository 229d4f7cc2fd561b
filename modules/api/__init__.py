"""The HTTP API: protocols in, engine events out."""
