"""Formats of files of weights, one file each: ``opened(path)`` gives its arrays without reading them. weights.py chooses by suffix."""
