"""Tasks with an answer: what is asked, what the model generates, and how well it matches."""
