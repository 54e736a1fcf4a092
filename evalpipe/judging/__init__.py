"""The batch runner that has a language model compare answers."""
