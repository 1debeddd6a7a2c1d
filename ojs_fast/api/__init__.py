"""HTTP only: parse, one core call, reply."""
