"""The version of the package, which pyproject.toml states too."""

VERSION = "0.1.0"
