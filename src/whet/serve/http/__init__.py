"""Connections, request bodies and headers, below the routes."""
