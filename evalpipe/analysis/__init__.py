"""From stored rows to findings, checks and the decision."""
