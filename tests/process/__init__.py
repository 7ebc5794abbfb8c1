"""Tests of whole processes: real runs, signals, sockets and files."""
