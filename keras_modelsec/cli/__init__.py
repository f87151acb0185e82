"""The `modelsec` command."""

__all__: list[str] = []
