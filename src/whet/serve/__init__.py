"""The engine behind HTTP: the OpenAI API, keys and labels, an adapter cache, a page for people."""
