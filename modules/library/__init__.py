"""What is on disk, as typed entries."""
