"""Who is logged in, and who guesses."""
