"""How a choice of the user is declared once, and what is derived from that declaration."""
