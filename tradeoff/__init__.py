"""Defenses against attacks: what each costs in accuracy, and what leaks in spite of it.

experiment + [defend] -> arms (defense x strength) -> federations -> attacks -> outcomes -> table, plot, gallery, page
"""
