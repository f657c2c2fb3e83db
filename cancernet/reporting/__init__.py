"""Figures become words, pages and pictures. Nothing here works out a figure of its own or trains."""
