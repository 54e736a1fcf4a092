"""Simulated providers: real HTTP servers that speak the wire formats of OpenAI and Anthropic."""
