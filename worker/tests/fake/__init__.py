"""A worker without torch, for the tests. It is not installed with the product."""
