"""Models on other engines, reached by the OpenAI protocol."""
