"""Label maps in, numbers out: borders, components, objects, defects."""
