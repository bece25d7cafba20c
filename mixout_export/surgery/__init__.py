"""Change models: select layers, inject mixout into them, and collapse them to plain layers."""
