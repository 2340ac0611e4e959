"""Headroom over HTTP: the API server, the contract that both sides share, and the command line."""
