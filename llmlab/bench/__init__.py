"""How fast models and kernels run on the hardware that is there, and whether its kernels are right."""
