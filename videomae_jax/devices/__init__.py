"""Meshes, processes and memory: where arrays are and how they get there."""
