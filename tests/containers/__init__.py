"""Tests of the containers, on a real engine."""
