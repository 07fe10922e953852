"""What crosses a boundary, validated. Needs pydantic only, so the client installs without the server."""
