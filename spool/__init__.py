"""The spool: folders, claims, atomic publishing, and the durable record of a batch."""
