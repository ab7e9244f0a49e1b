"""Loggers that measure."""
