"""The nouns of evalpipe and the pure rules about them: no I/O, no clock, no chance."""
