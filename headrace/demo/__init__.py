"""`headrace demo`: a real daemon, killed once in the middle, and the proof that nothing is lost."""
