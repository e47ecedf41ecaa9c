"""Ollama's form: /api/chat, /api/generate, /api/embed and what their clients ask beside it."""
