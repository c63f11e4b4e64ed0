"""Readers of files that others wrote: each checks every length before it uses it, and raises FormatError."""
