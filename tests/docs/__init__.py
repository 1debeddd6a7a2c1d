"""What the documentation shows works: examples, snippets and commands are run as they stand."""
