"""A Flower app in another style."""
