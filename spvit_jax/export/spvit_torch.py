"""A module for PyTorch."""
