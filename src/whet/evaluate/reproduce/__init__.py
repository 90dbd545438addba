"""The paper's tables, figures and insights, each a view of shared runs."""
