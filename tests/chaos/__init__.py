"""A digits run under a seeded schedule of faults, which must end with the weights of an undisturbed run.

`python -m tests.chaos` plays the scheduler of a job: it starts the launchers, injects faults, and restarts what exits.
The product is unchanged; `inside/sitecustomize.py` brings faults into a rank.
"""
