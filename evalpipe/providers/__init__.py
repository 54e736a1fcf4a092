"""Provider wire formats ⇄ nouns, pure: bytes in, nouns out, and back."""
