"""The stages in order: the one place where configuration, files, clients and pure code meet."""
