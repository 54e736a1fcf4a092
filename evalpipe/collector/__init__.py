"""The proxy on the served path, and the process that sends the treatment copies."""
