"""The HTTP interface of a real server, endpoint by endpoint."""
