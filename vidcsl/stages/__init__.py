"""The main job: its stages, each from a config to files in the run's folder."""
