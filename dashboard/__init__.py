"""A page of run folders in a browser: runs, rounds, clients, images, attacks.

It reads what the other commands write and computes no leakage itself; an attack that is started here is `fl-sim attack`
in a process of its own.
"""
