"""Measurements of the store beside a plain twin that anyone can repeat."""
