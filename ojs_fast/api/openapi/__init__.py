"""The OpenAPI document of this server: shapes, operations by resource, and how they become one document."""
