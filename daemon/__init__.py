"""The daemon: main, the loop, the watcher, signals, logs, metrics and the command line."""
