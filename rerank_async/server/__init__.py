"""The local server: scoring engines behind the v1 rerank exchange."""
