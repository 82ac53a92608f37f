"""Named records: their HTTP interface and what they are stored in."""
