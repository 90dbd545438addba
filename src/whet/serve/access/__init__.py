"""Who may use the server, from which pages, and how much."""
