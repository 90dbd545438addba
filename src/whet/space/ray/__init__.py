"""Data spaces sharded over a Ray cluster; imported for `ray:` addresses only."""
