"""What Lightning calls while a recipe trains."""
