"""Why did an attack fail? The truth is replayed through the declared training, and what does not fit is named.

Analysis, never attack: with the private images and the client's own order at hand, a recorded update either is what the
declared training gives, or it is not, and then one of many possible differences explains it best.
"""
