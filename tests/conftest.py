"""What every test shares."""

from hypothesis import settings

# No deadline: how fast an example runs on a busy machine is no property of the code.
settings.register_profile("headrace", deadline=None, print_blob=True)
settings.load_profile("headrace")
