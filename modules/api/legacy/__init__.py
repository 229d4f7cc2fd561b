"""The API that documents and scripts of July 2023 use, as a thin dialect over the same engine."""
