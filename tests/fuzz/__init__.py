"""Hostile requests: valid ones, damaged at random from a seed."""
