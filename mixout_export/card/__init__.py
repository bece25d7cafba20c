"""The model card of each folder, by the conventions of the Hugging Face hub."""
