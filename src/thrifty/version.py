"""Thrifty's version, for rooms that may import nothing above them."""

from __future__ import annotations

VERSION = "0.1.0"
