"""Bytes and revisions in JetStream; knows no job rule."""
