"""The tests; they mirror modules/."""
