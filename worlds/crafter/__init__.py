"""Craftax-Classic played as the paper's text Crafter."""
