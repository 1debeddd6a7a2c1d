"""Everything at once that can go wrong, from a seed, against a ledger of what was promised (`make chaos`)."""
