"""`evalpipe label`: a local page that asks people which of two answers is better, one pair after the other, blind."""
