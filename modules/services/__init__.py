"""Use cases: what one user can do with chats, models and training runs. Knows neither the web nor Gradio."""
