"""The page that `batchd report` writes: what is on disk about a batch, gathered, added up and drawn."""
