"""The HTTP API: forms of OpenAI and Ollama over the models that `holding` keeps in memory."""
