"""Run the complete workflow on every architecture family that classifies sequences."""
