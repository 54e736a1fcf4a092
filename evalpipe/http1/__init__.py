"""HTTP/1.1 without I/O: message headers and bodies, byte for byte as they were received (RFC 9110, RFC 9112)."""
