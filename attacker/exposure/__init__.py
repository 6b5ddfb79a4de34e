"""Leakage along training: who is most exposed, in which round, and what about a client's data goes with it.

Everything here is computed with the truth, after the attacks have returned: it says why clients leak, and no attacker
could have drawn it up.
"""
