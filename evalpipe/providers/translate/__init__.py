"""Requests and answers of one dialect said in another, where that is faithful; a reason where it is not."""
