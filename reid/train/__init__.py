"""Training: what runs by night. Everything that needs torch, lap or SciPy lives below here, never on the way of a
query.
"""
