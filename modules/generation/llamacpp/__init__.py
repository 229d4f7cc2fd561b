"""GGUF models by llama.cpp, whose server runs in a process of its own beside ours."""
