"""How alike two images are: one file a metric, each a pure function of images in [0, 1]."""
