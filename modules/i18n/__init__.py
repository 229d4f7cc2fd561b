"""Translations: catalogs of the page's words, and the sentences that the server says, in the language of whoever looks."""
