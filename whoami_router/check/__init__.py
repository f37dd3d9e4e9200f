"""Looks at what whoami-router works with: Synapse, a token, a running router, nginx's files."""
