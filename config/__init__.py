"""Frozen, validated settings of batchd, read once from a YAML file and the environment."""
