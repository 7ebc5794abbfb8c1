"""A run of digits under a seeded schedule of faults, which must end with the weights of a run that was left alone.

`python -m tests.chaos` plays what surrounds a job: it starts the launchers, strikes, and starts again what has left.
The product is the one that is shipped; faults inside a rank come through `inside/sitecustomize.py`.
"""
