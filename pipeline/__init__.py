"""The pipeline: validates a file, plans its order, runs it with Ray Data on an engine, merges the parts.

The only package that imports ray, vllm or torch, and only inside the functions that start work.
"""
