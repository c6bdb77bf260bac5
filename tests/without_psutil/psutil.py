"""Stands before psutil on the path of a node that shall be without it."""
raise ImportError('No module named psutil')
