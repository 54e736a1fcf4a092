"""Object storage as the store that several machines share: a client, leases, a log of commits, working copies."""
