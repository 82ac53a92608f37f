"""Commands of the justfile that are longer than a recipe should be."""
