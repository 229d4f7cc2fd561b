"""Logins of the page, as --gradio-auth and --gradio-auth-path give them: user:password pairs."""

from __future__ import annotations

from pathlib import Path

from modules.errors import UserError


def read_logins(text: str, path: str = "") -> dict[str, str]:
    """User → password, in the order given. Raises UserError for a pair without both. Never repeats a password in a message."""
    pairs = [pair for pair in text.split(",") if pair.strip()]
    if path:
        try:
            lines = Path(path).read_text(encoding="utf-8").splitlines()
        except OSError as error:
            raise UserError(f"--gradio-auth-path: {path} cannot be read ({error.strerror}).") from None
        pairs += [pair for line in lines if not line.strip().startswith("#") for pair in line.split(",") if pair.strip()]
    logins: dict[str, str] = {}
    for place, pair in enumerate(pairs, 1):
        user, colon, password = pair.strip().partition(":")
        if not (colon and user.strip() and password.strip()):
            raise UserError(f"--gradio-auth: login {place} is not of the form user:password.")
        logins[user.strip()] = password.strip()
    return logins
