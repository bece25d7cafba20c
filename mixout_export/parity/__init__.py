"""Do two artefacts hold the same weights and compute the same thing?"""
