"""Object storage on this machine for tests: moto's S3 server, a proxy that makes faults, fixtures (`objects.fixtures`)."""
