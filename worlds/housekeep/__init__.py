"""Housekeep: tidying a house."""
