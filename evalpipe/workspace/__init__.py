"""The services behind the commands: where configuration, files, clients and pure code meet."""
