"""Measurements that anyone can repeat; each prints its bars and whether they are met."""
