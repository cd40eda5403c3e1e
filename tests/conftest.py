from hypothesis import settings

# A loaded machine must not fail a test: time is for the benchmarks.
settings.register_profile("vidcsl", deadline=None)
settings.load_profile("vidcsl")
