"""`mode=inspect`: everything of a run but the training, from its stream and its images to what it will cost."""
