"""The victims: ordinary Flower clients that train on private images and may defend themselves."""
