"""The OpenAI-compatible server: API keys and labels, an adapter cache, and a web page."""
