"""Every architecture family of transformers' text classifiers, taken the whole way."""
