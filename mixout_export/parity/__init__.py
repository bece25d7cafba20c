"""Do two artifacts hold the same weights and compute the same thing?"""
