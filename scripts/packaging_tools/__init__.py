"""Build wheels, the sdist and Debian packages."""
