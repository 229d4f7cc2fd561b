"""How a test run is kept honest: pytest plugins that `tests/conftest.py` loads, and what `tools/run_tests.py` reads of them."""
