"""Provider wire formats ⇄ records, pure: bytes in, records out, and back."""
