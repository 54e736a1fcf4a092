"""People's labels of pairs: which pairs are asked about, the journal that no crash takes a label from, and other tools' files."""
