"""Training: jobs that run in their own processes and leave adapters behind."""
