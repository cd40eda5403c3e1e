"""Teachers: one vector a video, made before training, that says which videos are alike.

A contrastive encoder at the start of its training does not know which videos show the same thing.
A teacher knows more, and costs the training nothing: its vectors are computed once.
"""
